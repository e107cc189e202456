"""Texts to tokens whose labels can be read, and back, also token by token."""

import re
from pathlib import Path

import numpy as np
import numpy_models as tiny
import pytest

from jaxattn import models

tokenizers = pytest.importorskip("tokenizers", reason="pip install tokenizers")
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

TEXT = "We are here, and they are there. "
ODD = "We are\n café → 🙂 here"


def saved(tokenizer, folder):
    tokenizer.save(str(folder / "tokenizer.json"))
    return models.load_tokenizer(folder)


@pytest.fixture
def byte_level(tmp_path):
    """As GPT-2's, Llama 3's and Qwen's."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator([TEXT] * 9, trainer)
    made.add_special_tokens(["<|end|>"])
    return saved(made, tmp_path)


@pytest.fixture
def pieces(tmp_path):
    """As SentencePiece's in Llama 2, Mistral and Gemma."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁We", "▁are", "▁here", ","]
    made = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(word, -1.0) for word in words], 0, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return saved(made, tmp_path)


@pytest.fixture
def word_pieces(tmp_path):
    """As BERT's, with a file that pads and cuts."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "we", "are", "he", "##re", ",", "cafe"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(words[:4])
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=20)
    made.enable_truncation(5)
    return saved(made, tmp_path)


def test_byte_level_labels(byte_level):
    got = byte_level.encode("We are here<|end|>")
    assert got.labels == ("We", " are", " here", "<|end|>")
    assert got.offsets == ((0, 2), (2, 6), (6, 11), (11, 18))
    assert got.ids.dtype == np.int32
    assert byte_level.special_ids == {byte_level.id_of("<|end|>")}
    assert byte_level.decode(got.ids) == "We are here"
    assert byte_level.decode(got.ids, special=True) == "We are here<|end|>"
    odd = byte_level.encode(ODD)
    assert odd.labels[2:9] == ("\n", " ", "c", "a", "f", "\\xc3", "\\xa9")
    assert [byte_level.label(i) for i in odd.ids] == list(odd.labels)
    with pytest.raises(ValueError, match="ids are from 0"):
        byte_level.label(len(byte_level))


def test_sentence_pieces_labels(pieces):
    got = pieces.encode("We are here,\n")
    assert got.labels == ("We", " are", " here", ",", "\n")
    assert pieces.label(int(got.ids[1])) == " are"
    assert pieces.decode(got.ids) == "We are here,\n"
    assert pieces.encode("é").labels[-2:] == ("\\xc3", "\\xa9")


def test_word_pieces_labels(word_pieces):
    """Neither padded nor cut, with spaces between words, for those are in no token."""
    got = word_pieces.encode("We are here, Café  we are")
    labels = ("[CLS]", "we", " are", " he", "re", ",", " cafe", " we", " are", "[SEP]")
    assert got.labels == labels
    assert got.special == (True, *[False] * 8, True)
    assert got.offsets[3:5] == ((7, 9), (9, 11))
    assert word_pieces.decode(got.ids) == "we are here, cafe we are"
    assert word_pieces.encode("we", special=False).labels == ("we",)
    pair = word_pieces.encode("we", "are he")
    assert pair.labels == ("[CLS]", "we", "[SEP]", "are", " he", "[SEP]")
    assert pair.types.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["byte_level", "pieces", "word_pieces"])
@pytest.mark.parametrize("split", [0, 3])
def test_a_stream_gives_the_text_of_the_whole(kind, split, request):
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(TEXT if kind == "word_pieces" else ODD).ids.tolist()
    stream = tokenizer.stream(ids[:split])
    told = [stream(i) for i in ids[split:]]
    assert all("\ufffd" not in x for x in told)
    whole = tokenizer.decode(ids)
    assert whole.endswith("".join(told))
    if not split:
        assert "".join(told) == whole
    if kind == "byte_level":
        assert "🙂" in told


def test_a_character_that_is_never_completed(byte_level):
    ids = byte_level.encode("🙂").ids
    stream = byte_level.stream()
    assert [stream(i) for i in ids[:3]] == ["", "", ""]
    assert set(stream.end()) == {"\ufffd"}


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match="is no tokenizer"):
        models.load_tokenizer(tmp_path)


def test_the_page_on_models_runs(byte_level, tmp_path, capsys):
    """With a tiny model that has this vocabulary."""
    tiny.save(tmp_path, tiny.GPT2 | {"vocab_size": len(byte_level)})
    page = Path(models.__file__).with_name("README.md").read_text()
    known = {"folder": tmp_path}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, known)
    np.testing.assert_allclose(known["q"], known["steps"].q[:, 0], atol=1e-5)
    assert capsys.readouterr().out.startswith("(3, 2)\n")

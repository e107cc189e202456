"""Checkpoints of a few kilobytes with their tokenizers, made without torch."""

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WIDTH, HEADS, LAYERS, POSITIONS = 24, 3, 2, 160
WORDS = ["the", "cat", "dog", "sat", "saw", "on", "a", "mat", "and", "is", "where"]


def make_gpt2(folder, *, seed=0, spare=0):
    """A decoder whose vocabulary is bytes and a few words. Gives its tensors in float64.

    spare: ids that the model has and the tokenizer has not.
    """
    config = {"model_type": "gpt2", "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [pair for word in WORDS for pair in _merges(f"Ġ{word}")]
    merges = list(dict.fromkeys(merges))
    vocabulary = dict.fromkeys(letters) | dict.fromkeys(map("".join, merges))
    vocabulary = {token: i for i, token in enumerate([*vocabulary, "<|endoftext|>"])}
    config |= {"n_positions": POSITIONS, "vocab_size": len(vocabulary) + spare}
    config |= {"eos_token_id": vocabulary["<|endoftext|>"]}
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (len(vocabulary) + spare, WIDTH),
        "wpe.weight": (POSITIONS, WIDTH),
    }
    for i in range(LAYERS):
        for name, inputs, outputs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            shapes[f"h.{i}.{name}.weight"] = (inputs, outputs)
            shapes[f"h.{i}.{name}.bias"] = (outputs,)
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.{x}": (WIDTH,) for x in ("weight", "bias")}
    shapes |= {f"ln_f.{x}": (WIDTH,) for x in ("weight", "bias")}
    tensors = _save(folder, config, shapes, seed)
    own = Tokenizer(models.BPE(vocabulary, merges))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    own.add_special_tokens(["<|endoftext|>"])
    own.save(str(folder / "tokenizer.json"))
    return tensors


def make_bert(folder, *, seed=1):
    """An encoder without a head."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    config = {"model_type": "bert", "hidden_size": WIDTH, "num_attention_heads": HEADS}
    config |= {"num_hidden_layers": LAYERS, "intermediate_size": 37, "vocab_size": len(words)}
    config |= {"max_position_embeddings": 64, "type_vocab_size": 2}
    rows = {"word": len(words), "position": 64, "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{x}_embeddings.weight": (n, WIDTH) for x, n in rows.items()
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        norms += [f"{layer}.{x}.LayerNorm" for x in ("attention.output", "output")]
        linear = {f"attention.self.{x}": (WIDTH, WIDTH) for x in ("query", "key", "value")}
        linear |= {"attention.output.dense": (WIDTH, WIDTH)}
        linear |= {"intermediate.dense": (37, WIDTH), "output.dense": (WIDTH, 37)}
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    shapes |= {f"{name}.{x}": (WIDTH,) for name in norms for x in ("weight", "bias")}
    tensors = _save(folder, config, shapes, seed)
    own = Tokenizer(models.WordPiece({x: i for i, x in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.decoder = decoders.WordPiece()
    own.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    own.add_special_tokens(words[:4])
    own.save(str(folder / "tokenizer.json"))
    return tensors


def _merges(word):
    return [(word[:i], word[i]) for i in range(1, len(word))]


def _save(folder, config, shapes, seed):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    norm = lambda name: name.endswith("weight") and ("ln_" in name or "Norm" in name)
    tensors = {
        name: (norm(name) + 0.5 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "model.safetensors"))
    return {name: x.astype(np.float64) for name, x in tensors.items()}

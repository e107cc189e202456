"""Texts to tokens and back, by the tokenizer.json of a checkpoint.

tokenizer = jaxattn.models.load_tokenizer("path/to/gpt2")
ids, labels, *_ = tokenizer.encode("We are here")  # labels: "We", " are", " here"
stream = tokenizer.stream()
print(*map(stream, ids), sep="", end="")
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxattn.models.checkpoint import CheckpointError, MissingFileError

FILE = "tokenizer.json"
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a part of a character is decoded into


class Encoded(NamedTuple):
    """A text as tokens.

    ids: for the model. labels: what a reader sees of each token, with the space before it if there
      is one; bytes that are no whole character as \\xe2.
    offsets: (start, end) of each in the text, in characters; (0, 0) for one that is not in it.
    special: whether the tokenizer added it. types: of the two texts of a pair, 0 and 1.
    """

    ids: Int[np.ndarray, " t"]
    labels: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    types: Int[np.ndarray, " t"]


class Tokenizer:
    """Made by `load_tokenizer`. Pads nothing and cuts nothing, whatever the file says."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self._special = {i for i, token in added.items() if token.special}
        self._read = _reader(tokenizer.decoder)

    def __len__(self) -> int:
        """How many tokens there are."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, pair: str | None = None, *, special: bool = True) -> Encoded:
        """The tokens of a text, or of two in one sequence.

        special: with the tokens that the tokenizer adds, such as [CLS].
        """
        got = self._tokenizer.encode(text, pair, add_special_tokens=special)
        texts = {0: text, 1: pair or ""}
        labels, ends = [], {0: 0, 1: 0}
        for i, token, (start, end), part in zip(
            got.ids, got.tokens, got.offsets, got.sequence_ids, strict=True
        ):
            if part is None or i in self._added:
                labels.append(self._added.get(i, token))
            else:
                between = texts[part][ends[part] : start]
                labels.append(self._label(token, between, first=not ends[part] and not between))
            if part is not None:
                ends[part] = end
        return Encoded(
            np.asarray(got.ids, np.int32),
            tuple(labels),
            tuple(got.offsets),
            tuple(map(bool, got.special_tokens_mask)),
            np.asarray(got.type_ids, np.int32),
        )

    def _label(self, token: str, between: str, first: bool) -> str:
        text = self._read(token)
        if first and text.startswith(" ") and len(text) > 1:
            return text[1:]  # put before the first word by the tokenizer
        lost = between.isspace() and not text[:1].isspace()
        return f" {text}" if lost else text  # a space that belongs to no token

    def label(self, id: int) -> str:
        """What a reader sees of a token, by itself."""
        if id in self._added:
            return self._added[id]
        token = self._tokenizer.id_to_token(int(id))
        if token is None:
            raise ValueError(f"ids are from 0 to {len(self) - 1}, got {id}; another vocabulary?")
        return self._read(token)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, such as "[MASK]", or None."""
        return self._tokenizer.token_to_id(token)

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._special)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens. special: with special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special)

    def stream(self, before: Sequence[int] = ()) -> "Stream":
        """Decodes token by token. before: those of the text so far, whose text is not given."""
        return Stream(self, before)


class Stream:
    """A function of the next token that gives the text that it completes, perhaps none.

    A token may be a part of a character, or a word whose space depends on the word before.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Text up to `_told` has been given; from `_from` on it is decoded again with what follows.
        self._ids = [int(i) for i in before]
        self._from, self._told = max(len(self._ids) - 5, 0), len(self._ids)

    def __call__(self, id: int) -> str:
        self._ids.append(int(id))
        given = self._tokenizer.decode(self._ids[self._from : self._told])
        now = self._tokenizer.decode(self._ids[self._from :])
        if len(now) <= len(given) or now.endswith(BROKEN):
            return ""
        self._from, self._told = self._told, len(self._ids)
        return now[len(given) :]

    def end(self) -> str:
        """What is left, with a replacement for a character that was never completed."""
        given = self._tokenizer.decode(self._ids[self._from : self._told])
        return self._tokenizer.decode(self._ids[self._from :])[len(given) :]


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a folder.

    Raises:
      FileNotFoundError: there is no tokenizer.json in it.
      ValueError: that cannot be read.
    """
    from tokenizers import Tokenizer as Read  # here, for models need none

    path = Path(folder) / FILE
    if not path.is_file():
        raise MissingFileError(
            f"{folder} has no {FILE}; transformers makes it of older files: "
            f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        return Tokenizer(Read.from_file(str(path)))
    except Exception as error:  # the library raises no other
        raise CheckpointError(f"{path} is no tokenizer ({error}); copy it again") from None


def _reader(decoder: Any) -> Callable[[str], str]:
    """From a token as a vocabulary has it to its text, for the kind of vocabulary."""
    stated = json.loads(decoder.__getstate__()) if decoder is not None else {}
    steps = {x["type"]: x for x in stated.get("decoders", [stated]) if x}
    if "ByteLevel" in steps:
        return lambda token: _text(bytes(BYTES[x] for x in token if x in BYTES))
    if "WordPiece" in steps:
        prefix = steps["WordPiece"].get("prefix", "##")
        return lambda token: token.removeprefix(prefix)
    if "Metaspace" in steps or "Replace" in steps:
        return lambda token: _of_pieces(token)
    return lambda token: token


def _of_pieces(token: str) -> str:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    return _text(bytes.fromhex(byte[1])) if byte else token.replace("▁", " ")


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")


def _byte_letters() -> dict[str, int]:
    """Byte-level vocabularies write each byte as one visible letter.

    Printable ones of Latin-1 are themselves, the others follow from 256 on in order.
    Source: Radford et al. 2019, the code published with it.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _byte_letters()

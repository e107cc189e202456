"""Tokens as a reader should see them, and which of them are the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

SPACE, NEWLINE, EMPTY = "·", "⏎", "∅"
MARKS = {"Ġ": SPACE, "▁": SPACE, "Ċ": NEWLINE, " ": SPACE, "\n": NEWLINE, "\r": NEWLINE, "\t": "⇥"}


def readable(token: str) -> str:
    """A token with its spaces and control characters shown: `Ġpeople` as `·people`.

    `Ġ` and `▁` stand for a space where byte-level and SentencePiece vocabularies put them. Control
    characters become the pictures that Unicode has of them. Other text stays as it is: decode it
    first, if it is the bytes of a byte-level vocabulary.
    """
    return "".join(map(_shown, token)) or EMPTY


def _shown(character: str) -> str:
    if character in MARKS:
        return MARKS[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    # Separators that would break a line, marks that would turn its direction, half a character.
    hidden = 0x80 <= code < 0xA0 or 0x2028 <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return f"U+{code:04X}" if hidden or 0xD800 <= code < 0xE000 else character


def check_tokens(tokens: Any, name: str, length: int | None = None) -> tuple[str, ...]:
    """
    Raises:
      TypeError: not a sequence of strings. ValueError: none, or not `length` of them.
    """
    if isinstance(tokens, str) or not isinstance(tokens, Sequence | np.ndarray):
        raise TypeError(
            f"{name} is a list of strings, one for each token, got {type(tokens).__name__}; of a "
            f"text pass what the tokenizer makes of it"
        )
    tokens = tuple(tokens)
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(
                f"{name} is a list of strings, got {token!r} in it; of ids pass "
                f"tokenizer.convert_ids_to_tokens(ids)"
            )
    if not tokens or (length is not None and len(tokens) != length):
        want = "at least one" if length is None else f"{length}, one for each row or column"
        raise ValueError(f"{name} has {want}, got {len(tokens)}; pass the tokens that were read")
    return tuple(map(str, tokens))


def ids_of(
    tokens: Sequence[str], keys: Sequence[str]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " s"]]:
    """Whole numbers that are equal where the strings are."""
    known = {token: i for i, token in enumerate(dict.fromkeys((*tokens, *keys)))}
    number = lambda some: np.array([known[token] for token in some], np.int32)
    return number(tokens), number(keys)

"""The masks that workloads use, as plain values that every contender translates for itself.

They import no array library, so that what a contender is asked to do does not depend on the
contender that is being measured.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True)
class Full:
    """Every query sees every key."""

    def spans(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """The first key each query sees, and one past the last."""
        return np.zeros(queries, np.int64), np.full(queries, keys, np.int64)

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class Causal:
    """Query i sees keys 0..i; queries and keys are equally many."""

    def spans(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """The first key each query sees, and one past the last."""
        at = np.arange(queries, dtype=np.int64)
        return np.zeros_like(at), np.minimum(at + 1, keys)

    def __str__(self) -> str:
        return "causal"


@dataclass(frozen=True)
class Window:
    """Query i sees keys i - left..i, both inclusive; queries and keys are equally many."""

    left: int

    def spans(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """The first key each query sees, and one past the last."""
        at = np.arange(queries, dtype=np.int64)
        return np.maximum(at - self.left, 0), np.minimum(at + 1, keys)

    def __str__(self) -> str:
        return f"window{self.left + 1}"


@dataclass(frozen=True)
class Segments:
    """Documents of equal length, packed one after another, that see only themselves."""

    count: int

    def ids(self, tokens: int) -> np.ndarray:
        """[t]: the document of each token."""
        return (np.arange(tokens) * self.count // tokens).astype(np.int32)

    def spans(self, queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """The first key each query sees, and one past the last."""
        ids, own = self.ids(keys), self.ids(queries)
        return np.searchsorted(ids, own), np.searchsorted(ids, own, side="right")

    def __str__(self) -> str:
        return f"segments{self.count}"


Mask: TypeAlias = Full | Causal | Window | Segments

EVERY_PAIR = Full()


def allowed_ts(mask: Mask, queries: int, keys: int) -> np.ndarray:
    """The mask written out: which key (column) each query (row) sees."""
    first, stop = mask.spans(queries, keys)
    s = np.arange(keys)[None, :]
    return (first[:, None] <= s) & (s < stop[:, None])

"""What a mask leaves of the pairs of a ring, as far as it is known while tracing."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._band import Band
from jaxattn._mask import EVERYTHING, BoundMask
from jaxattn._value import Shift, Span
from jaxattn.sharded.parts import Layout, Pair


class Cases:
    """What the mask leaves of pairs, as far as it is known while tracing.

    kinds: masks that take the place of the moved one, `EVERYTHING` and a few bands; None for the
    moved mask itself, `HIDDEN` for nothing. table: which of these, [... block piece], by (chunk of
    queries, of keys); or by how far one is ahead of the other, where that says it all.
    """

    FEW = 1  # bands that are compiled apart
    MOST = 2**14  # pairs of which each is looked at

    def __init__(self, mask: BoundMask, layout: Layout) -> None:
        n, blocks, pieces = layout.chunks, range(layout.blocks), range(layout.pieces)
        rows, keys = layout.rows, layout.keys
        self.kinds: list[Any] = [HIDDEN]
        self.by_distance = _is_band(mask) and rows * len(blocks) == keys * len(pieces)
        if self.by_distance:
            of_band = functools.cache(functools.partial(self._of_band, mask, layout))
            start = lambda ahead: ahead * rows * len(blocks)
            self.table = np.array(
                [
                    [[of_band(start(d) + i * rows - j * keys) for j in pieces] for i in blocks]
                    for d in range(1 - n, n)
                ]
            )
            if sum(isinstance(x, Band) for x in self.kinds) > self.FEW:
                other = [x for x in self.kinds if x is HIDDEN or x is EVERYTHING]
                new = [other.index(x) if x in other else len(other) for x in self.kinds]
                self.kinds, self.table = [*other, None], np.array(new)[self.table]
            return
        down, across = n * len(blocks), n * len(pieces)
        table = np.zeros((down, across), np.int32)
        for i in range(down):
            here = Span(i * rows, rows)
            first, stop = mask.limits(here, across * keys)
            for j in range(first // keys, min(-(-stop // keys), across)):
                look = table.size <= self.MOST
                whole = look and mask.covers(here, Span(j * keys, keys))
                table[i, j] = self._kind(EVERYTHING if whole else None)
        apart = table.reshape(n, len(blocks), n, len(pieces))
        self.table = apart.transpose(0, 2, 1, 3)

    def _of_band(self, mask: Any, layout: Layout, ahead: int) -> int:
        """ahead: of the first key, the first query."""
        if mask is EVERYTHING:
            return self._kind(EVERYTHING)
        here, rows = mask.moved(Shift(q=ahead)), Span(0, layout.rows)
        first, stop = here.needs(rows, layout.keys)
        if first >= stop:
            return 0
        return self._kind(EVERYTHING if here.covers(rows, Span(0, layout.keys)) else here)

    def _kind(self, kind: Any) -> int:
        if kind not in self.kinds:
            self.kinds.append(kind)
        return self.kinds.index(kind)

    @functools.cached_property
    def _bits(self) -> np.ndarray:
        """The kinds of all pairs of two chunks, each as a bit."""
        return np.bitwise_or.reduce(1 << self.table, axis=(-2, -1))

    def at(self, pair: Pair) -> Any:
        """Which kind a pair is, of traced indices."""
        table = jnp.asarray(self.table)
        return table[*self._chunks(pair.q_chunk, pair.k_chunk), pair.block, pair.piece]

    def met(self, layout: Layout, shifts: Iterable[int]) -> list[int]:
        """The kinds of all devices' pairs, when they are visited from so far before."""
        chunks, found = layout.order.table(layout.devices), 0
        for shift in shifts:
            pairs = chunks[:, :, None], np.roll(chunks, shift, axis=0)[:, None, :]
            found |= int(np.bitwise_or.reduce(self._bits[self._chunks(*pairs)], axis=None))
        return [i for i in range(len(self.kinds)) if found >> i & 1]

    def _chunks(self, q_chunks: Any, k_chunks: Any) -> tuple[Any, ...]:
        """The table's first indices of chunks."""
        if self.by_distance:
            return (q_chunks - k_chunks + (len(self.table) - 1) // 2,)
        return q_chunks, k_chunks

    def needed(self, layout: Layout) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each device the pairs that are not hidden: which kinds they are, their first queries
        and their first keys."""
        n, found = layout.chunks, []
        for mine in layout.order.table(layout.devices):
            kinds = self.table[self._chunks(mine[:, None], np.arange(n))]
            part, k_chunk, block, piece = np.nonzero(kinds)
            chunks: tuple[Any, ...] = block, piece, mine[part], k_chunk
            start = layout.start_of(Pair(0, 0, 0, 0, *chunks))
            found.append((kinds[kinds != 0], start.q, start.k))
        return found

    def shifts(self, layout: Layout) -> tuple[int, ...]:
        """From how far before anything is needed; and 0."""
        need = (i for i in range(1, layout.devices) if self.met(layout, [i]) != [0])
        return (0, *need)


class _Hidden:
    def __repr__(self) -> str:
        return "HIDDEN"


HIDDEN: Any = _Hidden()


def _is_band(mask: BoundMask) -> bool:
    return mask is EVERYTHING or (isinstance(mask, Band) and not jax.tree.leaves(mask))

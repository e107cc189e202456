"""A picture of the weights, of a size of its own."""

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import Index, ceil_div, dot
from jaxattn._content import is_whole
from jaxattn._observation import (
    HEAD,
    BoundObservation,
    Grid,
    Observation,
    Seen,
    Share,
    by_rows,
    known_lengths,
)
from jaxattn._value import Sizes, Span
from jaxattn.positions import Frame

ROWS = 64  # that are multiplied by their norms at a time


class Reduce(Enum):
    """What a cell shows of the weights in it."""

    SHARE = "summed over keys, averaged over the queries that see any: rows sum to 1"
    PEAK = "the largest"
    SUM = "the sum"

    def __repr__(self) -> str:
        return self.name


SHARE, PEAK, SUM = Reduce.SHARE, Reduce.PEAK, Reduce.SUM


@dataclass(frozen=True, repr=False)
class Map(Observation):
    """The weights as a picture: [*b h rows columns], queries down and keys across.

    A cell is ⌈t / cells⌉ queries by ⌈s / cells⌉ keys, the last row and column perhaps less; so
    there are at most `cells` of them each way.

    cells: at least 1. reduce: SHARE, PEAK or SUM.
    """

    cells: int = 256
    reduce: Reduce = SHARE

    def __post_init__(self) -> None:
        if not is_whole(self.cells) or self.cells < 1:
            raise ValueError(f"a Map has at least 1 cell each way, got cells={self.cells!r}")
        super().__post_init__()
        if not isinstance(self.reduce, Reduce):
            raise TypeError(f"a Map reduces by SHARE, PEAK or SUM, got {self.reduce!r}")

    def resolve(self, frame: Frame, dtype: Any) -> "BoundMap":
        known_lengths(self, frame)
        return BoundMap(self.cells, self.reduce, frame.t, frame.s)


@dataclass(frozen=True, repr=False)
class BoundMap(BoundObservation):
    """A `Map` of t queries and s keys."""

    PER = HEAD

    cells: int
    reduce: Reduce
    t: int
    s: int

    @property
    def statistic(self) -> Grid:
        rows, columns = (count_of(n, self.cells) for n in (self.t, self.s))
        down, across = (side_of(n, self.cells) for n in (self.t, self.s))
        return Grid(rows, columns, down, across, self.reduce is PEAK)

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros((count_of(self.t, self.cells), count_of(self.s, self.cells)), dtype)

    def absorb(self, seen: Seen) -> Float[Array, "rows columns"]:
        rows, keys = seen.place.rows, seen.place.keys
        pool = jnp.maximum if self.reduce is PEAK else jnp.add
        down, across = side_of(self.t, self.cells), side_of(self.s, self.cells)
        if rows.starts_at_multiple_of(down):  # the fast one, so the one for the whole tile
            if rows.size % down == 0:
                p, norm = (x.reshape(-1, down, *x.shape[1:]) for x in (seen.p, seen.norm))
                if self.reduce is PEAK:
                    many = max(ROWS // down, 2)
                    cells = by_rows(
                        lambda p, norm: _halve(pool, p * norm[..., None]), many, p, norm
                    )
                else:
                    cells = jax.vmap(dot)(norm[:, None], p)[:, 0]
                row = rows.start // down
            else:
                cells, row = _pool(pool, seen.weights, rows, down, axis=0)
            cells, column = _pool(pool, cells, keys, across, axis=1)
        else:
            cells, column = _pool(pool, seen.weights, keys, across, axis=1)
            cells, row = _pool(pool, cells, rows, down, axis=0)
        shape = count_of(self.t, self.cells), count_of(self.s, self.cells)
        return _place(cells, shape, (row, column))

    def merge(self, a: Array, b: Array) -> Array:
        return jnp.maximum(a, b) if self.reduce is PEAK else a + b

    @property
    def adds_up(self) -> bool:
        return self.reduce is not PEAK

    def finish_part(
        self, state: Array, live: Array, share: Share
    ) -> Float[Array, "*b h rows columns"]:
        if self.reduce is not SHARE:
            return state
        rows = share.rows // side_of(self.t, self.cells)
        none = jnp.zeros((*live.shape[:-2], live.shape[-1], state.shape[-2]), jnp.int32)
        queries = share.total(none.at[..., rows].add(jnp.swapaxes(live, -1, -2)))
        return state / jnp.maximum(queries, 1)[..., None]

    def finish(self, state: Array, live: Array) -> Float[Array, "*b h rows columns"]:
        if self.reduce is not SHARE:
            return state
        side = side_of(self.t, self.cells)
        pads = [(0, 0)] * (live.ndim - 2) + [(0, -self.t % side), (0, 0)]
        rows = count_of(self.t, self.cells)
        queries = jnp.pad(live, pads).reshape(*live.shape[:-2], rows, side, live.shape[-1]).sum(-2)
        return state / jnp.maximum(jnp.swapaxes(queries, -1, -2), 1)[..., None]


def side_of(length: int, cells: int) -> int:
    """How many positions a cell holds."""
    return max(ceil_div(length, cells), 1)


def count_of(length: int, cells: int) -> int:
    """How many cells there are."""
    return ceil_div(length, side_of(length, cells))


def _pool(pool: Any, x: Array, span: Span, side: int, axis: int) -> tuple[Array, Index]:
    """x pooled along an axis in cells of `side`, and the first cell that it has a part of.

    pool: jnp.add or jnp.maximum.
    """
    size = x.shape[axis]
    known = span.starts_at_multiple_of(side)
    most = ceil_div(size, side) if known else (size + 2 * side - 2) // side
    if known:
        pads = [(0, most * side - size) if i == axis else (0, 0) for i in range(x.ndim)]
        x = jnp.pad(x, pads)
    else:
        shape = [most * side if i == axis else n for i, n in enumerate(x.shape)]
        x = jax.lax.dynamic_update_slice_in_dim(
            jnp.zeros(shape, x.dtype), x, span.start % side, axis
        )
    x = x.reshape(*x.shape[:axis], most, side, *x.shape[axis + 1 :])
    if axis + 1 == x.ndim - 1:
        return pool.reduce(x, axis + 1), span.start // side
    return _halve(pool, x, axis + 1), span.start // side


def _halve(pool: Any, x: Array, axis: int = 1) -> Array:
    """x reduced over an axis that is not the last.

    By halves, elementwise: XLA makes one loop of it that goes along the rows. Of a reduction over
    this axis it makes one that goes down the columns, and takes twice as long.
    """
    part = partial(jax.lax.slice_in_dim, axis=axis)
    while (n := x.shape[axis]) > 1:
        half = n // 2
        halves = pool(part(x, 0, half), part(x, half, 2 * half))
        x = halves if n % 2 == 0 else jnp.concatenate([halves, part(x, n - 1, n)], axis)
    return x.squeeze(axis)


def _place(x: Array, shape: tuple[int, int], at: tuple[Index, Index]) -> Array:
    """x at `at` in zeros of `shape`; what is beyond the end is zeros too."""
    room = [(n + m, n) for n, m in zip(shape, x.shape, strict=True)]
    whole = jnp.zeros([both for both, _ in room], x.dtype)
    whole = jax.lax.dynamic_update_slice(whole, x, at)
    return whole[: shape[0], : shape[1]]

"""Masks, scores and dropout inside a kernel: their own functions, on a tile in registers.

A value's arrays go into the kernel whole. What a tile needs of them is read there, in the layout of
the accumulator that holds the scores, and put in the value's place.
"""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn._axes import INDEX
from jaxattn._problem import Rule
from jaxattn._value import Span, Value

TILE = plgpu.Layout.WGMMA
ROW, COLUMN = TILE.reduce(1), TILE.reduce(0)


class RowSpan(Span):
    """Along the first axis of a tile."""

    def indices(self) -> Array:
        """In the layout of one number of each row."""
        return _count(self, ROW)


class ColumnSpan(Span):
    """Along the second axis of a tile."""

    def indices(self) -> Array:
        """In the layout of one number of each column; of a single one, that."""
        return jnp.asarray(self.start, INDEX) if self.size == 1 else _count(self, COLUMN)


def _count(span: Span, layout: Any) -> Array:
    return plgpu.broadcasted_iota(INDEX, (span.size,), 0, layout=layout) + span.start


class Here(NamedTuple):
    """Which part of the work a warpgroup has.

    mapped, batch: indices for the axes of `jax.vmap` and of the batch. head: of the queries, or
      where a program has keys, of those. mine: its rows, or its keys. first, stop: which tiles come
      through the ring; whole, end: those of them that need no mask. numbers: of a list of tiles,
      which then are meant by `first` to `stop`, in place of a range.
    """

    mapped: tuple[Any, ...]
    batch: tuple[Any, ...]
    head: Any
    warpgroup: Any
    mine: Span
    first: Any
    whole: Any
    end: Any
    stop: Any
    numbers: Any

    def tile(self, i: Any) -> Any:
        """The number of the i-th tile that comes."""
        return self.first + i if self.numbers is None else self.numbers[i]

    @property
    def count(self) -> Any:
        return self.stop - self.first

    def with_a_tile(self, across: int) -> "Here":
        """With one tile, whose pairs are all hidden, in place of none."""
        first = jnp.minimum(self.first, across - 1)
        return self._replace(first=first, stop=jnp.maximum(self.stop, first + 1))


class TilePlace(NamedTuple):
    """What a `Place` is to masks and scores, of a tile in registers.

    other: how long the second axis of the tile is. Where there is one key, it is all along it.
    mapped: an index for each axis of `jax.vmap`.
    """

    batch: tuple[Any, ...]
    head: Any
    rows: Span
    keys: Span
    other: int
    keys_first: bool
    mapped: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.keys.size if self.keys_first else self.rows.size, self.other

    @staticmethod
    def of(here: Here, head: Any, rows: Span, keys: Span, keys_first: bool = False) -> "TilePlace":
        """The place of the tile of these queries and keys."""
        if keys_first:
            rows, keys, other = ColumnSpan(*rows), RowSpan(*keys), rows.size
        else:
            rows, keys, other = RowSpan(*rows), ColumnSpan(*keys), keys.size
        return TilePlace(here.batch, head, rows, keys, other, keys_first, here.mapped)

    @property
    def q(self) -> Array:
        return self.each_q(self.rows.indices())

    @property
    def k(self) -> Array:
        return self.each_k(self.keys.indices())

    def each_q(self, x: Any) -> Array:
        return self._spread(x, int(self.keys_first))

    def each_k(self, x: Any) -> Array:
        return self._spread(x, 1 - int(self.keys_first))

    def pairs(self, x: Any) -> Array:
        """What was read of an array [t s]: it lies as the tile does."""
        return x

    def layout(self, axis: str) -> Any:
        """How a number of each query, or of each key, lies in registers."""
        return ROW if (axis == "s") == self.keys_first else COLUMN

    def _spread(self, x: Any, axis: int) -> Array:
        return lax.broadcast_in_dim(x, self.shape, [axis] if jnp.ndim(x) else [])


def _leaves_with_axes(values: Any) -> list[tuple[Any, str | None]]:
    """Every array of a tree of values, in its order, with the axes that it has after the batch."""
    found: list[tuple[Any, str | None]] = []

    def note(array: Any, axes: str | None) -> Any:
        found.append((array, axes))
        return array

    jax.tree.map(
        lambda x: x.each_array(note) if isinstance(x, Value) else found.append((x, None)),
        values,
        is_leaf=lambda x: isinstance(x, Value),
    )
    return found


def pieces(rule: Rule, more: Sequence[Any], place: TilePlace) -> Any:
    """(mask, score, dropout, scale) with what the tile at `place` needs of their arrays. more: what
    became of `operands`, each with the axes of `jax.vmap` before its own, full or of size 1."""
    refs = iter(more)

    def piece(array: Any, axes: str | None) -> Array:
        return _read(next(refs), array, axes or "", place)

    is_value = lambda x: isinstance(x, Value)
    each = lambda x: x.each_array(piece) if is_value(x) else piece(x, None)
    return jax.tree.map(each, _values(rule), is_leaf=is_value)


def _values(rule: Rule) -> Any:
    return rule.mask, rule.score, rule.dropout, rule.scale


def _read(ref: Any, array: Any, axes: str, place: TilePlace) -> Array:
    lead, batch = array.ndim - len(axes), (*place.mapped, *place.batch)
    shape = *ref.shape[: len(place.mapped)], *array.shape[:lead]
    index: list[Any] = [0 if n == 1 else i for n, i in zip(shape, batch, strict=False)]
    along, of_pairs = [], axes.endswith("ts")  # along: which axes of the tile it has
    for axis, n in zip(axes, array.shape[lead:], strict=True):
        if n == 1:
            index.append(0)
        elif axis == "h":
            index.append(place.head)
        elif axis == "s" and place.keys.size == 1:
            index.append(place.keys.start)
        else:
            span = place.rows if axis == "t" else place.keys
            index.append(pl.ds(span.start, span.size))
            along.append(axis)
    if of_pairs and place.keys_first:
        index[-2:] = reversed(index[-2:])
    part = ref.at[(*index, *(0,) * (len(ref.shape) - len(index)))]
    layout = TILE if len(along) == 2 else place.layout(along[0]) if along else None
    x = plgpu.load(part, layout=layout, optimized=False) if along else part[...]
    x = x != 0 if array.dtype == bool else x
    if of_pairs and len(along) < 2:
        x = place.each_q(x) if along == ["t"] else place.each_k(x)
    return x


def operands(rule: Rule, rows: int, columns: int, keys_first: bool = False) -> list[Array]:
    """The arrays of a rule as a kernel gets them: of at least one axis, as long as whole tiles,
    those of pairs the way the tiles lie.

    rows, columns: how many queries and keys all tiles have together.
    """
    found = []
    for array, axes in _leaves_with_axes(_values(rule)):
        x, axes = jnp.asarray(array), axes or ""
        lengths = [{"t": rows, "s": columns}.get(axis) for axis in axes]
        lead = x.ndim - len(axes)
        pad = [(0, 0)] * lead + [
            (0, 0 if n == 1 or length is None else length - n)
            for n, length in zip(x.shape[lead:], lengths, strict=True)
        ]
        x = x.astype(jnp.int8) if x.dtype == bool else x
        x = jnp.pad(x, pad) if any(after for _, after in pad) else x
        found.append(x.swapaxes(-1, -2) if keys_first and axes.endswith("ts") else x)
    return [x if x.ndim else x[None] for x in found]

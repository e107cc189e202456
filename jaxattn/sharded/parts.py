"""The parts of a problem that devices have, and those of a pair of chunks.

A problem is bound to the whole sequence: its masks, scores and observations speak of all queries
and keys. Its arrays hold what a device has. Keys visit a piece at a time. For a chunk of queries
and one of the keys that visit, the arrays are cut, and what goes by indices is moved: that is a
problem of its own, which any backend can take.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._axes import Index, cut, cut_axis, put, put_axis
from jaxattn._band import Band
from jaxattn._lowering import platform
from jaxattn._mask import EVERYTHING, BoundMask
from jaxattn._observation import Moved as MovedObservation
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._score import MovedScore
from jaxattn._value import Shift, Span, Value, Zero, _build, _names, fields_of
from jaxattn.sharded.ways import Order

Given = tuple[Problem, Watch]
"""A problem and observations; or tangents of them, with `Zero` for none."""


class Tag(NamedTuple):
    """Where an array has queries and keys. t, s: the axes, from the end; None for none.

    t_whole, s_whole: whether it has those of all devices there. travels: whether it belongs to the
    keys, and goes with them.
    """

    t: int | None = None
    s: int | None = None
    t_whole: bool = False
    s_whole: bool = False

    @property
    def travels(self) -> bool:
        return self.s is not None and not self.s_whole


class Visit(NamedTuple):
    """Who visits: a piece of the keys of the device so many before, 0 for its own."""

    shift: Index
    piece: Index = 0


@dataclass(frozen=True)
class Layout:
    """How a sequence lies on the devices of a ring. t, s: queries and keys of one device. pieces:
    how many the keys of a device go round in, each with as much of every chunk. blocks: how many
    the queries of a chunk are taken in, so that what is made of them is small too."""

    axis: str
    devices: int
    order: Order
    t: int
    s: int
    pieces: int = 1
    blocks: int = 1

    @property
    def parts(self) -> int:
        return self.order.parts

    @property
    def chunks(self) -> int:
        return self.devices * self.parts

    @property
    def rows(self) -> int:
        """Queries of a block of a chunk."""
        return self.t // self.parts // self.blocks

    @property
    def keys(self) -> int:
        """Keys of a chunk in a piece."""
        return self.s // self.parts // self.pieces

    @property
    def pairs(self) -> int:
        """How many a visit has."""
        return self.parts**2 * self.blocks

    def tag(self, shape: tuple[int, ...], axes: str | None) -> Tag:
        """What an array is, whose last axes are these."""
        if axes is None:
            return Tag()
        size = {axis: shape[len(shape) - len(axes) + i] for i, axis in enumerate(axes)}
        at = {axis: i - len(axes) for i, axis in enumerate(axes) if size[axis] > 1}
        t, s = at.get("t"), at.get("s")
        t_whole = t is not None and size["t"] != self.t
        s_whole = s is not None and (t is not None or size["s"] != self.s)
        return Tag(t, s, t_whole, s_whole)

    def tags(self, given: Given) -> list[Tag]:
        """Of each array, in the order of `jax.tree.leaves`."""
        marked = each_array(given, lambda x, axes: _Marked(self.tag(x.shape, axes)))
        return [x.tag for x in jax.tree.leaves(marked)]

    def cut(self, x: Any, tag: Tag, pair: "Pair") -> Any:
        """The part of an array for a pair of chunks."""
        for axis, start, size in self._slices(tag, pair):
            x = cut_axis(x, start, size, axis % x.ndim)
        return x

    def add(self, x: Any, part: Any, tag: Tag, pair: "Pair") -> Any:
        """An array with `part` added to what `cut` gives of it."""
        starts: list[Index] = [0] * x.ndim
        for axis, start, _ in self._slices(tag, pair):
            starts[axis] = start
        return put(x, cut(x, starts, part.shape) + part, starts)

    def _slices(self, tag: Tag, pair: "Pair") -> list[tuple[int, Index, int]]:
        """(axis, start, size) of each axis along which an array is cut."""
        found: list[tuple[int, Index, int]] = []
        if tag.t is not None:
            first = pair.me * self.t if tag.t_whole else 0
            found.append((tag.t, first + pair.row * self.rows, self.rows))
        if tag.s is not None:
            start = pair.column * self.keys
            if tag.s_whole:
                start = start * self.pieces + pair.piece * self.keys + pair.owner * self.s
            found.append((tag.s, start, self.keys))
        return found

    def pair(self, visit: Visit, index: Index) -> "Pair":
        """The index-th pair of a visit. Asked inside `jax.shard_map`."""
        me = jax.lax.axis_index(self.axis)
        own = isinstance(visit.shift, int) and visit.shift == 0
        owner = me if own else (me - visit.shift) % self.devices
        row, column = index // self.parts, index % self.parts
        part, block = row // self.blocks, row % self.blocks
        chunk = lambda device, part: self.order.chunk(device, part, self.devices)
        q_chunk, k_chunk = chunk(me, part), chunk(owner, column)
        return Pair(me, owner, row, column, block, visit.piece, q_chunk, k_chunk)

    def start_of(self, pair: "Pair") -> Shift:
        """How far its first query and key are from those of the sequence."""
        q = (pair.q_chunk * self.blocks + pair.block) * self.rows
        return Shift(q, (pair.k_chunk * self.pieces + pair.piece) * self.keys)

    def piece_shape(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        """The shape of a piece of an array whose keys are on an axis, counted from the end."""
        axis %= len(shape)
        return *shape[:axis], shape[axis] // self.pieces, *shape[axis + 1 :]

    def whole_shape(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        """The inverse of `piece_shape`."""
        axis %= len(shape)
        return *shape[:axis], shape[axis] * self.pieces, *shape[axis + 1 :]

    def piece(self, x: Any, axis: int, i: Index) -> Any:
        """The i-th piece of such an array."""
        if self.pieces == 1:
            return x
        apart, at = self._apart(x, axis)
        return cut_axis(apart, i, 1, at).reshape(self.piece_shape(x.shape, axis))

    def put_piece(self, x: Any, piece: Any, axis: int, i: Index) -> Any:
        """Such an array with its i-th piece in place."""
        if self.pieces == 1:
            return piece
        apart, at = self._apart(x, axis)
        piece = piece.reshape(*apart.shape[:at], 1, *apart.shape[at + 1 :])
        return put_axis(apart, piece, i, at).reshape(x.shape)

    def _apart(self, x: Any, axis: int) -> tuple[Any, int]:
        """x with its axis of keys as chunks, pieces and their keys; and which axis is of pieces."""
        axis %= x.ndim
        shape = *x.shape[:axis], self.parts, self.pieces, self.keys, *x.shape[axis + 1 :]
        return x.reshape(shape), axis + 1


MOST, LEAST, LEAST_OF_CPU = 8, 8192, 512
"""The most pieces that a ring chooses, and their fewest keys: after each the results of a device's
queries are read and written once, which on an accelerator takes the time of about 500 keys."""
ROWS_OF_CPU = 512
"""Queries of a block, where the devices are one CPU."""


def layout_of(axis: str, devices: int, order: Order, t: int, s: int, pieces: int | None) -> Layout:
    """pieces: as a `Ring` has it."""
    rows, chunk, of_cpu = t // order.parts, s // order.parts, platform() == "cpu"
    least = LEAST_OF_CPU if of_cpu else LEAST
    fits = [i for i in range(1, MOST + 1) if chunk % i == 0 and s // i >= least]
    whole = rows if not of_cpu else min(rows, ROWS_OF_CPU)
    blocks = rows // max((n for n in range(1, whole + 1) if rows % n == 0), default=1)
    return Layout(axis, devices, order, t, s, pieces or max(fits, default=1), blocks)


class Pair(NamedTuple):
    """A block of a chunk of queries, and what visits of a chunk of keys.

    me, owner: the devices that have them. row, column: which of the device's blocks, and of what
    visits. block, piece: which of the chunks'. q_chunk, k_chunk: which of the sequence's chunks.
    """

    me: Index
    owner: Index
    row: Index
    column: Index
    block: Index
    piece: Index
    q_chunk: Index
    k_chunk: Index


class _Marked:
    def __init__(self, tag: Tag) -> None:
        self.tag = tag


def each_array(given: Given, change: Any) -> Given:
    """`given` with change(array, axes) for each array, axes as `_value.axes_of` says."""
    problem, watched = given
    plain = lambda x, axes: x if isinstance(x, Zero) else change(x, axes)

    def of(x: Any) -> Any:
        return x.each_array(change) if isinstance(x, Value) else plain(x, None)

    q, k, v = (plain(x, axes) for x, axes in zip(problem[:3], ("t..", "s..", "s.."), strict=True))
    is_one = lambda x: isinstance(x, Value | Zero)
    rule, watched = jax.tree.map(of, (problem.rule, watched), is_leaf=is_one)
    return problem._replace(q=q, k=k, v=v, rule=rule), watched


def moved(given: Given, by: Shift) -> Given:
    """`given`, cut, for indices that count from the first of the part."""
    problem, watched = given
    move = lambda x: x.moved(by) if isinstance(x, Value) else x
    is_value = lambda x: isinstance(x, Value)
    rule, watched = jax.tree.map(move, (problem.rule, watched), is_leaf=is_value)
    return problem._replace(rule=rule), watched


def align(like: Any, moving: Any) -> Any:
    """Tangents as a tree like that of what moves: numbers that became arrays have none."""
    if isinstance(moving, Zero) or moving is like:
        return moving
    if isinstance(like, Value):
        if type(like) is not type(moving):
            if not isinstance(like, MovedScore | MovedObservation):  # a mask in another's place
                return still(like)
            wrapped = "score" if isinstance(like, MovedScore) else "of"
            parts = {n: still(getattr(like, n)) for n in _names(like)}
            return _build(type(like), parts | {wrapped: align(getattr(like, wrapped), moving)})
        fields = map(align, fields_of(like), fields_of(moving))
        return _build(type(like), dict(zip(_names(like), fields, strict=True)))
    if isinstance(like, tuple):
        if len(like) != len(moving):
            return still(like)
        parts = map(align, like, moving)
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    if moving is None or isinstance(moving, int):
        return still(like)
    return moving


def still(tree: Any) -> Any:
    """A tree that does not move."""
    return jax.tree.map(lambda _: Zero(), tree)


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

    def at(self, pair: Pair) -> Any:
        """Which kind a pair is, of traced indices."""
        table = jnp.asarray(self.table)
        return table[*self._chunks(pair.q_chunk, pair.k_chunk), pair.block, pair.piece]

    def of_shift(self, layout: Layout, shift: int) -> np.ndarray:
        """The kinds of all devices' pairs, when they are visited from so far before:
        [device part part block piece]."""
        chunks = layout.order.table(layout.devices)
        return self.table[
            self._chunks(chunks[:, :, None], np.roll(chunks, shift, axis=0)[:, None, :])
        ]

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
        need = (i for i in range(1, layout.devices) if self.of_shift(layout, i).any())
        return (0, *need)


class _Hidden:
    def __repr__(self) -> str:
        return "HIDDEN"


HIDDEN: Any = _Hidden()


def _is_band(mask: BoundMask) -> bool:
    return mask is EVERYTHING or (isinstance(mask, Band) and not jax.tree.leaves(mask))

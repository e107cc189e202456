"""The parts of a problem that devices have, and those of a pair of chunks.

A problem is bound to the whole sequence: its masks, scores and observations speak of all queries
and keys. Its arrays hold what a device has. Keys visit a piece at a time. For a chunk of queries
and one of the keys that visit, the arrays are cut, and what goes by indices is moved: that is a
problem of its own, which any backend can take.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxattn._axes import Index, cut, cut_axis, put, put_axis
from jaxattn._lowering import platform
from jaxattn._observation import Moved as MovedObservation
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._score import MovedScore
from jaxattn._value import Shift, Value, Zero, _build, _names, fields_of
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
"""The most queries of a block, where the devices are one CPU; a quarter is the least."""


def layout_of(axis: str, devices: int, order: Order, t: int, s: int, pieces: int | None) -> Layout:
    """pieces: as a `Ring` has it."""
    rows, chunk, of_cpu = t // order.parts, s // order.parts, platform() == "cpu"
    least = LEAST_OF_CPU if of_cpu else LEAST
    fits = (i for i in range(1, MOST + 1) if chunk % i == 0 and s // i >= least)
    few = (n for n in range(max(ROWS_OF_CPU // 4, 1), ROWS_OF_CPU + 1) if rows % n == 0)
    blocks = rows // max(few, default=rows) if of_cpu and rows > ROWS_OF_CPU else 1
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

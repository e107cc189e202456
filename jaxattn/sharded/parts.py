"""The parts of a problem that devices have, and those of a pair of chunks.

A problem is bound to the whole sequence: its masks, scores and observations speak of all queries
and keys. Its arrays hold what a device has. For a chunk of queries and one of keys that visits, the
arrays are cut, and what goes by indices is moved: that is a problem of its own, which any backend
can take.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._axes import Index, cut_axis
from jaxattn._band import Band
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


@dataclass(frozen=True)
class Layout:
    """How a sequence lies on the devices of a ring. t, s: queries and keys of one device."""

    axis: str
    devices: int
    order: Order
    t: int
    s: int

    @property
    def parts(self) -> int:
        return self.order.parts

    @property
    def chunks(self) -> int:
        return self.devices * self.parts

    @property
    def rows(self) -> int:
        """Queries of a chunk."""
        return self.t // self.parts

    @property
    def keys(self) -> int:
        """Keys of a chunk."""
        return self.s // self.parts

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
        if tag.t is not None:
            start = pair.row * self.rows + (pair.me * self.t if tag.t_whole else 0)
            x = cut_axis(x, start, self.rows, tag.t % x.ndim)
        if tag.s is not None:
            start = pair.column * self.keys + (pair.owner * self.s if tag.s_whole else 0)
            x = cut_axis(x, start, self.keys, tag.s % x.ndim)
        return x

    def pair(self, shift: Any, index: Index) -> "Pair":
        """The index-th pair of chunks of a visit. Asked inside `jax.shard_map`."""
        me = jax.lax.axis_index(self.axis)
        own = isinstance(shift, int) and shift == 0
        owner = me if own else (me - shift) % self.devices
        row, column = index // self.parts, index % self.parts
        chunk = lambda device, part: self.order.chunk(device, part, self.devices)
        return Pair(me, owner, row, column, chunk(me, row), chunk(owner, column))


class Pair(NamedTuple):
    """A chunk of queries and one of keys. me, owner: the devices that have them. row, column: which
    of the device's chunks. q_chunk, k_chunk: which of the sequence's."""

    me: Index
    owner: Index
    row: Index
    column: Index
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
    """What the mask leaves of pairs of chunks, as far as it is known while tracing.

    kinds: masks that take the place of the moved one, `EVERYTHING` and a few bands; None for the
    moved mask itself, `HIDDEN` for nothing. table: which of these, by (chunk of queries, of keys);
    or by how far one is ahead of the other, where that says it all.
    """

    FEW = 1  # bands that are compiled apart
    MOST = 128  # chunks for which pairs are looked at one by one

    def __init__(self, mask: BoundMask, layout: Layout) -> None:
        n = layout.chunks
        self.kinds: list[Any] = [HIDDEN]
        self.by_distance = _is_band(mask) and layout.rows == layout.keys
        if self.by_distance:
            self.table = np.array([self._of_band(mask, d, layout) for d in range(1 - n, n)])
            if sum(isinstance(x, Band) for x in self.kinds) > self.FEW:
                other = [x for x in self.kinds if x is HIDDEN or x is EVERYTHING]
                new = [other.index(x) if x in other else len(other) for x in self.kinds]
                self.kinds, self.table = [*other, None], np.array(new)[self.table]
            return
        self.table = np.zeros((n, n), np.int32)
        for i in range(n):
            rows = Span(i * layout.rows, layout.rows)
            first, stop = mask.limits(rows, n * layout.keys)
            for j in range(first // layout.keys, min(-(-stop // layout.keys), n)):
                keys = Span(j * layout.keys, layout.keys)
                whole = n <= self.MOST and mask.covers(rows, keys)
                self.table[i, j] = self._kind(EVERYTHING if whole else None)

    def _of_band(self, mask: Any, ahead: int, layout: Layout) -> int:
        if mask is EVERYTHING:
            return self._kind(EVERYTHING)
        here, size = mask.moved(Shift(q=ahead * layout.rows)), layout.rows
        first, stop = here.needs(Span(0, size), size)
        if first >= stop:
            return 0
        return self._kind(EVERYTHING if here.covers(Span(0, size), Span(0, size)) else here)

    def _kind(self, kind: Any) -> int:
        if kind not in self.kinds:
            self.kinds.append(kind)
        return self.kinds.index(kind)

    def at(self, q_chunks: Any, k_chunks: Any) -> Any:
        """Which kinds, of NumPy arrays or of traced indices."""
        table = self.table if isinstance(q_chunks, np.ndarray) else jnp.asarray(self.table)
        if self.by_distance:
            return table[q_chunks - k_chunks + (len(self.table) - 1) // 2]
        return table[q_chunks, k_chunks]

    def of_shift(self, layout: Layout, shift: int) -> np.ndarray:
        """The kinds of all devices' pairs of chunks, when they are visited from so far before:
        [device part part]."""
        chunks = layout.order.table(layout.devices)
        return self.at(chunks[:, :, None], np.roll(chunks, shift, axis=0)[:, None, :])

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

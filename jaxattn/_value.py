"""Frozen values made of arrays with named axes: masks, scores, dropout. And what a tile reads.

A value is a dataclass and a pytree. Python integers in it belong to its structure: a new one
compiles anew. Arrays and floats in it are leaves: they may be traced, mapped and changed freely.
As a whole it may also be a static argument of `jax.jit`: it has equality and a hash by content.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, ClassVar, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxattn._axes import Index, count_to, cut, put
from jaxattn._content import as_int, hash_of, same, show
from jaxattn._lowering import replaced
from jaxattn._serial import register_value
from jaxattn._varying import NOWHERE, Axes


class Span(NamedTuple):
    """`size` queries or keys from `start` on, which is known to be a multiple of `step`."""

    start: Index
    size: int
    step: int = 1

    def starts_at_multiple_of(self, n: int) -> bool:
        """Whether that much is known while tracing."""
        return (self.start if isinstance(self.start, int) else self.step) % n == 0

    def moved(self, by: Index) -> "Span":
        """The same, so much further on."""
        if isinstance(by, int) and by == 0:
            return self
        step = math.gcd(self.step, by) if isinstance(by, int) else 1
        return Span(self.start + by, self.size, step)

    def indices(self) -> Int[Array, " size"]:
        return self.start + count_to(self.size)


class Sizes(NamedTuple):
    """The axes that a value has to fit.

    varying: the axes of a mesh over which all arrays of the call vary, inside `jax.shard_map`.
    held: how many of the t queries and s keys are here, where those of a sequence are shared out
      over devices; None for all.
    """

    batch: tuple[int, ...]
    h: int
    t: int
    s: int
    varying: Axes = NOWHERE
    held: tuple[int, int] | None = None

    def along(self, axis: str, size: int, queries: int = 1) -> int:
        """The size that an array's axis "h", "t" or "s" has to have. size: that it has.

        Of a shared sequence an array may hold the part that is here, or all. One with an axis of
        `queries` too has all keys.
        """
        if self.held is None or axis not in "ts" or (axis == "s" and queries > 1):
            return getattr(self, axis)
        here = self.held["ts".index(axis)]
        return here if size == here else getattr(self, axis)


class Shift(NamedTuple):
    """How far the first queries, keys, head and batch element of a part are from those of the
    whole. q, k, head: numbers, or arrays [*#b] as values have them; of a tile's part, scalars."""

    q: int | Int[Array, "*#b"] = 0
    k: int | Int[Array, "*#b"] = 0
    head: int | Int[Array, "*#b"] = 0
    batch: tuple[Index, ...] = ()


class Block(NamedTuple):
    """A block of the score matrices: `heads` = (kv, group) heads from `head` on, of `batches`
    elements of the flat batch from `batch` on; rows and keys."""

    sizes: Sizes
    batch: Index
    batches: int
    head: Index
    heads: tuple[int, int]
    rows: Span
    keys: Span


class Place(NamedTuple):
    """Where a tile of one head is, and which way it lies: [t s], or [s t] with `keys_first`.

    batch: an index for each batch axis.
    """

    batch: tuple[Index, ...]
    head: Index
    rows: Span
    keys: Span
    keys_first: bool = False

    def moved(self, by: "Shift") -> "Place":
        """Where the tile is in the whole, of which it is in a part."""
        pairs = zip(self.batch, by.batch or (0,) * len(self.batch), strict=True)
        batch = tuple(i + n for i, n in pairs)
        rows, keys = self.rows.moved(by.q), self.keys.moved(by.k)
        return self._replace(batch=batch, head=self.head + by.head, rows=rows, keys=keys)

    @property
    def q(self) -> Int[Array, "#t #s"]:
        """The indices of the queries, to broadcast over the tile."""
        return self.each_q(self.rows.indices())

    @property
    def k(self) -> Int[Array, "#t #s"]:
        """The indices of the keys, to broadcast over the tile."""
        return self.each_k(self.keys.indices())

    def each_q(self, x: Any) -> Array:
        """One number of each query, to broadcast over the tile."""
        return x[None, :] if self.keys_first else x[:, None]

    def each_k(self, x: Any) -> Array:
        """One number of each key, to broadcast over the tile."""
        return x[:, None] if self.keys_first else x[None, :]

    def pairs(self, x: Any) -> Array:
        """An array [t s], the way the tile lies."""
        return x.T if self.keys_first else x


class Zero:
    """Stands for an array of zeros: a tangent that is not there."""


jax.tree_util.register_pytree_node(Zero, lambda _: ((), None), lambda *_: Zero())


def push(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """The tangent of f(*primals) along trees of tangents, which have `Zero` for those of zeros."""
    leaves, structure = jax.tree.flatten(primals)
    dleaves = jax.tree.leaves(tangents, is_leaf=lambda x: isinstance(x, Zero))
    which = [i for i, dx in enumerate(dleaves) if not isinstance(dx, Zero)]

    def along(*some: Array) -> Any:
        return f(*jax.tree.unflatten(structure, replaced(leaves, which, some)))

    return jax.jvp(along, [leaves[i] for i in which], [dleaves[i] for i in which])[1]


class Fixed:
    """What belongs to a value's structure. Needs equality and a hash."""

    @property
    def in_structure(self) -> "Fixed":
        """What the structure holds of it; JAX keeps that."""
        return self


def _names(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)]


def _axes(value: Any) -> list[str | None]:
    """What `axes_of` says of each field."""
    written = {field.name: field.type for field in dataclasses.fields(value)}
    if any(isinstance(annotation, str) for annotation in written.values()):
        written = get_type_hints(type(value))
    return [axes_of(written[name]) for name in _names(value)]


def fields_of(value: Any) -> list[Any]:
    return [getattr(value, name) for name in _names(value)]


def _flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Children, and the structure: (x,) holds what is fixed, None stands for a child."""
    structure = tuple(map(_fix, fields_of(value)))
    pairs = zip(fields_of(value), structure, strict=True)
    return tuple(x for x, fixed in pairs if fixed is None), structure


def _fix(x: Any) -> tuple[Any] | None:
    if isinstance(x, Fixed):
        return (x.in_structure,)
    return (x,) if x is None or isinstance(x, int | Enum) else None


def _unflatten(cls: Any, structure: tuple[Any, ...], children: Any) -> Any:
    """The inverse of `_flatten`. Checks nothing: JAX puts objects of its own in a child's place."""
    rest = iter(children)
    fields = (next(rest) if fixed is None else fixed[0] for fixed in structure)
    return _build(cls, dict(zip(_names(cls), fields, strict=True)))


def _build(cls: Any, fields: dict[str, Any]) -> Any:
    value = object.__new__(cls)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return value


class Value:
    """Base of masks, scores, observations, dropout and positions: as given, and as bound to a call.

    What is given has a `resolve`, and what that makes of it is a value of another, private class,
    such as `BoundDense` of `Dense`: so the annotations are true of both. Only where they are true
    of it before and after, as of a value without arrays, it is one class.

    Equal to another of its class with the same content, and hashed so: see `same`. An array in it
    is not to be changed in place.

    An array of a bound value has the axes that its annotation names after those of the batch, *#b;
    see `axes_of`. One whose annotation names no batch is one for all heads and batch elements. All
    axes are there, some of them perhaps of size 1. The part that a tile needs is a value of the
    same class, with the axes of the tile.
    WHOLE names the fields for whole numbers: no boolean, fraction or word. A NumPy integer becomes
    a Python one in any field, for that belongs to the structure. A class with a `__post_init__` of
    its own calls this one.
    """

    WHOLE: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in _names(self):
            x = as_int(getattr(self, name))
            object.__setattr__(self, name, x)
            if name in self.WHOLE and isinstance(x, bool | float | complex | str | bytes):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a whole number, or an array of integers, got "
                    f"{x!r}; convert it: int(...)"
                )

    def __init_subclass__(cls) -> None:
        if "__eq__" not in vars(cls):  # else `dataclass` makes one, which compares arrays with ==
            cls.__eq__, cls.__hash__ = Value.__eq__, Value.__hash__
        jax.tree_util.register_pytree_node(
            cls, _flatten, lambda structure, children: _unflatten(cls, structure, children)
        )
        register_value(cls)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same(fields_of(self), fields_of(other))

    def __hash__(self) -> int:
        return hash((type(self), hash_of(fields_of(self))))

    def __repr__(self) -> str:
        """As it would be written, with arrays by dtype and shape."""
        fields = zip(_names(self), fields_of(self), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={show(x)}' for name, x in fields)})"

    def element(self, batch: tuple[Index, ...]) -> Any:
        """This value for one element of the batch."""

        def pick(array: Any, axes: str | None) -> Any:
            if axes is None:
                return array
            lead = array.ndim - len(axes)
            index = [0 if n == 1 else i for i, n in zip(batch, array.shape[:lead], strict=True)]
            starts = (*index, *(0,) * len(axes))
            part = cut(array, starts, (*(1,) * lead, *array.shape[lead:]))
            return part.reshape(array.shape[lead:])

        return self.each_array(pick)

    def read(self, block: Block) -> Any:
        """The part of this value that a block needs.

        Every array in it has leading axes [batches kv group], each of them full or of size 1. Heads
        are mapped over them, and see this value with the axes of one head's block.
        """
        return self.each_array(lambda array, axes: _read(array, axes, block))

    def add(self, block: Block, parts: Iterator[Array]) -> Any:
        """This value with the next of `parts` added to each array, in place, where `read` reads it.

        Each part has the shape that `read` gives. `Zero` stands for no array and takes none.
        """
        return self.each_array(lambda array, axes: _add(array, axes, block, next(parts)))

    def along_keys(self, cut: Any) -> Any:
        """This part with `cut(array, axis)` in place of each array that has an axis s."""

        def each(array: Any, axes: str | None) -> Any:
            core = (axes or "").replace("h", "")
            axis = 3 + core.find("s")
            return cut(array, axis) if "s" in core and array.shape[axis] > 1 else array

        return self.each_array(each)

    def moved(self, by: Shift) -> Any:
        """This value, for indices that count from the first of a part, of which it has the arrays.

        For a value that goes by no indices but those in the values in it.
        """

        def changed(x: Any) -> Any:
            if isinstance(x, Value):
                return x.moved(by)
            return tuple(map(changed, x)) if isinstance(x, tuple) else x

        parts = map(changed, fields_of(self))
        return _build(type(self), dict(zip(_names(self), parts, strict=True)))

    def each_array(self, change: Any) -> Any:
        """This value with change(array, axes) in place of each array; axes as `axes_of` says."""

        def changed(x: Any, axes: str | None) -> Any:
            if x is None or isinstance(x, int | Enum | Fixed | Zero):
                return x
            if isinstance(x, Value):
                return x.each_array(change)
            if isinstance(x, tuple):
                return tuple(changed(item, axes) for item in x)
            return change(x, axes)

        parts = map(changed, fields_of(self), _axes(self))
        return _build(type(self), dict(zip(_names(self), parts, strict=True)))


def axes_of(annotation: Any) -> str | None:
    """The axes after those of the batch: "ht." of `Float[Array, "*#b h #t x"] | None`.

    Of "h", "t", "s" and, for any other, which is read whole, "."; None where it names no batch.
    """
    for kind in (annotation, *get_args(annotation)):
        batch, *axes = getattr(kind, "dim_str", "").split() or [""]
        if batch == "*#b":
            return "".join(axis if axis in "hts" else "." for axis in (x.strip("#") for x in axes))
    return None


def _read(array: Any, axes: str | None, block: Block) -> Array:
    array = jnp.asarray(array)
    if axes is None:
        return array[None, None, None]
    whole, starts, sizes = _slice(array, axes, block)
    lead, heads, core = len(sizes) - len(axes), (1, 1), sizes[len(sizes) - len(axes) :]
    if axes.startswith("h"):
        heads, core = ((1, 1) if sizes[lead] == 1 else block.heads), sizes[lead + 1 :]
    return cut(whole, starts, sizes).reshape(-1, *heads, *core)


def _add(array: Array, axes: str | None, block: Block, part: Array) -> Array:
    """`array` with what `_read` gives of it, or what has its shape, added in place."""
    if axes is None:
        return array + part.reshape(array.shape)
    whole, starts, sizes = _slice(array, axes, block)
    if whole.size != array.size:  # some of several batch axes are shared
        spread = put(jnp.zeros_like(whole), part.reshape(sizes), starts)
        lead = array.ndim - len(axes)
        shared = [i for i, n in enumerate(array.shape[:lead]) if n == 1]
        spread = spread.reshape(*block.sizes.batch, *array.shape[lead:])
        return array + spread.sum(shared, keepdims=True)
    return put(whole, cut(whole, starts, sizes) + part.reshape(sizes), starts).reshape(array.shape)


def _slice(array: Array, axes: str, block: Block) -> tuple[Array, list[Index], list[int]]:
    """(the array with its batch axes as one where several elements are read, starts, sizes)."""
    lead, batch = array.ndim - len(axes), block.sizes.batch
    if block.batches == 1:
        index = unflatten_index(block.batch, batch)
        starts: list[Index] = [
            0 if n == 1 else i for i, n in zip(index, array.shape[:lead], strict=True)
        ]
        sizes = [1] * lead
    else:
        if any(n > 1 for n in array.shape[:lead]):
            array = jnp.broadcast_to(array, (*batch, *array.shape[lead:]))
        array = array.reshape(-1, *array.shape[lead:])
        starts = [0 if array.shape[0] == 1 else block.batch]
        sizes = [min(array.shape[0], block.batches)]
        lead = 1
    spans = {
        "t": block.rows,
        "s": block.keys,
        "h": Span(block.head, block.heads[0] * block.heads[1]),
    }
    for axis, n in zip(axes, array.shape[lead:], strict=True):
        span = spans.get(axis, Span(0, n))
        starts.append(0 if n == 1 else span.start)
        sizes.append(min(n, span.size))
    return array, starts, sizes


def unflatten_index(flat: Index, shape: tuple[int, ...]) -> tuple[Index, ...]:
    """The index along each axis of `shape` of the flat-th element."""
    index = []
    for size in reversed(shape):
        index.append(flat % size)
        flat = flat // size
    return tuple(reversed(index))

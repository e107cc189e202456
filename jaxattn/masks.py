"""Masks: which keys each query may see. Frozen values that combine with `&`.

A mask answers two questions about one head: which pairs of a tile are allowed (`allows`), and which
range of keys a block of queries can need (`needs`), so that tiles outside it are skipped rather than
computed and hidden. What is known while tracing (`limits`) also shapes the compiled program.

A mask is a pytree. Python numbers in it belong to its structure: a new number compiles anew. Arrays
in it are leaves: they may be traced, mapped and changed at no cost.
"""

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import Index


class Align(Enum):
    """Where the diagonal of a causal mask ends when there are more keys than queries, or fewer."""

    END = "the last query sees the last key"

    def __repr__(self) -> str:
        return self.name


END = Align.END
Offset: TypeAlias = int | Align | Int[Array, "*b"] | None


class Span(NamedTuple):
    """`size` consecutive positions from `start`."""

    start: Index
    size: int

    def positions(self) -> Int[Array, " size"]:
        return self.start + jnp.arange(self.size)


class Sizes(NamedTuple):
    """The axes that a mask has to fit."""

    batch: tuple[int, ...]
    h: int
    t: int
    s: int


class Mask:
    """The base of all masks; combine with `&`."""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(cls, _flatten, lambda aux, leaves: _build(cls, aux, leaves))

    def __and__(self, other: "Mask") -> "Mask":
        if not isinstance(other, Mask):
            raise TypeError(_not_a_mask(other))
        mine = self.masks if isinstance(self, And) else (self,)
        theirs = other.masks if isinstance(other, And) else (other,)
        return And(mine + theirs)

    def resolve(self, sizes: Sizes) -> "Mask":
        """This mask with every default made explicit, checked against the sizes it has to fit."""
        del sizes
        return self

    def head(self, batch: tuple[Index, ...], head: Index) -> "Mask":
        """The mask of one head of one batch element."""
        del batch, head
        return self

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"] | None:
        """Which pairs of one head's tile are allowed; None for all. May broadcast."""
        raise NotImplementedError

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        """A range [first, stop) of keys, known while tracing, outside which `rows` see nothing."""
        del rows
        return 0, s

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """The range [first, stop) of keys that `rows` of one head can need; may be traced."""
        raise NotImplementedError


def _flatten(mask: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Numbers and None are structure, all else is a leaf; `aux` holds None in a leaf's place."""
    values = [getattr(mask, field.name) for field in dataclasses.fields(mask)]
    fixed = [value is None or isinstance(value, int | Align) for value in values]
    leaves = tuple(value for value, still in zip(values, fixed, strict=True) if not still)
    aux = tuple((value,) if still else None for value, still in zip(values, fixed, strict=True))
    return leaves, aux


def _build(cls: Any, aux: tuple[Any, ...], leaves: Any) -> Any:
    """The inverse of `_flatten`. Skips `__post_init__`: leaves may be any object JAX puts there."""
    rest = iter(leaves)
    mask = object.__new__(cls)
    for field, fixed in zip(dataclasses.fields(cls), aux, strict=True):
        object.__setattr__(mask, field.name, next(rest) if fixed is None else fixed[0])
    return mask


@dataclass(frozen=True)
class Everything(Mask):
    """Every query sees every key."""

    def allows(self, rows: Span, keys: Span) -> None:
        return None

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        return 0, s


EVERYTHING = Everything()


@dataclass(frozen=True)
class Causal(Mask):
    """Query i sees key j when j <= i + offset.

    offset: 0 aligns the first query with the first key; `END` aligns the last with the last (s - t);
      an integer array of the batch's shape gives each sequence its own. May be left out when t == s.
    """

    offset: Offset = None

    def resolve(self, sizes: Sizes) -> "Causal":
        return Causal(_resolve_offset(self, self.offset, sizes))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Causal":
        return Causal(_pick(self.offset, 0, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"]:
        return keys.positions()[None, :] <= _places(rows, self.offset)[:, None]

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        return self.needs(rows, s) if _known(self.offset) else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Any, Any]:
        return 0, _clip(rows.start + rows.size + self.offset, s)


@dataclass(frozen=True)
class Window(Mask):
    """Query i sees keys i + offset - left to i + offset + right, both inclusive.

    left, right: in positions, at least 0; None for no bound on that side.
    offset: as in `Causal`.
    """

    left: int | None
    right: int | None = 0
    offset: Offset = None

    def __post_init__(self) -> None:
        for name, bound in (("left", self.left), ("right", self.right)):
            if bound is not None and (not isinstance(bound, int) or bound < 0):
                raise ValueError(
                    f"a window's bounds are whole numbers of positions, at least 0, or None for no "
                    f"bound; got {name}={bound!r}; to shift the window use offset"
                )

    def resolve(self, sizes: Sizes) -> "Window":
        return Window(self.left, self.right, _resolve_offset(self, self.offset, sizes))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Window":
        return Window(self.left, self.right, _pick(self.offset, 0, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"] | None:
        ahead_ts = keys.positions()[None, :] - _places(rows, self.offset)[:, None]
        right = None if self.right is None else ahead_ts <= self.right
        if self.left is None:
            return right
        left = -self.left <= ahead_ts
        return left if right is None else left & right

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        return self.needs(rows, s) if _known(self.offset) else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Any, Any]:
        first_row = rows.start + self.offset
        first = 0 if self.left is None else _clip(first_row - self.left, s)
        stop = s if self.right is None else _clip(first_row + rows.size + self.right, s)
        return first, stop


@dataclass(frozen=True, eq=False)
class Lengths(Mask):
    """The first `q` queries see the first `k` keys; None for all of them.

    q, k: numbers, or integer arrays that broadcast to the batch.
    """

    q: int | Int[Array, "*b"] | None = None
    k: int | Int[Array, "*b"] | None = None

    def resolve(self, sizes: Sizes) -> "Lengths":
        check = lambda value, name: _check_ids(value, f"Lengths.{name}", sizes.batch, ())
        return Lengths(check(self.q, "q"), check(self.k, "k"))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Lengths":
        return Lengths(_pick(self.q, 0, batch), _pick(self.k, 0, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"] | None:
        live_t1 = None if self.q is None else (rows.positions() < self.q)[:, None]
        live_1s = None if self.k is None else (keys.positions() < self.k)[None, :]
        if live_t1 is None:
            return live_1s
        return live_t1 if live_1s is None else live_t1 & live_1s

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        k = self.k if isinstance(self.k, int) else s
        dead = isinstance(self.q, int) and self.q <= rows.start
        return 0, 0 if dead else _clip(k, s)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        stop = s if self.k is None else _clip(self.k, s)
        if self.q is not None:
            stop = jnp.where(rows.start < self.q, stop, 0)
        return 0, stop


@dataclass(frozen=True, eq=False)
class Segments(Mask):
    """A query sees the keys of its own segment: those with the same id.

    q_ids, k_ids: integers; k_ids may be left out when queries and keys are the same tokens. A
      negative id marks padding, which sees nothing and is seen by nothing.
    """

    q_ids: Int[Array, "*b t"]
    k_ids: Int[Array, "*b s"] | None = None

    def resolve(self, sizes: Sizes) -> "Segments":
        if self.k_ids is None and sizes.t != sizes.s:
            raise ValueError(
                f"Segments needs ids for the keys when t != s, got t={sizes.t} and s={sizes.s} and "
                f"q_ids only; pass Segments(q_ids, k_ids)"
            )
        k_ids = self.q_ids if self.k_ids is None else self.k_ids
        return Segments(
            _check_ids(self.q_ids, "Segments.q_ids", sizes.batch, (sizes.t,)),
            _check_ids(k_ids, "Segments.k_ids", sizes.batch, (sizes.s,)),
        )

    def head(self, batch: tuple[Index, ...], head: Index) -> "Segments":
        return Segments(_pick(self.q_ids, 1, batch), _pick(self.k_ids, 1, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"]:
        q_ids, k_ids = _cut(self.q_ids, rows), _cut(self.k_ids, keys)
        return (q_ids[:, None] == k_ids[None, :]) & (k_ids >= 0)[None, :]

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        q_ids = _cut(self.q_ids, rows)
        least = jnp.min(q_ids, where=q_ids >= 0, initial=jnp.iinfo(q_ids.dtype).max)
        most = jnp.max(q_ids)
        near_s = (self.k_ids >= least) & (self.k_ids <= most)  # least >= 0: padding is never near
        key_s = jnp.arange(s)
        first = jnp.min(key_s, where=near_s, initial=s)
        stop = jnp.max(key_s, where=near_s, initial=-1) + 1
        return jnp.minimum(first, stop), stop


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any mask at all, as an array: True where the query may see the key.

    array: booleans that broadcast to [*b h t s].
    """

    array: Bool[Array, "*b #h #t #s"]

    def resolve(self, sizes: Sizes) -> "Dense":
        array = jnp.asarray(self.array)
        if array.dtype != bool:
            raise TypeError(
                f"a Dense mask holds booleans, True where a query may see a key, got "
                f"{array.dtype} {array.shape}; compare first (array != 0)"
            )
        full = (*sizes.batch, sizes.h, sizes.t, sizes.s)
        _check_broadcast("Dense", array.shape, full, "[*b h t s]")
        return Dense(array.reshape((1,) * (2 - array.ndim) + array.shape))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Dense":
        return Dense(_pick(self.array, 2, (*batch, head)))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "#t #s"]:
        t, s = self.array.shape
        starts = (rows.start if t > 1 else 0, keys.start if s > 1 else 0)
        return jax.lax.dynamic_slice(
            self.array, starts, (min(t, rows.size), min(s, keys.size))
        )

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        return 0, s


@dataclass(frozen=True, eq=False)
class And(Mask):
    """What every one of `masks` allows. Written `a & b`."""

    masks: tuple[Mask, ...]

    def resolve(self, sizes: Sizes) -> "And":
        return And(tuple(mask.resolve(sizes) for mask in self.masks))

    def head(self, batch: tuple[Index, ...], head: Index) -> "And":
        return And(tuple(mask.head(batch, head) for mask in self.masks))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"] | None:
        every = [mask.allows(rows, keys) for mask in self.masks]
        allowed = None
        for one in every:
            if one is not None:
                allowed = one if allowed is None else allowed & one
        return allowed

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        firsts, stops = zip(*(mask.limits(rows, s) for mask in self.masks), strict=True)
        stop = min(stops)
        return min(max(firsts), stop), stop

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first, stop = 0, s
        for mask in self.masks:
            its_first, its_stop = mask.needs(rows, s)
            first, stop = _larger(first, its_first), _smaller(stop, its_stop)
        return _smaller(first, stop), stop


def check_mask(mask: object) -> Mask:
    if not isinstance(mask, Mask):
        raise TypeError(_not_a_mask(mask))
    return mask


def _not_a_mask(value: object) -> str:
    if hasattr(value, "shape"):
        return (
            f"a mask is a value of jaxattn.masks, got an array of shape {value.shape}; "  # type: ignore
            f"wrap it: Dense(array), with booleans that are True where a query may see a key"
        )
    return (
        f"a mask is a value of jaxattn.masks such as Causal(), Window(left=128), Segments(ids) or "
        f"EVERYTHING, got {value!r}"
    )


def _resolve_offset(mask: Mask, offset: Offset, sizes: Sizes) -> int | Int[Array, "*b"]:
    name = type(mask).__name__
    if offset is None:
        if sizes.t != sizes.s:
            raise ValueError(
                f"{name} needs an offset when t != s, got t={sizes.t} queries and s={sizes.s} keys; "
                f"choose {name}(offset=0), where the first query meets the first key, or "
                f"{name}(offset=END), where the last query meets the last key"
            )
        return 0
    if offset is END:
        return sizes.s - sizes.t
    return _check_ids(offset, f"{name}.offset", sizes.batch, ())


def _check_ids(value: Any, name: str, batch: tuple[int, ...], core: tuple[int, ...]) -> Any:
    """`value` as integers that broadcast over the batch, with `core` as its last axes."""
    if value is None or (isinstance(value, int) and not core):
        return value
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} holds integers, got {array.dtype} {array.shape}; cast it first")
    if core and array.shape[-1:] != core:
        raise ValueError(
            f"{name} must have one id for each position, {core[0]} of them, on its last axis, got "
            f"shape {array.shape}; pass [*b {core[0]}]"
        )
    lead = array.shape[: array.ndim - len(core)]
    _check_broadcast(name, lead, batch, "the batch [*b]")
    return array


def _check_broadcast(
    name: str, shape: tuple[int, ...], full: tuple[int, ...], axes: str
) -> None:
    tail = full[len(full) - len(shape) :] if len(shape) <= len(full) else ()
    if len(shape) > len(full) or any(
        a not in (1, b) for a, b in zip(shape, tail, strict=True)
    ):
        raise ValueError(
            f"{name} must broadcast to {axes} = {list(full)}, got shape {shape}; give each axis its "
            f"full size or 1"
        )


def _pick(array: Any, core: int, index: tuple[Index, ...]) -> Any:
    """The part of `array` at `index` of its leading axes; axes of size 1 broadcast."""
    if array is None or isinstance(array, int) or array.ndim == core:
        return array
    lead = array.ndim - core
    index = index[len(index) - lead :]
    starts = [0 if size == 1 else i for size, i in zip(array.shape, index, strict=False)]
    kept = array.shape[lead:]
    part = jax.lax.dynamic_slice(array, (*starts, *(0,) * core), (*(1,) * lead, *kept))
    return part.reshape(kept)


def _cut(array: Any, span: Span) -> Any:
    return jax.lax.dynamic_slice_in_dim(array, span.start, span.size)


def _places(rows: Span, offset: Any) -> Int[Array, " t"]:
    """The place of each query among the keys."""
    return rows._replace(start=rows.start + offset).positions()


def _known(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


def _smaller(a: Any, b: Any) -> Any:
    return min(a, b) if _known(a, b) else jnp.minimum(a, b)


def _larger(a: Any, b: Any) -> Any:
    return max(a, b) if _known(a, b) else jnp.maximum(a, b)


def _clip(value: Any, s: int) -> Any:
    return _smaller(_larger(value, 0), s)

"""Masks: which keys each query may see. Frozen values that combine with `&`.

A mask answers two questions about one head: which pairs of a tile are allowed (`allows`), and which
range of keys a block of queries can need (`needs`), so that the tiles outside it are skipped, not
computed and hidden. What is known of that range while tracing (`limits`) shapes the program.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import Index, larger, smaller
from jaxattn._batched import check_broadcast, check_integers, pick
from jaxattn._mask import END, Align, And, Mask, Sizes, Span

__all__ = [
    "END",
    "EVERYTHING",
    "And",
    "Causal",
    "Dense",
    "Everything",
    "Lengths",
    "Mask",
    "Segments",
    "Window",
]

Offset: TypeAlias = int | Align | Int[Array, "*b"] | None


@dataclass(frozen=True, repr=False)
class Everything(Mask):
    """Every query sees every key."""

    def __repr__(self) -> str:
        return "EVERYTHING"

    def allows(self, rows: Span, keys: Span) -> None:
        return None


EVERYTHING = Everything()


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """Query i sees key j when j <= i + offset.

    offset: 0 aligns the first query with the first key; `END` aligns the last with the last, which
      is s - t; integers of the batch's shape give each sequence its own. May be left out if t == s.
    """

    offset: Offset = None

    def resolve(self, sizes: Sizes) -> "Causal":
        return Causal(_resolve_offset("Causal", self.offset, sizes))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Causal":
        return Causal(pick(self.offset, 0, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"]:
        return keys.positions()[None, :] <= _shifted(rows, self.offset).positions()[:, None]

    def limits(self, rows: Span, s: int) -> Any:
        return self.needs(rows, s) if isinstance(self.offset, int) else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        return 0, _clip(_shifted(rows, self.offset).start + rows.size, s)


@dataclass(frozen=True, repr=False)
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
                    f"bound, got {name}={bound!r}; to shift the window use offset"
                )

    def resolve(self, sizes: Sizes) -> "Window":
        return Window(self.left, self.right, _resolve_offset("Window", self.offset, sizes))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Window":
        return Window(self.left, self.right, pick(self.offset, 0, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"] | None:
        ahead_ts = keys.positions()[None, :] - _shifted(rows, self.offset).positions()[:, None]
        right = None if self.right is None else ahead_ts <= self.right
        left = None if self.left is None else -self.left <= ahead_ts
        return left if right is None else right if left is None else left & right

    def limits(self, rows: Span, s: int) -> Any:
        return self.needs(rows, s) if isinstance(self.offset, int) else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        start = _shifted(rows, self.offset).start
        first = 0 if self.left is None else _clip(start - self.left, s)
        return first, s if self.right is None else _clip(start + rows.size + self.right, s)


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """The first `q` queries see the first `k` keys; None for all of them.

    q, k: numbers, or integers that broadcast to the batch.
    """

    q: int | Int[Array, "*b"] | None = None
    k: int | Int[Array, "*b"] | None = None

    def resolve(self, sizes: Sizes) -> "Lengths":
        q = check_integers(self.q, "Lengths.q", sizes.batch)
        return Lengths(q, check_integers(self.k, "Lengths.k", sizes.batch))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Lengths":
        return Lengths(pick(self.q, 0, batch), pick(self.k, 0, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "#t #s"] | None:
        live_t1 = None if self.q is None else (rows.positions() < self.q)[:, None]
        live_1s = None if self.k is None else (keys.positions() < self.k)[None, :]
        return live_1s if live_t1 is None else live_t1 if live_1s is None else live_t1 & live_1s

    def limits(self, rows: Span, s: int) -> Any:
        if isinstance(self.q, int) and isinstance(rows.start, int) and self.q <= rows.start:
            return 0, 0
        return 0, _clip(self.k, s) if isinstance(self.k, int) else s

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        stop = s if self.k is None else _clip(self.k, s)
        return 0, stop if self.q is None else jnp.where(rows.start < self.q, stop, 0)


@dataclass(frozen=True, eq=False, repr=False)
class Segments(Mask):
    """A query sees the keys of its own segment: those with the same id.

    q_ids, k_ids: integers; k_ids may be left out where queries and keys are the same tokens. A
      negative id marks padding, which sees nothing and is seen by nothing.
    """

    q_ids: Int[Array, "*b t"]
    k_ids: Int[Array, "*b s"] | None = None

    def resolve(self, sizes: Sizes) -> "Segments":
        if self.k_ids is None and sizes.t != sizes.s:
            raise ValueError(
                f"Segments needs ids for the keys when t != s, got t={sizes.t}, s={sizes.s} and "
                f"q_ids only; pass Segments(q_ids, k_ids)"
            )
        q_ids = check_integers(self.q_ids, "Segments.q_ids", sizes.batch, (sizes.t,))
        if self.k_ids is None:
            return Segments(q_ids, q_ids)
        k_ids = check_integers(self.k_ids, "Segments.k_ids", sizes.batch, (sizes.s,))
        return Segments(q_ids, k_ids)

    def head(self, batch: tuple[Index, ...], head: Index) -> "Segments":
        return Segments(pick(self.q_ids, 1, batch), pick(self.k_ids, 1, batch))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "t s"]:
        q_ids, k_ids = _cut(self.q_ids, rows), _cut(self.k_ids, keys)
        return (q_ids[:, None] == k_ids[None, :]) & (k_ids >= 0)[None, :]

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """From the first to the last key whose id lies between the rows' least and greatest."""
        q_ids, k_ids = _cut(self.q_ids, rows), jnp.asarray(self.k_ids)
        least = jnp.min(q_ids, where=q_ids >= 0, initial=jnp.iinfo(q_ids.dtype).max)
        near_s = (k_ids >= least) & (k_ids <= jnp.max(q_ids))
        first = jnp.min(jnp.arange(s), where=near_s, initial=s)
        stop = jnp.max(jnp.arange(s), where=near_s, initial=-1) + 1
        return jnp.minimum(first, stop), stop


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """Any mask at all, as an array: True where the query may see the key.

    array: booleans that broadcast to [*b h t s].
    """

    array: Bool[Array, "*#b #h #t #s"]

    def resolve(self, sizes: Sizes) -> "Dense":
        array = jnp.asarray(self.array)
        if array.dtype != bool:
            raise TypeError(
                f"a Dense mask holds booleans, True where a query may see a key, got "
                f"{array.dtype} {array.shape}; compare first (array != 0)"
            )
        full = (*sizes.batch, sizes.h, sizes.t, sizes.s)
        check_broadcast(array.shape, "Dense", full, "[*b h t s]")
        return Dense(array.reshape((1,) * (2 - array.ndim) + array.shape))

    def head(self, batch: tuple[Index, ...], head: Index) -> "Dense":
        return Dense(pick(self.array, 2, (*batch, head)))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "#t #s"]:
        t, s = self.array.shape
        starts = (rows.start if t > 1 else 0, keys.start if s > 1 else 0)
        return jax.lax.dynamic_slice(self.array, starts, (min(t, rows.size), min(s, keys.size)))


def _resolve_offset(name: str, offset: Offset, sizes: Sizes) -> Any:
    if offset is END:
        return sizes.s - sizes.t
    if offset is None and sizes.t != sizes.s:
        raise ValueError(
            f"{name} needs an offset when t != s, got t={sizes.t} queries and s={sizes.s} keys; "
            f"choose offset=0, where the first query meets the first key, or offset=END, where the "
            f"last query meets the last key"
        )
    return check_integers(0 if offset is None else offset, f"{name}.offset", sizes.batch)


def _shifted(rows: Span, offset: Any) -> Span:
    """The places of the queries among the keys."""
    return Span(rows.start + offset, rows.size)


def _cut(array: Any, span: Span) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, span.start, span.size)


def _clip(value: Any, s: int) -> Index:
    return smaller(larger(value, 0), s)

"""Masks: which keys each query may see. Frozen values that combine with `&`, `|` and `~`.

A mask answers two questions about one head: which pairs of a tile are allowed (`allows`), and which
range of keys a block of queries can need (`needs`), so that the tiles outside it are skipped, not
computed and hidden. What is known of that range while tracing (`limits`) shapes the program. Where
the range may hold tiles without an allowed pair (it is not `exact`), those are found and skipped
too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Integer

from jaxattn._axes import INDEX, AnyArray, AnyInteger, Index, count_to, cut_axis, larger
from jaxattn._batched import (
    MOST,
    add_clipped,
    are_indices,
    as_indices,
    check_each,
    check_numbers,
    fit,
)
from jaxattn._mask import (
    EVERYTHING,
    And,
    Band,
    Everything,
    Mask,
    Not,
    Or,
    clip,
)
from jaxattn._offset import END, Offset, resolve_offset
from jaxattn._trace import At, Traced, trace
from jaxattn._value import Place, Sizes, Span, Value, as_array, is_whole

__all__ = [
    "END",
    "EVERYTHING",
    "And",
    "Causal",
    "Dense",
    "Everything",
    "Lengths",
    "Mask",
    "Not",
    "Or",
    "Positions",
    "PrefixLM",
    "Segments",
    "Where",
    "Window",
]


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """Query i sees key j when j <= i + offset.

    offset: 0 aligns the first query with the first key; `END` aligns the last with the last, which
      is s - t; integers of the batch's shape give each sequence its own, such as how many tokens of
      it are in a cache. May be left out if t == s.
    """

    WHOLE: ClassVar = ("offset",)

    offset: Offset = None

    def resolve(self, sizes: Sizes) -> Mask:
        offset = resolve_offset("Causal", self.offset, sizes)
        return Band(None, add_clipped(offset, 0, -sizes.t, sizes.s))


@dataclass(frozen=True, repr=False)
class Window(Mask):
    """Query i sees keys i + offset - left to i + offset + right, both inclusive.

    left, right: in positions, at least 0; None for no bound on that side.
    offset: as in `Causal`.
    """

    WHOLE: ClassVar = ("offset",)

    left: int | None
    right: int | None = 0
    offset: Offset = None

    def __post_init__(self) -> None:
        Value.__post_init__(self)
        for name, bound in (("left", self.left), ("right", self.right)):
            if bound is not None and (not is_whole(bound) or bound < 0):
                raise ValueError(
                    f"a window's bounds are whole numbers of positions, at least 0, or None for no "
                    f"bound, got {name}={bound!r}; to shift the window use offset"
                )

    def resolve(self, sizes: Sizes) -> Mask:
        offset = resolve_offset("Window", self.offset, sizes)
        bound = lambda shift: add_clipped(offset, shift, -sizes.t, sizes.s)
        low = None if self.left is None else bound(-self.left)
        return Band(low, None if self.right is None else bound(self.right))


@dataclass(frozen=True, eq=False, repr=False)
class PrefixLM(Mask):
    """Query i sees the first `length` keys, and every key j <= i + offset.

    length: how many keys all queries see, a number or integers that broadcast to the batch.
    offset: as in `Causal`.
    Source: Raffel et al. 2020, section 3.2.1.
    """

    AXES: ClassVar = {"length": "", "offset": ""}
    WHOLE: ClassVar = ("length", "offset")

    length: Integer[AnyInteger, "..."]
    offset: Offset = None

    def resolve(self, sizes: Sizes) -> Mask:
        if self.length is None:
            raise TypeError("PrefixLM.length is a number of keys, got None; pass 0 for no prefix")
        length = check_numbers(self.length, "PrefixLM.length", sizes, 0, sizes.s)
        offset = resolve_offset("PrefixLM", self.offset, sizes)
        return PrefixLM(length, add_clipped(offset, 0, -sizes.t, sizes.s))

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        return (place.k < self.length) | (place.k <= place.q + self.offset)

    def limits(self, rows: Span, s: int) -> Any:
        known = isinstance(self.length, int) and isinstance(self.offset, int)
        return self.needs(rows, s) if known else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        length: Any = self.length
        return 0, clip(larger(length, rows.start + rows.size + self.offset), s)

    @property
    def exact(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """The first `q` queries see the first `k` keys; None for all of them.

    q, k: numbers, or integers that broadcast to the batch.
    """

    AXES: ClassVar = {"q": "", "k": ""}
    WHOLE: ClassVar = ("q", "k")

    q: Integer[AnyInteger, "..."] | None = None
    k: Integer[AnyInteger, "..."] | None = None

    def resolve(self, sizes: Sizes) -> "Lengths":
        q = check_numbers(self.q, "Lengths.q", sizes, 0, sizes.t)
        return Lengths(q, check_numbers(self.k, "Lengths.k", sizes, 0, sizes.s))

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        q = None if self.q is None else place.q < self.q
        k = None if self.k is None else place.k < self.k
        return k if q is None else q if k is None else q & k

    def limits(self, rows: Span, s: int) -> Any:
        if isinstance(self.q, int) and isinstance(rows.start, int) and self.q <= rows.start:
            return 0, 0
        return 0, clip(self.k, s) if isinstance(self.k, int) else s

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        stop = s if self.k is None else clip(self.k, s)
        q: Any = self.q
        if q is None:
            return 0, stop
        if isinstance(q, int) and isinstance(rows.start, int):
            return 0, stop if rows.start < q else 0
        return 0, jnp.where(rows.start < q, stop, 0)

    @property
    def exact(self) -> bool:
        return True

    @property
    def same_for_rows(self) -> bool:
        return self.q is None


@dataclass(frozen=True, eq=False, repr=False)
class Segments(Mask):
    """A query sees the keys of its own segment: those with the same id.

    q_ids, k_ids: integers; k_ids may be left out where queries and keys are the same tokens. A
      negative id marks padding, which sees nothing and is seen by nothing.
    """

    AXES: ClassVar = {"q_ids": "t", "k_ids": "s"}

    q_ids: Integer[AnyArray, "*#b t"]
    k_ids: Integer[AnyArray, "*#b s"] | None = None

    def resolve(self, sizes: Sizes) -> "Segments":
        if self.k_ids is None and sizes.t != sizes.s:
            raise ValueError(
                f"Segments needs ids for the keys when t != s, got t={sizes.t}, s={sizes.s} and "
                f"q_ids only; pass Segments(q_ids, k_ids)"
            )
        q_ids = check_each(self.q_ids, "Segments.q_ids", sizes, "t")
        k_ids = self.q_ids if self.k_ids is None else self.k_ids
        return Segments(*_as_ids(q_ids, check_each(k_ids, "Segments.k_ids", sizes, "s")))

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        q, k = place.each_q(self.q_ids), place.each_k(self.k_ids)
        return (q == k) & (q >= 0)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """From the first to the last key with an id between the least and the greatest of rows."""
        live = lambda ids: ids >= 0
        ids = cut_axis(jnp.asarray(self.q_ids), rows.start, rows.size)
        least = jnp.min(ids, where=live(ids), initial=jnp.iinfo(ids.dtype).max)
        k_ids = jnp.asarray(self.k_ids)
        return _ends(live(k_ids) & (least <= k_ids) & (k_ids <= jnp.max(ids)), s)


@dataclass(frozen=True, eq=False, repr=False)
class Positions(Mask):
    """A query at position p sees the keys at positions p - left to p + right, both inclusive.

    `Causal` and `Window` for tokens that are not stored in order, or not from the start on, such as
    in a ring buffer.

    q, k: the positions of queries and keys. A negative one marks an empty place, which sees nothing
      and is seen by nothing.
    left, right: in positions, at least 0; None for no bound on that side. The defaults are causal.
    """

    AXES: ClassVar = {"q": "t", "k": "s"}

    q: Integer[AnyArray, "*#b t"]
    k: Integer[AnyArray, "*#b s"]
    left: int | None = None
    right: int | None = 0

    __post_init__ = Window.__post_init__

    def resolve(self, sizes: Sizes) -> "Positions":
        q = check_each(self.q, "Positions.q", sizes, "t")
        k = check_each(self.k, "Positions.k", sizes, "s")
        for name, array in (("q", q), ("k", k)):
            if isinstance(array, np.ndarray) and not are_indices(array):
                raise ValueError(
                    f"positions are below 2**31, got Positions.{name} from {array.min()} to "
                    f"{array.max()}; subtract what q and k have in common"
                )
        bound = lambda n: None if n is None else min(n, MOST)
        return Positions(as_indices(q), as_indices(k), bound(self.left), bound(self.right))

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        q, k = place.each_q(self.q), place.each_k(self.k)
        seen = (q >= 0) & (k >= 0)
        if self.right is not None:
            seen &= k - q <= self.right
        return seen if self.left is None else seen & (q - k <= self.left)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """From the first to the last key that is near enough to any of the rows."""
        q = cut_axis(jnp.asarray(self.q), rows.start, rows.size)
        near = (self.k >= 0) & (q >= 0).any()
        if self.right is not None:
            near &= self.k - jnp.max(q) <= self.right
        if self.left is not None:
            first = jnp.min(q, where=q >= 0, initial=jnp.iinfo(q.dtype).max)
            near &= first - self.k <= self.left
        return _ends(near, s)


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """Any mask at all, as an array: True where the query may see the key.

    array: booleans that broadcast to [*b h t s].
    """

    AXES: ClassVar = {"array": "hts"}

    array: Bool[AnyArray, "..."]

    def resolve(self, sizes: Sizes) -> "Dense":
        array = as_array(self.array, "Dense.array")
        if array.dtype != bool:
            raise TypeError(
                f"a Dense mask holds booleans, True where a query may see a key, got "
                f"{array.dtype} {array.shape}; compare first (array != 0)"
            )
        return Dense(fit(array, "Dense", sizes, "hts"))

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        return place.pairs(self.array)

    @property
    def by_head(self) -> bool:
        return self.array.shape[-3] > 1


@dataclass(frozen=True, eq=False, repr=False)
class Where(Mask):
    """Any mask at all, as a function of one pair: `Where(lambda at: at.k % 8 == at.q % 8)`.

    seen: given `at`, with `at.batch`, `at.head`, `at.q` and `at.k`, says whether the query may see
      the key. Written for one pair: `at.q` and `at.k` are integer scalars. It may close over
      arrays, also traced ones, and index them with these. Outside `jit` each new function
      compiles anew.
    """

    seen: Callable[[At], ArrayLike] | Traced
    captured: tuple[Array, ...] = ()

    def resolve(self, sizes: Sizes) -> "Where":
        seen: Any = self.seen
        if not callable(seen):
            raise TypeError(
                f"Where takes a function of one pair, got {seen!r}; wrap arrays in Dense(array)"
            )
        traced, captured, result = trace(seen, sizes, what="the function of a Where")
        if result.dtype != bool:
            raise TypeError(
                f"the function of a Where returns a boolean, True where the query may see the key, "
                f"got {result.dtype}; compare first (x != 0)"
            )
        return Where(traced, captured)

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        seen: Any = self.seen
        return seen.over(place, self.captured)

    @property
    def by_head(self) -> bool:
        seen: Any = self.seen
        return seen.reads_head


def _as_ids(q_ids: Any, k_ids: Any) -> tuple[Array, Array]:
    """Ids of any integer dtype as indices: equal where they were, negative where they were."""
    if are_indices(q_ids) and are_indices(k_ids):
        return as_indices(q_ids), as_indices(k_ids)
    xp: Any = np if isinstance(q_ids, np.ndarray) and isinstance(k_ids, np.ndarray) else jnp
    ids = [xp.asarray(x) for x in (q_ids, k_ids)]
    widest = np.dtype(f"uint{8 * max(x.dtype.itemsize for x in ids)}")
    at_least_0 = [xp.where(x < 0, 0, x).astype(widest) for x in ids]
    in_order = xp.sort(xp.concatenate([x.reshape(-1) for x in at_least_0]))
    ranks = (xp.searchsorted(in_order, x).astype(INDEX) for x in at_least_0)
    q_ids, k_ids = (jnp.asarray(xp.where(x < 0, -1, n)) for x, n in zip(ids, ranks, strict=True))
    return q_ids, k_ids


def _ends(near_s: AnyArray, s: int) -> tuple[Index, Index]:
    """The range from the first to the last True."""
    first = jnp.min(count_to(s), where=near_s, initial=s)
    stop = jnp.max(count_to(s), where=near_s, initial=-1) + 1
    return jnp.minimum(first, stop), stop

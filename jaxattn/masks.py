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
from jaxtyping import Array, ArrayLike, Bool, Int, Integer

from jaxattn._axes import INDEX, AnyArray, AnyInteger, Index, clip, cut_axis, larger, true_range
from jaxattn._band import Near, band
from jaxattn._batched import (
    add_clipped,
    are_indices,
    as_indices,
    check_each,
    check_numbers,
    fit,
)
from jaxattn._content import as_array, is_whole, show
from jaxattn._mask import (
    EVERYTHING,
    And,
    BoundMask,
    BoundOr,
    Everything,
    Mask,
    Not,
    Or,
)
from jaxattn._trace import At, Traced, trace
from jaxattn._value import Place, Shift, Span, Value
from jaxattn.positions import FARTHEST, Frame

__all__ = [
    "EVERYTHING",
    "And",
    "BoundMask",
    "Causal",
    "Dense",
    "Everything",
    "Lengths",
    "Mask",
    "Not",
    "Or",
    "PrefixLM",
    "Segments",
    "Where",
    "Window",
]


@dataclass(frozen=True, repr=False)
class Causal(Mask):
    """A query sees the keys at its own position and before; with `offset`, up to so many after.

    offset: a whole number of positions. For queries that begin further on, give the call
      `positions`.
    """

    offset: int | np.integer = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shift("Causal", self.offset)

    def resolve(self, frame: Frame) -> BoundMask:
        return band(frame.where("Causal"), None, int(self.offset), frame)


@dataclass(frozen=True, repr=False)
class Window(Mask):
    """A query at position p sees the keys at p + offset - left to p + offset + right, both
    inclusive.

    left, right: in positions, at least 0; None for no bound on that side.
    offset: as in `Causal`.
    """

    left: int | None
    right: int | None = 0
    offset: int | np.integer = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shift("Window", self.offset)
        for name, bound in (("left", self.left), ("right", self.right)):
            if bound is not None and (not is_whole(bound) or bound < 0):
                raise ValueError(
                    f"a window's bounds are whole numbers of positions, at least 0, or None for no "
                    f"bound, got {name}={bound!r}; to shift the window use offset"
                )

    def resolve(self, frame: Frame) -> BoundMask:
        offset = int(self.offset)
        low = None if self.left is None else offset - self.left
        high = None if self.right is None else offset + self.right
        return band(frame.where("Window"), low, high, frame)


def _check_shift(name: str, offset: Any) -> None:
    if not is_whole(offset):
        raise TypeError(
            f"{name}.offset is a whole number, got {show(offset)}; where the queries of each "
            f"sequence are, and END, go into attend(..., positions=Positions(q=..., k=...))"
        )


@dataclass(frozen=True, eq=False, repr=False)
class PrefixLM(Mask):
    """A query sees the keys at positions below `length`, and those at its own and before.

    length: a number, or integers that broadcast to the batch.
    Source: Raffel et al. 2020, section 3.2.1.
    """

    WHOLE: ClassVar = ("length",)

    length: Integer[AnyInteger, "..."]

    def resolve(self, frame: Frame) -> BoundMask:
        if self.length is None:
            raise TypeError("PrefixLM.length is a number of keys, got None; pass 0 for no prefix")
        positions, most = frame.where("PrefixLM"), FARTHEST + 1
        length = check_numbers(self.length, "PrefixLM.length", frame.sizes, -most, most)
        if positions.k_each is not None:
            below = fit(jnp.asarray(length, INDEX)[..., None], "length", frame.sizes, "t")
            near = Near(below, positions.k_each, None, -1)
            return BoundOr((near, band(positions, None, 0, frame)))
        keys = add_clipped(length - positions.k_start, 0, 0, frame.s)
        return Prefix(keys, add_clipped(positions.ahead, 0, -frame.t, frame.s))


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(BoundMask):
    """The i-th query sees the first `keys` keys, and those up to i + high: a `PrefixLM` where
    positions count up."""

    keys: int | Int[Array, "*#b"]
    high: int | Int[Array, "*#b"]

    def moved(self, by: Shift) -> "Prefix":
        return Prefix(self.keys - by.k, self.high + (by.q - by.k))

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        return (place.k < self.keys) | (place.k <= place.q + self.high)

    def limits(self, rows: Span, s: int) -> Any:
        known = isinstance(self.keys, int) and isinstance(self.high, int)
        return self.needs(rows, s) if known else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        return 0, clip(larger(self.keys, rows.start + rows.size + self.high), s)

    def covers(self, rows: Span, keys: Span) -> bool:
        known = (self.keys, self.high, rows.start, keys.start)
        if not all(isinstance(x, int) for x in known):
            return False
        last = keys.start + keys.size - 1
        return bool(last < self.keys or last <= rows.start + self.high)

    @property
    def exact(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """The first `q` queries see the first `k` keys; None for all of them.

    q, k: numbers, or integers that broadcast to the batch.
    """

    WHOLE: ClassVar = ("q", "k")

    q: Integer[AnyInteger, "..."] | None = None
    k: Integer[AnyInteger, "..."] | None = None

    def resolve(self, frame: Frame) -> "BoundLengths":
        q = check_numbers(self.q, "Lengths.q", frame.sizes, 0, frame.t)
        return BoundLengths(q, check_numbers(self.k, "Lengths.k", frame.sizes, 0, frame.s))


@dataclass(frozen=True, eq=False, repr=False)
class BoundLengths(BoundMask):
    """`Lengths` of a call's batch."""

    q: int | Int[Array, "*#b"] | None
    k: int | Int[Array, "*#b"] | None

    def moved(self, by: Shift) -> "BoundLengths":
        q, k = self.q, self.k
        return BoundLengths(None if q is None else q - by.q, None if k is None else k - by.k)

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

    def covers(self, rows: Span, keys: Span) -> bool:
        return _within(rows, self.q) and _within(keys, self.k)

    @property
    def exact(self) -> bool:
        return True

    @property
    def same_for_rows(self) -> bool:
        return self.q is None


def _within(span: Span, length: int | Array | None) -> bool:
    """Whether the span is known to end within a length; None for no end."""
    if length is None:
        return True
    known = isinstance(length, int) and isinstance(span.start, int)
    return known and bool(span.start + span.size <= length)


@dataclass(frozen=True, eq=False, repr=False)
class Segments(Mask):
    """A query sees the keys of its own segment: those with the same id.

    q_ids, k_ids: integers; k_ids may be left out where queries and keys are the same tokens. A
      negative id marks padding, which sees nothing and is seen by nothing.
    """

    q_ids: Integer[AnyArray, "*#b t"]
    k_ids: Integer[AnyArray, "*#b s"] | None = None

    def resolve(self, frame: Frame) -> "BoundSegments":
        if self.k_ids is None and frame.t != frame.s:
            raise ValueError(
                f"Segments needs ids for the keys when t != s, got t={frame.t}, s={frame.s} and "
                f"q_ids only; pass Segments(q_ids, k_ids)"
            )
        q_ids = check_each(self.q_ids, "Segments.q_ids", frame.sizes, "t")
        k_ids = self.q_ids if self.k_ids is None else self.k_ids
        k_ids = check_each(k_ids, "Segments.k_ids", frame.sizes, "s")
        return BoundSegments(*_as_ids(q_ids, k_ids))


@dataclass(frozen=True, eq=False, repr=False)
class BoundSegments(BoundMask):
    """`Segments` with ids of their own for the keys, all of them indices."""

    q_ids: Int[Array, "*#b t"]
    k_ids: Int[Array, "*#b s"]

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        q, k = place.each_q(self.q_ids), place.each_k(self.k_ids)
        return (q == k) & (q >= 0)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """From the first to the last key with an id between the least and the greatest of rows."""
        live = lambda ids: ids >= 0
        ids, k_ids = cut_axis(self.q_ids, rows.start, rows.size), self.k_ids
        least = jnp.min(ids, where=live(ids), initial=jnp.iinfo(ids.dtype).max)
        return true_range(live(k_ids) & (least <= k_ids) & (k_ids <= jnp.max(ids)), s)


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """Any mask at all, as an array: True where the query may see the key.

    array: booleans that broadcast to [*b h t s].
    """

    array: Bool[AnyArray, "..."]

    def resolve(self, frame: Frame) -> "BoundDense":
        array = as_array(self.array, "Dense.array")
        if array.dtype != bool:
            raise TypeError(
                f"a Dense mask holds booleans, True where a query may see a key, got "
                f"{array.dtype} {array.shape}; compare first (array != 0)"
            )
        return BoundDense(fit(array, "Dense", frame.sizes, "hts"))


@dataclass(frozen=True, eq=False, repr=False)
class BoundDense(BoundMask):
    """A `Dense` with all of its axes."""

    array: Bool[Array, "*#b #h #t #s"]

    moved = Value.moved

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

    seen: Callable[[At], ArrayLike]

    def resolve(self, frame: Frame) -> "BoundWhere":
        seen: Any = self.seen
        if not callable(seen):
            raise TypeError(
                f"Where takes a function of one pair, got {seen!r}; wrap arrays in Dense(array)"
            )

        def check(result: Any) -> None:
            if result.dtype != bool:
                raise TypeError(
                    f"the function of a Where returns a boolean, True where the query may see the "
                    f"key, got {result.dtype}; compare first (x != 0)"
                )

        return BoundWhere(trace(seen, frame, what="the function of a Where", check=check))


@dataclass(frozen=True, eq=False, repr=False)
class BoundWhere(BoundMask):
    """A `Where` that is traced."""

    seen: Traced

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "a b"]:
        return self.seen.over(place)

    @property
    def by_head(self) -> bool:
        return self.seen.program.reads_head


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

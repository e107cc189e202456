"""The mask algebra: what a mask has to answer, and how masks combine."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import INDEX, Index, count_to, cut_axis, larger, smaller
from jaxattn._batched import add_clipped
from jaxattn._content import show
from jaxattn._value import Place, Shift, Span, Value
from jaxattn.positions import TOO_FAR, BoundPositions, Frame


class Mask(Value):
    """Which keys each query may see, as it is given. Masks combine with `&`, `|` and `~`."""

    def __and__(self, other: "Mask") -> "Mask":
        return And(_parts(And, self) + _parts(And, check_mask(other)))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(_parts(Or, self) + _parts(Or, check_mask(other)))

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"masks combine with & | and ~, got one where Python asks whether it is true: {self!r} "
            f"in `and`, `or`, `not` or `if`; write a & b, a | b or ~a, or `mask is None`"
        )

    def resolve(self, frame: Frame) -> "BoundMask":
        """This mask with every default made explicit, checked against the axes it has to fit."""
        raise NotImplementedError(f"{type(self).__name__}.resolve")


class BoundMask(Mask):
    """A mask bound to a call, as backends ask it. One that needs no call for that may be given."""

    def resolve(self, frame: Frame) -> "BoundMask":
        del frame
        return self

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        """Which pairs of a tile are allowed, as the tile lies; None for all. Asked of its part."""
        raise NotImplementedError(f"{type(self).__name__}.allows")

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        """A range [first, stop) of keys, known while tracing, outside which `rows` see nothing."""
        del rows
        return 0, s

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """The range [first, stop) of keys that `rows` can need; may be traced.

        Asked of one element of the batch.
        """
        return self.limits(rows, s)

    def covers(self, rows: Span, keys: Span) -> bool:
        """Whether every pair of a tile is known, while tracing, to be allowed."""
        del rows, keys
        return False

    def count(self, place: Place) -> Int[Array, " s"] | None:
        """How many queries of a tile see each of its keys; None where only `allows` can tell."""
        del place
        return None

    def moved(self, by: Shift) -> "BoundMask":
        """As `Value.moved`, whatever indices `allows` asks for; then nothing is known of the range
        that is needed."""
        return MovedMask(Value.moved(self, by), *by)

    @property
    def exact(self) -> bool:
        """Whether the rows of a block, together, see every key of the range that `needs` gives."""
        return False

    @property
    def is_known(self) -> bool:
        """Whether it is known, while tracing, which tiles are needed."""
        return self.exact and not jax.tree.leaves(self)

    @property
    def same_for_rows(self) -> bool:
        """Whether every query sees the same keys."""
        return False

    @property
    def by_head(self) -> bool:
        """Whether heads may differ."""
        return False


@dataclass(frozen=True, eq=False, repr=False)
class MovedMask(BoundMask):
    """A mask of which this is a part, so far from the first of the whole."""

    mask: BoundMask
    q: int | Int[Array, "*#b"]
    k: int | Int[Array, "*#b"]
    head: int | Int[Array, "*#b"]
    batch: tuple[int | Int[Array, ""], ...]

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        return self.mask.allows(place.moved(Shift(self.q, self.k, self.head, self.batch)))

    moved = Value.moved

    @property
    def by_head(self) -> bool:
        return self.mask.by_head


def _parts(cls: Any, mask: Any) -> tuple[Any, ...]:
    return mask.masks if isinstance(mask, cls) else (mask,)


@dataclass(frozen=True, eq=False, repr=False)
class And(Mask):
    """What every one of `masks` allows. Written `a & b`."""

    masks: tuple[Mask, ...]

    def __repr__(self) -> str:
        return " & ".join(
            f"({mask!r})" if isinstance(mask, Or) else repr(mask) for mask in self.masks
        )

    def resolve(self, frame: Frame) -> BoundMask:
        """Flat, with all its bands as one."""
        resolved = [part for mask in self.masks for part in _parts(BoundAnd, mask.resolve(frame))]
        bands = [mask for mask in resolved if isinstance(mask, Band | Near)]
        masks = [*functools.reduce(_met, bands, ())]
        masks += [mask for mask in resolved if not isinstance(mask, Band | Near | Everything)]
        return BoundAnd(tuple(masks)) if len(masks) > 1 else masks[0] if masks else EVERYTHING


@dataclass(frozen=True, eq=False, repr=False)
class BoundAnd(BoundMask):
    """An `And` of several."""

    masks: tuple[BoundMask, ...]

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        every = None
        for mask in self.masks:
            allowed = mask.allows(place)
            if allowed is not None:
                every = allowed if every is None else every & allowed
        return every

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        firsts, stops = zip(*(mask.limits(rows, s) for mask in self.masks), strict=True)
        return min(max(firsts), min(stops)), min(stops)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first, stop = 0, s
        for mask in self.masks:
            its_first, its_stop = mask.needs(rows, s)
            first, stop = larger(first, its_first), smaller(stop, its_stop)
        return smaller(first, stop), stop

    def covers(self, rows: Span, keys: Span) -> bool:
        return all(mask.covers(rows, keys) for mask in self.masks)

    @property
    def by_head(self) -> bool:
        return any(mask.by_head for mask in self.masks)

    @property
    def exact(self) -> bool:
        """A band cut at one key for all rows is one; two other rules may pass by each other."""
        return sum(not mask.same_for_rows for mask in self.masks) <= 1 and all(
            mask.exact for mask in self.masks
        )


@dataclass(frozen=True, eq=False, repr=False)
class Or(Mask):
    """What any one of `masks` allows. Written `a | b`."""

    masks: tuple[Mask, ...]

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.masks))

    def resolve(self, frame: Frame) -> BoundMask:
        masks = [part for mask in self.masks for part in _parts(BoundOr, mask.resolve(frame))]
        some = any(isinstance(mask, Everything) for mask in masks)
        return EVERYTHING if some else BoundOr(tuple(masks))


@dataclass(frozen=True, eq=False, repr=False)
class BoundOr(BoundMask):
    """An `Or` in which no mask allows everything."""

    masks: tuple[BoundMask, ...]

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        some = None
        for mask in self.masks:
            allowed = mask.allows(place)
            if allowed is None:
                return None
            some = allowed if some is None else some | allowed
        return some

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        ranges = [mask.limits(rows, s) for mask in self.masks]
        ranges = [(first, stop) for first, stop in ranges if first < stop] or [(0, 0)]
        return min(first for first, _ in ranges), max(stop for _, stop in ranges)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first, stop = s, 0
        for mask in self.masks:
            its_first, its_stop = mask.needs(rows, s)
            is_known = isinstance(its_first, int) and isinstance(its_stop, int)
            if is_known and its_first >= its_stop:
                continue
            if not is_known:  # an empty range has no place
                its_first = jnp.where(its_first < its_stop, its_first, s)
            first, stop = smaller(first, its_first), larger(stop, its_stop)
        return smaller(first, stop), stop

    def covers(self, rows: Span, keys: Span) -> bool:
        return any(mask.covers(rows, keys) for mask in self.masks)

    @property
    def by_head(self) -> bool:
        return any(mask.by_head for mask in self.masks)


@dataclass(frozen=True, eq=False, repr=False)
class Not(Mask):
    """What `mask` does not allow. Written `~a`."""

    mask: Mask

    def __repr__(self) -> str:
        return f"~({self.mask!r})" if isinstance(self.mask, And | Or) else f"~{self.mask!r}"

    def resolve(self, frame: Frame) -> BoundMask:
        mask = self.mask.resolve(frame)
        return mask.mask if isinstance(mask, BoundNot) else BoundNot(mask)


@dataclass(frozen=True, eq=False, repr=False)
class BoundNot(BoundMask):
    """A `Not` of what is none."""

    mask: BoundMask

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        allowed = self.mask.allows(place)
        # Mosaic's `not` knows no booleans.
        return jnp.zeros((1, 1), bool) if allowed is None else allowed ^ True

    @property
    def by_head(self) -> bool:
        return self.mask.by_head


@dataclass(frozen=True, repr=False)
class Everything(BoundMask):
    """Every query sees every key."""

    def __repr__(self) -> str:
        return "EVERYTHING"

    moved = Value.moved

    def allows(self, place: Place) -> None:
        return None

    def covers(self, rows: Span, keys: Span) -> bool:
        return True

    def count(self, place: Place) -> Int[Array, " s"]:
        return jnp.full(place.keys.size, place.rows.size, INDEX)

    @property
    def exact(self) -> bool:
        return True


EVERYTHING = Everything()


@dataclass(frozen=True, eq=False, repr=False)
class Band(BoundMask):
    """The i-th query sees the keys i + low to i + high, both inclusive; None for no bound on that
    side. What `Causal` and `Window` are where positions count up."""

    low: int | Int[Array, "*#b"] | None
    high: int | Int[Array, "*#b"] | None

    def moved(self, by: Shift) -> "Band":
        bound = lambda n: None if n is None else n + (by.q - by.k)
        return Band(bound(self.low), bound(self.high))

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        ahead = place.k - place.q
        high = None if self.high is None else ahead <= self.high
        low = None if self.low is None else self.low <= ahead
        return low if high is None else high if low is None else low & high

    def count(self, place: Place) -> Int[Array, " s"]:
        keys, first, last = place.keys.indices(), place.rows.start, place.rows.start
        last = last + place.rows.size - 1
        from_, to = first, last
        if self.high is not None:
            from_ = jnp.maximum(keys - self.high, first)
        if self.low is not None:
            to = jnp.minimum(keys - self.low, last)
        return jnp.broadcast_to(jnp.maximum(to - from_ + 1, 0), keys.shape)

    def limits(self, rows: Span, s: int) -> Any:
        return self.needs(rows, s) if self._is_known else (0, s)

    def covers(self, rows: Span, keys: Span) -> bool:
        if not (self._is_known and isinstance(rows.start, int) and isinstance(keys.start, int)):
            return False
        low: Any = -math.inf if self.low is None else self.low
        high: Any = math.inf if self.high is None else self.high
        nearest = keys.start - (rows.start + rows.size - 1)
        return low <= nearest and keys.start + keys.size - 1 - rows.start <= high

    @property
    def _is_known(self) -> bool:
        return all(bound is None or isinstance(bound, int) for bound in (self.low, self.high))

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first = 0 if self.low is None else clip(rows.start + self.low, s)
        stop = s if self.high is None else clip(rows.start + rows.size + self.high, s)
        if self.low is not None and self.high is not None:
            if isinstance(self.low, int) and isinstance(self.high, int):
                stop = stop if self.low <= self.high else first
            else:
                stop = jnp.where(self.low <= self.high, stop, first)
        return smaller(first, stop), stop

    @property
    def exact(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Near(BoundMask):
    """A query at position p sees the keys at p + low to p + high, both inclusive; None for no bound
    on that side. A `Band` where every token has a position of its own."""

    q: Int[Array, "*#b #t"]
    k: Int[Array, "*#b s"]
    low: int | None
    high: int | None

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        ahead = place.each_k(self.k) - place.each_q(self.q)
        high = None if self.high is None else ahead <= self.high
        low = None if self.low is None else self.low <= ahead
        return low if high is None else high if low is None else low & high

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """From the first to the last key that is near enough to any of the rows."""
        q = self.q if self.q.shape[-1] == 1 else cut_axis(self.q, rows.start, rows.size)
        near = jnp.ones(s, bool)
        if self.high is not None:
            near &= self.k - jnp.max(q) <= self.high
        if self.low is not None:
            near &= self.k - jnp.min(q) >= self.low
        return ends(near, s)


def band(positions: BoundPositions, low: int | None, high: int | None, frame: Frame) -> BoundMask:
    """Which keys are from `low` to `high` positions after their query."""
    if positions.q_each is None or positions.k_each is None:
        bound = lambda n: None if n is None else add_clipped(positions.ahead, n, -frame.t, frame.s)
        return Band(bound(low), bound(high))
    bound = lambda n: None if n is None else min(max(n, -TOO_FAR), TOO_FAR)
    return Near(positions.q_each, positions.k_each, bound(low), bound(high))


def _met(bands: tuple[BoundMask, ...], band: BoundMask) -> tuple[BoundMask, ...]:
    """`bands`, and `band` as a part of the last of them if both count from the same positions."""
    if not bands:
        return (band,)
    *rest, last = bands
    if isinstance(last, Band) and isinstance(band, Band):
        return (*rest, Band(*_meet(last, band)))
    if isinstance(last, Near) and isinstance(band, Near) and last.q is band.q:
        low, high = _meet(last, band)
        return (*rest, Near(band.q, band.k, low, high))
    return (*bands, band)


def _meet(a: Any, b: Any) -> tuple[Any, Any]:
    """The bounds (low, high) of what is between those of both."""
    both = lambda choose, x, y: y if x is None else x if y is None else choose(x, y)
    return both(larger, a.low, b.low), both(smaller, a.high, b.high)


def ends(near_s: Bool[Array, " s"], s: int) -> tuple[Index, Index]:
    """The range from the first to the last True."""
    first = jnp.min(count_to(s), where=near_s, initial=s)
    stop = jnp.max(count_to(s), where=near_s, initial=-1) + 1
    return jnp.minimum(first, stop), stop


def clip(value: Any, s: int) -> Index:
    return smaller(larger(value, 0), s)


def check_mask(mask: object) -> Mask:
    if isinstance(mask, Mask):
        return mask
    if hasattr(mask, "shape"):
        raise TypeError(
            f"a mask is a value such as Causal() or Window(left=128), got {show(mask)}; wrap the "
            f"array: Dense(array), with booleans that are True where a query may see a key"
        )
    if callable(mask):
        raise TypeError(
            f"a mask is a value such as Causal() or Window(left=128), got the function {mask!r}; "
            f"wrap it: Where(function), which is True where a query may see a key"
        )
    raise TypeError(
        f"a mask is a value such as Causal(), Window(left=128), Segments(ids) or EVERYTHING, got "
        f"{mask!r}"
    )

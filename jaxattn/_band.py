"""Masks of keys that are near their queries: what `Causal` and `Window` are in a call."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import Index, clip, cut_axis, larger, smaller, true_range
from jaxattn._batched import add_clipped
from jaxattn._mask import BoundMask
from jaxattn._value import Place, Shift, Span, Value
from jaxattn.positions import TOO_FAR, BoundPositions, Frame


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

    def met(self, other: BoundMask) -> BoundMask | None:
        return Band(*_meet(self, other)) if isinstance(other, Band) else None

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

    def met(self, other: BoundMask) -> BoundMask | None:
        if isinstance(other, Near) and other.q is self.q and other.k is self.k:
            return Near(self.q, self.k, *_meet(self, other))
        return None

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
        return true_range(near, s)


def band(positions: BoundPositions, low: int | None, high: int | None, frame: Frame) -> BoundMask:
    """Which keys are from `low` to `high` positions after their query."""
    if positions.q_each is None or positions.k_each is None:
        bound = lambda n: None if n is None else add_clipped(positions.ahead, n, -frame.t, frame.s)
        return Band(bound(low), bound(high))
    bound = lambda n: None if n is None else min(max(n, -TOO_FAR), TOO_FAR)
    return Near(positions.q_each, positions.k_each, bound(low), bound(high))


def _meet(a: Any, b: Any) -> tuple[Any, Any]:
    """The bounds (low, high) of what is between those of both."""
    both = lambda choose, x, y: y if x is None else x if y is None else choose(x, y)
    return both(larger, a.low, b.low), both(smaller, a.high, b.high)

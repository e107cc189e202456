"""Observations with one result for each query, [*b t h ...]."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from jaxattn._axes import AnyArray, dot
from jaxattn._batched import add_clipped, fit
from jaxattn._content import is_whole
from jaxattn._observation import (
    QUERY,
    BoundObservation,
    Largest,
    Observation,
    Seen,
    Shares,
    Statistic,
    Sum,
    known_lengths,
)
from jaxattn._serial import serial_tuple
from jaxattn._value import Sizes
from jaxattn.observe.rank import largest
from jaxattn.observe.tokens import tokens
from jaxattn.positions import Frame


@dataclass(frozen=True, repr=False)
class LogSumExp(Largest):
    """lse of every query, in nats: [*b t h]; -inf for a query that may see no key."""

    PER = QUERY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.asarray(-jnp.inf, dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        return seen.lse

    def merge_results(self, results: Sequence[Array], shares: Shares) -> Float[Array, "*b t h"]:
        dead = functools.reduce(jnp.logical_and, [jnp.isneginf(x) for x in results])
        return jnp.where(dead, -jnp.inf, shares.lse)  # also where there are sinks


@dataclass(frozen=True, repr=False)
class RowMax(Largest):
    """The largest logit of every query: [*b t h]; -inf for a query that may see no key."""

    PER = QUERY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.asarray(-jnp.inf, dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        return seen.peak

    def merge_results(self, results: Sequence[Array], shares: Shares) -> Float[Array, "*b t h"]:
        return functools.reduce(jnp.maximum, results)


@dataclass(frozen=True, repr=False)
class Entropy(Sum):
    """-Σ_s p log p of every query, in nats: [*b t h]; from 0 to the log of how many keys it sees.

    With a sink the weights do not sum to 1, and the sink's own share is not counted.
    """

    PER = QUERY

    @property
    def statistic(self) -> Statistic:
        return Statistic.ENTROPY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros((), dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        # The inner numbers are finite, so that a derivative is 0 where a weight is; the outer
        # `where` makes XLA's loop of it the fast one.
        logits = jnp.maximum(seen.logits, jnp.finfo(seen.logits.dtype).min)
        lse = jnp.where(seen.live, seen.lse, 0)
        parts = seen.p * (lse[:, None] - logits)
        return jnp.where(seen.logits > -jnp.inf, parts, 0).sum(axis=1) * seen.norm

    def merge_results(self, results: Sequence[Array], shares: Shares) -> Float[Array, "*b t h"]:
        """The entropy within the parts and that of the shares; where no part has a sink."""
        return shares.mix([x - log for x, log in zip(results, shares.log, strict=True)])


@serial_tuple
class Tops(NamedTuple):
    """weights: from the largest down. keys: where they are; -1 where a query sees fewer keys."""

    weights: Float[Array, "*b t h k"]
    keys: Int[Array, "*b t h k"]


class Ranked(NamedTuple):
    """Keys by their logits, from the largest down; -inf, 0 and -1 where there are fewer."""

    logits: Float[Array, "*a k"]
    weights: Float[Array, "*a k"]
    keys: Int[Array, "*a k"]


@dataclass(frozen=True, repr=False)
class TopKeys(BoundObservation):
    """The `count` largest weights of every query, and their keys: `Tops`. Ties: the first."""

    PER = QUERY

    count: int = 8

    def __post_init__(self) -> None:
        if not is_whole(self.count) or self.count < 1:
            raise ValueError(f"TopKeys takes how many keys to keep, at least 1, got {self.count!r}")
        super().__post_init__()

    def resolve(self, frame: Frame, dtype: Any) -> "TopKeys":
        known_lengths(self, frame)
        return self

    def start(self, sizes: Sizes, dtype: Any) -> Ranked:
        nothing = jnp.zeros(self.count, dtype)
        return Ranked(nothing - jnp.inf, nothing, jnp.full(self.count, -1, jnp.int32))

    def absorb(self, seen: Seen) -> Ranked:
        best, at = largest(
            jax.lax.stop_gradient(seen.logits), min(self.count, seen.logits.shape[1])
        )
        weights = jnp.take_along_axis(seen.p, at, axis=1, mode="clip") * seen.norm[:, None]
        return self._of(best, weights, seen.place.keys.start + at)

    def merge(self, a: Ranked, b: Ranked) -> Ranked:
        both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), a, b)
        flat = jax.lax.stop_gradient(both.logits).reshape(-1, both.logits.shape[-1])
        best, at = largest(flat, self.count)
        best, at = (x.reshape(*both.logits.shape[:-1], self.count) for x in (best, at))
        pick = lambda x: jnp.take_along_axis(x, at, axis=-1, mode="clip")
        return self._of(best, pick(both.weights), pick(both.keys))

    def finish(self, state: Ranked, live: Array) -> Tops:
        return Tops(state.weights, state.keys)

    def _of(self, logits: Array, weights: Array, keys: Array) -> Ranked:
        short = [(0, 0)] * (logits.ndim - 1) + [(0, self.count - logits.shape[-1])]
        logits = jnp.pad(logits, short, constant_values=-jnp.inf)
        weights, keys = jnp.pad(weights, short), jnp.pad(keys, short).astype(jnp.int32)
        unseen = jnp.isneginf(logits)
        return Ranked(logits, jnp.where(unseen, 0, weights), jnp.where(unseen, -1, keys))


@dataclass(frozen=True, eq=False, repr=False)
class MassOn(Observation):
    """The weight that every query gives to a set of keys: [*b t h].

    keys: booleans that broadcast to [*b h s], or a number: the first so many keys.
    """

    keys: int | Bool[AnyArray, "..."]

    def __post_init__(self) -> None:
        if isinstance(self.keys, bool | np.bool_):
            raise TypeError(
                f"MassOn takes a number of keys or an array of booleans, got {self.keys!r}; pass "
                f"MassOn(s) for all of s keys"
            )
        super().__post_init__()

    def resolve(self, frame: Frame, dtype: Any) -> "BoundMassOn":
        if isinstance(self.keys, int):
            return BoundMassOn(add_clipped(self.keys, 0, 0, frame.s))
        keys = jnp.asarray(self.keys)
        if keys.dtype != bool:
            raise TypeError(
                f"MassOn takes booleans, True for the keys of the set, got {keys.dtype} "
                f"{keys.shape}; for the first n keys pass the number n"
            )
        return BoundMassOn(fit(keys, "MassOn.keys", frame.sizes, "hs"))

    def merge_results(self, results: Sequence[Array], shares: Shares) -> Any:
        """On the sets of all parts. A number counts from the first key of each part, not of all."""
        return NotImplemented if isinstance(self.keys, int) else shares.mix(results)


@dataclass(frozen=True, eq=False, repr=False)
class BoundMassOn(Sum):
    """A `MassOn` of no more keys than there are, or with all of its axes."""

    PER = QUERY
    keys: int | Bool[Array, "*#b #h #s"]

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros((), dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        keys = self.keys
        if isinstance(keys, int):
            keys = seen.place.keys.indices() < keys
        return jnp.where(keys[None, :], seen.p, 0).sum(axis=1) * seen.norm


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Observation):
    """A u, for the weights A: [*b t h x].

    u: numbers that broadcast to [*b h s x].
    """

    u: Shaped[AnyArray, "..."]

    def resolve(self, frame: Frame, dtype: Any) -> "BoundApply":
        return BoundApply(fit(jnp.asarray(self.u, dtype), "Apply.u", frame.sizes, "hs."))

    def merge_results(self, results: Sequence[Array], shares: Shares) -> Float[Array, "*b t h x"]:
        return shares.mix(results)  # each part has the u of its keys


@dataclass(frozen=True, eq=False, repr=False)
class BoundApply(Sum):
    """An `Apply` with all of its axes."""

    PER = QUERY
    u: Float[Array, "*#b #h #s x"]

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros(self.u.shape[-1], dtype)

    def absorb(self, seen: Seen) -> Float[Array, "t x"]:
        u = jnp.broadcast_to(self.u, (seen.p.shape[1], self.u.shape[-1]))
        return dot(seen.p, u) * seen.norm[:, None]


@dataclass(frozen=True, eq=False, repr=False)
class Columns(Observation):
    """The weights of every query for some keys: [*b t h n].

    keys: which, as in the array, integers [n]; one that is not there has weight 0.
    """

    keys: Integer[AnyArray, "..."]

    def resolve(self, frame: Frame, dtype: Any) -> "BoundColumns":
        return BoundColumns(tokens(self.keys, "Columns", frame.s))


@dataclass(frozen=True, eq=False, repr=False)
class BoundColumns(Sum):
    """`Columns` as indices."""

    PER = QUERY

    keys: Int[Array, " n"]

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros(self.keys.shape[0], dtype)

    def absorb(self, seen: Seen) -> Float[Array, "t n"]:
        at = self.keys - seen.place.keys.start
        inside = (at >= 0) & (at < seen.p.shape[1])
        p = jnp.take(seen.p, at, axis=1, mode="clip")
        return jnp.where(inside, p * seen.norm[:, None], 0)

"""Observations with one result for each key, [*b s h ...]: what it receives."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Shaped

from jaxattn._axes import AnyArray, dot, max_along
from jaxattn._batched import fit
from jaxattn._observation import KEY, Largest, Observation, Seen, Statistic, Sum
from jaxattn._serial import serial_tuple
from jaxattn._value import Sizes
from jaxattn.observe.tokens import tokens
from jaxattn.positions import Frame


@serial_tuple
class ReceivedMass(NamedTuple):
    """mass: Σ_t w p for every key. queries: how many queries may see the key.

    mass / queries is the mean weight that a key gets, by which caches are evicted.
    """

    mass: Float[Array, "*b s h"]
    queries: Int[Array, "*b s h"]


@dataclass(frozen=True, eq=False, repr=False)
class Received(Observation):
    """The weight that every key gets from all queries: `ReceivedMass`.

    of: how much each query counts, numbers that broadcast to [*b h t]; all the same if not given.
    Source: Zhang et al. 2023, "H2O", section 4.
    """

    of: Shaped[AnyArray, "..."] | None = None

    def resolve(self, frame: Frame, dtype: Any) -> "BoundReceived":
        fits = lambda of: fit(jnp.asarray(of, dtype), "Received.of", frame.sizes, "ht")
        return BoundReceived(None if self.of is None else fits(self.of))


@dataclass(frozen=True, eq=False, repr=False)
class BoundReceived(Sum):
    """`Received` of all of its axes."""

    PER = KEY
    of: Float[Array, "*#b #h #t"] | None

    @property
    def statistic(self) -> Statistic | None:
        return Statistic.RECEIVED if self.of is None else None

    def start(self, sizes: Sizes, dtype: Any) -> ReceivedMass:
        return ReceivedMass(jnp.zeros((), dtype), jnp.zeros((), jnp.int32))

    def absorb(self, seen: Seen) -> ReceivedMass:
        each = seen.norm if self.of is None else seen.norm * self.of
        mass = dot(each[None, :], seen.p)[0]
        return ReceivedMass(mass, seen.queries)


@dataclass(frozen=True, repr=False)
class ReceivedMax(Largest):
    """The largest weight that every key gets from any query: [*b s h].

    Source: Kim et al. 2025, "KVzip", section 3.
    """

    PER = KEY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros((), dtype)

    def absorb(self, seen: Seen) -> Float[Array, " s"]:
        return max_along(seen.weights, 0)


@dataclass(frozen=True, eq=False, repr=False)
class ApplyTransposed(Observation):
    """Aᵀ w, for the weights A: [*b s h x].

    w: numbers that broadcast to [*b h t x].
    """

    w: Shaped[AnyArray, "..."]

    def resolve(self, frame: Frame, dtype: Any) -> "BoundApplyTransposed":
        w = jnp.asarray(self.w, dtype)
        return BoundApplyTransposed(fit(w, "ApplyTransposed.w", frame.sizes, "ht."))


@dataclass(frozen=True, eq=False, repr=False)
class BoundApplyTransposed(Sum):
    """An `ApplyTransposed` with all of its axes."""

    PER = KEY
    w: Float[Array, "*#b #h #t x"]

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros(self.w.shape[-1], dtype)

    def absorb(self, seen: Seen) -> Float[Array, "s x"]:
        w = jnp.broadcast_to(self.w, (seen.p.shape[0], self.w.shape[-1]))
        return dot(seen.p.T, w * seen.norm[:, None])


@dataclass(frozen=True, eq=False, repr=False)
class Rows(Observation):
    """All weights of some queries: [*b h n s].

    queries: which, as in the array, integers [n]; one that is not there has weights 0.
    """

    queries: Integer[AnyArray, "..."]

    def resolve(self, frame: Frame, dtype: Any) -> "BoundRows":
        return BoundRows(tokens(self.queries, "Rows", frame.t))


@dataclass(frozen=True, eq=False, repr=False)
class BoundRows(Sum):
    """`Rows` as indices."""

    PER = KEY

    queries: Int[Array, " n"]

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros(self.queries.shape[0], dtype)

    def absorb(self, seen: Seen) -> Float[Array, "s n"]:
        at = self.queries - seen.place.rows.start
        inside = (at >= 0) & (at < seen.p.shape[0])
        p, norm = (jnp.take(x, at, axis=0, mode="clip") for x in (seen.p, seen.norm))
        return jnp.where(inside[:, None], p * norm[:, None], 0).T

    def finish(self, state: Array, live: Array) -> Float[Array, "*b h n s"]:
        return jnp.moveaxis(state, -3, -1)

"""Observations with one result for each query, [*b t h ...]."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn._axes import dot
from jaxattn._batched import fit
from jaxattn._observation import QUERY, Largest, Observation, Seen, Sum
from jaxattn._value import Sizes


@dataclass(frozen=True, repr=False)
class LogSumExp(Largest):
    """lse of every query, in nats: [*b t h]; -inf for a query that may see no key."""

    PER = QUERY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.asarray(-jnp.inf, dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        return seen.lse


@dataclass(frozen=True, repr=False)
class RowMax(Largest):
    """The largest logit of every query: [*b t h]; -inf for a query that may see no key."""

    PER = QUERY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.asarray(-jnp.inf, dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        return seen.logits.max(axis=1)


@dataclass(frozen=True, repr=False)
class Entropy(Sum):
    """-Σ_s p log p of every query, in nats: [*b t h]; from 0 to the log of how many keys it sees.

    With a sink the weights do not sum to 1, and the sink's own share is not counted.
    """

    PER = QUERY

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros((), dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        surprise = jnp.where(seen.logits > -jnp.inf, seen.lse[:, None] - seen.logits, 0)
        return (seen.weights * surprise).sum(axis=1)


class Tops(NamedTuple):
    """weights: from the largest down. keys: where they are; -1 where a query sees fewer keys."""

    weights: Float[Array, "*b t h k"]
    keys: Int[Array, "*b t h k"]


@dataclass(frozen=True, repr=False)
class TopKeys(Observation):
    """The `count` largest weights of every query, and their keys: `Tops`."""

    PER = QUERY

    count: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"TopKeys takes how many keys to keep, at least 1, got {self.count!r}")

    def start(self, sizes: Sizes, dtype: Any) -> Tops:
        nothing = jnp.zeros(self.count, dtype)
        return Tops(nothing, jnp.full(self.count, -1, jnp.int32))

    def absorb(self, seen: Seen) -> Tops:
        """The largest of each of many cells first: the top keys are in the top cells."""
        t, s = seen.weights.shape
        count = min(self.count, s)
        ranked = jnp.where(seen.logits > -jnp.inf, seen.weights, -1)
        if s > CELL * 2 * count:
            cells = jnp.pad(ranked, ((0, 0), (0, -s % CELL)), constant_values=-1)
            cells = cells.reshape(t, -1, CELL)
            _, best = jax.lax.top_k(jax.lax.stop_gradient(cells.max(axis=2)), count)
            places = (best[:, :, None] * CELL + jnp.arange(CELL)).reshape(t, -1)
            taken = jnp.take_along_axis(cells, best[:, :, None], axis=1).reshape(t, -1)
            weights, at = jax.lax.top_k(taken, count)
            at = jnp.take_along_axis(places, at, axis=1)
        else:
            weights, at = jax.lax.top_k(ranked, count)
        return self._of(weights, seen.place.keys.start + at)

    def merge(self, a: Tops, b: Tops) -> Tops:
        weights = jnp.concatenate([a.weights, b.weights], axis=-1)
        keys = jnp.concatenate([a.keys, b.keys], axis=-1)
        best, at = jax.lax.top_k(jnp.where(keys < 0, -1, weights), self.count)
        return self._of(best, jnp.take_along_axis(keys, at, axis=-1))

    def _of(self, ranked: Array, keys: Array) -> Tops:
        short = [(0, 0)] * (ranked.ndim - 1) + [(0, self.count - ranked.shape[-1])]
        ranked = jnp.pad(ranked, short, constant_values=-1)
        keys = jnp.pad(keys, short, constant_values=-1)
        is_key = ranked >= 0
        return Tops(jnp.where(is_key, ranked, 0), jnp.where(is_key, keys, -1).astype(jnp.int32))


CELL = 32  # keys


@dataclass(frozen=True, eq=False, repr=False)
class MassOn(Sum):
    """The weight that every query gives to a set of keys: [*b t h].

    keys: booleans that broadcast to [*b h s], or a number: the first so many keys.
    """

    PER = QUERY
    AXES: ClassVar = {"keys": "hs"}

    keys: int | Bool[Array, "*#b #h s"]

    def resolve(self, sizes: Sizes, dtype: Any) -> "MassOn":
        if isinstance(self.keys, int):
            return self
        keys = jnp.asarray(self.keys)
        if keys.dtype != bool:
            raise TypeError(
                f"MassOn takes booleans, True for the keys of the set, got {keys.dtype} "
                f"{keys.shape}; for the first n keys pass the number n"
            )
        return MassOn(fit(keys, "MassOn.keys", sizes, "hs"))

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros((), dtype)

    def absorb(self, seen: Seen) -> Float[Array, " t"]:
        keys = seen.k < self.keys if isinstance(self.keys, int) else self.keys
        return jnp.where(keys[None, :], seen.weights, 0).sum(axis=1)


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Sum):
    """A u, for the weights A: [*b t h x].

    u: numbers that broadcast to [*b h s x].
    """

    PER = QUERY
    AXES: ClassVar = {"u": "hs."}

    u: Float[Array, "*#b #h s x"]

    def resolve(self, sizes: Sizes, dtype: Any) -> "Apply":
        return Apply(fit(jnp.asarray(self.u, dtype), "Apply.u", sizes, "hs."))

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros(self.u.shape[-1], dtype)

    def absorb(self, seen: Seen) -> Float[Array, "t x"]:
        u = jnp.broadcast_to(self.u, (seen.weights.shape[1], self.u.shape[-1]))
        return dot(seen.weights, u)


@dataclass(frozen=True, eq=False, repr=False)
class Columns(Sum):
    """The weights of every query for some keys: [*b t h n].

    keys: positions, integers [n]; a position outside the keys has weight 0.
    """

    PER = QUERY

    keys: Int[Array, " n"]

    def resolve(self, sizes: Sizes, dtype: Any) -> "Columns":
        return Columns(jnp.atleast_1d(jnp.asarray(self.keys, jnp.int32)))

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.zeros(self.keys.shape[0], dtype)

    def absorb(self, seen: Seen) -> Float[Array, "t n"]:
        at = self.keys - seen.place.keys.start
        inside = (at >= 0) & (at < seen.weights.shape[1])
        return jnp.where(inside, jnp.take(seen.weights, at, axis=1, mode="clip"), 0)

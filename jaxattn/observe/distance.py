"""How far from itself every query looks."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._observation import QUERY, Seen, Sum
from jaxattn._offset import Offset, resolve_offset
from jaxattn._serial import serial_tuple
from jaxattn._value import Sizes


@serial_tuple
class Spread(NamedTuple):
    """mean, variance: of i + offset - j under the weights of query i, in positions, and squared.

    profile: the weight at distances of 0, 1, 2 to 3, 4 to 7 and so on before the query, and in the
    last place that of all keys after it; averaged over the queries that see any key.
    """

    mean: Float[Array, "*b t h"]
    variance: Float[Array, "*b t h"]
    profile: Float[Array, "*b h buckets"]


class Moments(NamedTuple):
    mass: Float[Array, " t"]
    first: Float[Array, " t"]
    second: Float[Array, " t"]
    profile: Float[Array, "t buckets"]


@dataclass(frozen=True, eq=False, repr=False)
class Distance(Sum):
    """How far back every query and head looks: `Spread`.

    offset: where the queries are among the keys, as in `Causal`.
    """

    PER = QUERY
    AXES: ClassVar = {"offset": ""}

    offset: Offset = None
    longest: int = 1

    def __repr__(self) -> str:
        return f"Distance(offset={self.offset!r})"

    def resolve(self, sizes: Sizes, dtype: Any) -> "Distance":
        return Distance(resolve_offset("Distance", self.offset, sizes), max(sizes.s, sizes.t, 2))

    @property
    def edges(self) -> tuple[int, ...]:
        """Where the buckets of distances before the query begin."""
        return (0, *(2**i for i in range((self.longest - 1).bit_length())))

    def start(self, sizes: Sizes, dtype: Any) -> Moments:
        zero = jnp.zeros((), dtype)
        return Moments(zero, zero, zero, jnp.zeros(len(self.edges) + 1, dtype))

    def absorb(self, seen: Seen) -> Moments:
        back = seen.place.q + self.offset - seen.place.k
        away = back.astype(seen.weights.dtype)
        stops = (*self.edges[1:], None)
        shares = [seen.weights.sum(axis=1, where=back < 0)]
        for first, stop in reversed(list(zip(self.edges, stops, strict=True))):
            inside = back >= first if stop is None else (back >= first) & (back < stop)
            shares.insert(0, seen.weights.sum(axis=1, where=inside))
        return Moments(
            seen.weights.sum(axis=1),
            (seen.weights * away).sum(axis=1),
            (seen.weights * away**2).sum(axis=1),
            jnp.stack(shares, axis=1),
        )

    def finish(self, state: Moments, live: Array) -> Spread:
        mass = jnp.where(state.mass > 0, state.mass, 1)
        mean = state.first / mass
        variance = jnp.maximum(state.second / mass - mean**2, 0)
        queries = jnp.maximum(live.sum(axis=-2), 1)
        return Spread(mean, variance, state.profile.sum(axis=-3) / queries[..., None])

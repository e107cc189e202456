"""How far from itself every query looks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn._axes import count_to
from jaxattn._observation import (
    QUERY,
    BoundObservation,
    Observation,
    Seen,
    Share,
    by_rows,
    known_lengths,
)
from jaxattn._serial import serial_tuple
from jaxattn._value import Sizes
from jaxattn.positions import Frame

ROWS = 8  # that are taken at a time; the rows of a tile are a multiple of it


@serial_tuple
class Spread(NamedTuple):
    """mean, variance: of p - r under the weights of a query at position p for keys at r, in
    positions, and squared.

    profile: the weight at distances of 0, 1, 2 to 3, 4 to 7 and so on before the query, and in the
    last place that of all keys after it; averaged over the queries that see any key.
    """

    mean: Float[Array, "*b t h"]
    variance: Float[Array, "*b t h"]
    profile: Float[Array, "*b h buckets"]


class Moments(NamedTuple):
    """Of the distances y from `at`, a whole number near their mean: Σ p, Σ p y and Σ p y².

    Around zero the sums would be those of large numbers that nearly cancel: float32 then has no
    digit left of the variance far back. Around the nearest whole number, Σ p y² is at most twice
    the variance, and differences of whole numbers are exact.
    """

    mass: Float[Array, "*t"]
    at: Int[Array, "*t"]
    first: Float[Array, "*t"]
    second: Float[Array, "*t"]
    profile: Float[Array, "*t buckets"]

    def about(self, at: Int[Array, "*t"]) -> "Moments":
        """The same, around another whole number."""
        shift = (self.at - at).astype(self.mass.dtype)
        second = self.second + shift * (2 * self.first + shift * self.mass)
        return self._replace(at=at, first=self.first + shift * self.mass, second=second)


def middle(
    mass: Float[Array, "*t"], at: Int[Array, "*t"], first: Float[Array, "*t"]
) -> Int[Array, "*t"]:
    """The whole number nearest to the mean. Counts as a constant: no result depends on it."""
    mean = first / jnp.where(mass > 0, mass, 1)
    return at + jax.lax.stop_gradient(jnp.round(mean)).astype(at.dtype)


@dataclass(frozen=True, repr=False)
class Distance(Observation):
    """How far back every query and head looks: `Spread`.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
    """

    def resolve(self, frame: Frame, dtype: Any) -> "BoundDistance":
        known_lengths(self, frame)
        frame.where("Distance")  # or an error
        return BoundDistance(max(frame.s, frame.t, 2))


@dataclass(frozen=True, repr=False)
class BoundDistance(BoundObservation):
    """A `Distance` bound to a call. longest: of the two lengths, for the profile."""

    PER = QUERY

    longest: int

    @property
    def edges(self) -> tuple[int, ...]:
        """Where the buckets of distances before the query begin."""
        return (0, *(2**i for i in range((self.longest - 1).bit_length())))

    def start(self, sizes: Sizes, dtype: Any) -> Moments:
        zero, at = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return Moments(zero, at, zero, zero, jnp.zeros(len(self.edges) + 1, dtype))

    def absorb(self, seen: Seen) -> Moments:
        stops = (*self.edges[1:], None)
        place = seen.place
        if seen.at.in_order:
            k = count_to(place.keys.size)
            from_first = place.rows.indices() + seen.at.ahead - place.keys.start
        else:
            k, from_first = seen.k - seen.k[0], seen.q - seen.k[0]

        def row(p: Float[Array, " s"], norm: Float[Array, ""], from_first: Int[Array, ""]) -> Any:
            back = from_first - k
            mass, first = p.sum(), (p * -k).sum()
            # From the first key on at first: the mean is then good enough to round.
            at = middle(mass, from_first, first)
            away = (back - at).astype(p.dtype)
            shares = []
            for least, stop in zip(self.edges, stops, strict=True):
                inside = back >= least if stop is None else (back >= least) & (back < stop)
                shares.append(p.sum(where=inside))
            shares.append(p.sum(where=back < 0))
            first, second = (p * away).sum(), (p * away * away).sum()
            moments = mass * norm, at, first * norm, second * norm
            return Moments(*moments, jnp.stack(shares) * norm)

        return by_rows(jax.vmap(row), ROWS, seen.p, seen.norm, from_first)

    def merge(self, a: Moments, b: Moments) -> Moments:
        at = jnp.where(b.mass > a.mass, b.at, a.at)
        both = Moments(
            *(x if x is at else x + y for x, y in zip(a.about(at), b.about(at), strict=True))
        )
        return both.about(middle(both.mass, both.at, both.first))

    def finish(self, state: Moments, live: Array) -> Spread:
        return self._finish(state, live, lambda x: x)

    def finish_part(self, state: Moments, live: Array, share: Share) -> Spread:
        return self._finish(state, live, share.total)

    def _finish(self, state: Moments, live: Array, total: Callable[[Array], Array]) -> Spread:
        mass = jnp.where(state.mass > 0, state.mass, 1)
        near = state.first / mass
        variance = jnp.maximum(state.second / mass - near**2, 0)
        queries = jnp.maximum(total(live.sum(axis=-2)), 1)
        profile = total(state.profile.sum(axis=-3)) / queries[..., None]
        mean = jnp.where(state.mass > 0, state.at.astype(mass.dtype) + near, state.mass)
        return Spread(mean, variance, profile)

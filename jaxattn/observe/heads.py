"""Observations with one result for each head, [*b h ...]."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import max_along
from jaxattn._batched import add_clipped
from jaxattn._content import is_whole
from jaxattn._observation import HEAD, Largest, Seen, Shares, Statistic, Sum
from jaxattn._value import Sizes
from jaxattn.positions import TOO_FAR, Frame


@dataclass(frozen=True, repr=False)
class MaxLogit(Largest):
    """The largest logit of every head, over the batch, its queries and the keys they see: [h].

    before_scores: of the scaled products alone, before a soft cap, say; else of what the softmax
      gets. -inf where no query sees a key.
    Source: Kimi Team 2025, "Kimi K2", section 2.1 (QK-clip).
    """

    PER = HEAD

    before_scores: bool = False

    @property
    def statistic(self) -> Statistic:
        return Statistic.PEAK_BEFORE_SCORES if self.before_scores else Statistic.PEAK

    def start(self, sizes: Sizes, dtype: Any) -> Array:
        return jnp.asarray(-jnp.inf, dtype)

    def absorb(self, seen: Seen) -> Float[Array, ""]:
        if not (self.before_scores and seen.scored):
            return max_along(seen.peak, 0)
        scaled = jnp.where(seen.logits > -jnp.inf, seen.scaled, -jnp.inf)
        return max_along(scaled.reshape(-1), 0)

    def finish(self, state: Array, live: Array) -> Float[Array, " h"]:
        return state.max(axis=tuple(range(state.ndim - 1)), initial=-jnp.inf)

    def merge_results(self, results: Sequence[Array], shares: Shares) -> Float[Array, " h"]:
        return functools.reduce(jnp.maximum, results)


class Pairs(NamedTuple):
    total: Array
    count: Array


@dataclass(frozen=True, repr=False)
class Diagonal(Sum):
    """The mean weight of the key at p + offset for a query at position p, over the pairs of them
    that may see each other: [*b h].

    offset: a whole number; -1 for the previous token.
    """

    PER = HEAD

    offset: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.offset):
            raise TypeError(
                f"Diagonal takes one whole number for all queries, as offset=-1 for the previous "
                f"token, got {self.offset!r}; where queries are is told by attend(positions=...), "
                f"and for several offsets take a Diagonal for each"
            )
        super().__post_init__()

    def resolve(self, frame: Frame, dtype: Any) -> "Diagonal":
        frame.where("Diagonal")  # or an error
        return Diagonal(min(max(self.offset, -TOO_FAR), TOO_FAR))

    def start(self, sizes: Sizes, dtype: Any) -> Pairs:
        return Pairs(jnp.zeros((), dtype), jnp.zeros((), dtype))

    def absorb(self, seen: Seen) -> Pairs:
        if not seen.at.in_order:
            on = seen.allowed & (seen.at.gap(seen.place) == -self.offset)
            weights = jnp.where(on, seen.weights, 0)
            return Pairs(weights.sum(), on.sum(dtype=seen.p.dtype))
        size = seen.p.shape[1]
        ahead = add_clipped(seen.at.ahead, self.offset, -TOO_FAR, TOO_FAR)
        at = seen.place.rows.indices() + ahead - seen.place.keys.start
        inside = (at >= 0) & (at < size)
        pick = lambda x: jnp.take_along_axis(x, at[:, None], axis=1, mode="clip")[:, 0]
        counts = inside & pick(seen.allowed)
        weights = jnp.where(counts, pick(seen.p) * seen.norm, 0)
        return Pairs(weights.sum(), counts.sum(dtype=seen.p.dtype))

    def finish(self, state: Pairs, live: Array) -> Float[Array, "*b h"]:
        return state.total / jnp.maximum(state.count, 1)

"""The online softmax: that over some of the keys, and how it becomes that over more of them.

Tiles, pieces of a tile, sinks, parts over different keys and devices in a ring all come together
here.

Source: Milakov and Gimelshein 2018, algorithm 3; with values, Rabe and Staats 2021.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LogSumExp(NamedTuple):
    """lse = peak + log_total, in two parts: their sum would round what exp(logits - lse) needs.

    (-inf, 0) where no key is seen. The peak counts as a constant, wherever there are derivatives.
    """

    peak: Float[Array, "*a"]
    log_total: Float[Array, "*a"]

    @property
    def value(self) -> Float[Array, "*a"]:
        return self.peak + self.log_total

    def with_sink(self, sink: Float[Array, "*#a"]) -> tuple["LogSumExp", Float[Array, "*a"]]:
        """(that with one more logit, the share of the keys in it); a share of 1 where none is seen.

        About the larger of both peaks: neither a large logit nor a large sink takes digits from the
        other. The derivatives are shares, also a small one: log_total + softplus would make it of 1
        less nearly 1.
        """
        blind = jnp.isneginf(self.peak)
        peak = jax.lax.stop_gradient(jnp.maximum(self.peak, sink))
        level = sink - base(peak)
        keys = jnp.where(blind, 0, self.log_total + (self.peak - base(peak)))
        total = jnp.where(blind, level, jnp.logaddexp(keys, level))
        total = jnp.where(jnp.isneginf(peak), 0, total)
        return LogSumExp(peak, total), jnp.exp(keys - jnp.where(blind, 0, total))


class Partial(NamedTuple):
    """The softmax over some of the keys.

    peak: their largest logit, or any number as large. total: Σ exp(logit - peak). accumulator:
    Σ exp(logit - peak) · value. (-inf, 0, 0) where no key is seen.
    """

    peak: Float[Array, "*a"]
    total: Float[Array, "*a"]
    accumulator: Float[Array, "*a e"]

    def about(self, peak: Float[Array, "*a"]) -> "Partial":
        """The same about another peak, which is at least as large."""
        shrink = jnp.exp(self.peak - base(peak))
        return Partial(peak, self.total * shrink, self.accumulator * shrink[..., None])

    def add(self, other: "Partial") -> "Partial":
        """That over the keys of both, which are about one peak."""
        total, accumulator = self.total + other.total, self.accumulator + other.accumulator
        return Partial(self.peak, total, accumulator)

    def finish(self) -> tuple[Float[Array, "*a e"], LogSumExp]:
        """(the mixed values, lse)."""
        total = jnp.where(self.total == 0, 1, self.total)
        return self.accumulator / total[..., None], LogSumExp(self.peak, jnp.log(total))


def nothing(rows: int, features: int, dtype: Any) -> Partial:
    """That over no keys."""
    zeros = jnp.zeros((rows, features), dtype)
    return Partial(jnp.full(rows, -jnp.inf, dtype), jnp.zeros(rows, dtype), zeros)


def base(peak: Float[Array, "*a"]) -> Float[Array, "*a"]:
    """What is subtracted from logits before exp: 0 in place of a peak of -inf, for -inf less -inf
    is NaN."""
    return jnp.where(peak == -jnp.inf, 0, peak)

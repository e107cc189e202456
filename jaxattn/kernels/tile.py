"""One tile of one head's score matrix: what it adds to the forward fold and to its tangent.

q [r d] and k [c d] are the rows and columns of the tile, in the accumulator's dtype; `allowed` says
which of its pairs the mask lets through (None for all) and may broadcast.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import dot


class State(NamedTuple):
    """The softmax of the keys seen so far (Milakov and Gimelshein 2018, algorithm 3).

    peak: the largest logit. total: Σ exp(logit - peak). mixed: Σ exp(logit - peak) · v.
    """

    peak: Float[Array, " r"]
    total: Float[Array, " r"]
    mixed: Float[Array, "r e"]


class Tangents(NamedTuple):
    """Tangents of what a tile depends on; None where a tangent is zero."""

    q: Float[Array, "r d"] | None
    k: Float[Array, "c d"] | None
    v: Float[Array, "c e"] | None
    scale: Float[Array, ""] | None


class LogSumExp(NamedTuple):
    """lse = peak + log_total, in two parts: their sum would round what exp(logits - lse) needs."""

    peak: Float[Array, " r"]
    log_total: Float[Array, " r"]


def nan_unless_finite(x: Array) -> Array:
    """x with NaN in place of Inf, so that one rule holds for both."""
    return jnp.where(jnp.isfinite(x), x, jnp.nan)


def finite(x: Array) -> Array:
    """x with 0 in place of NaN and Inf."""
    return jnp.where(jnp.isfinite(x), x, 0)


def nothing_seen(rows: int, features: int, dtype: jnp.dtype) -> State:
    return State(
        jnp.full(rows, -jnp.inf, dtype), jnp.zeros(rows, dtype), jnp.zeros((rows, features), dtype)
    )


def absorb(
    state: State | None,
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    scale: Float[Array, ""],
    allowed: Bool[Array, "#r #c"] | None,
) -> State:
    """`state` after the keys of this tile as well; None stands for no keys seen before.

    The values are finite: a NaN or Inf would reach every query of the tile, by a weight of 0.
    """
    logits_rc = dot(q * scale, k.T)
    if allowed is not None:
        logits_rc = jnp.where(allowed, logits_rc, -jnp.inf)
    peak = logits_rc.max(axis=1)
    if state is not None:
        peak = jnp.maximum(peak, state.peak)
    shift = peak if allowed is None else jnp.where(peak == -jnp.inf, 0, peak)
    p_rc = jnp.exp(logits_rc - shift[:, None])
    total, mixed = p_rc.sum(axis=1), dot(p_rc, v)
    if state is not None:
        shrink = jnp.exp(state.peak - shift)
        total, mixed = state.total * shrink + total, state.mixed * shrink[:, None] + mixed
    return State(peak, total, mixed)


def finish(state: State) -> tuple[Float[Array, "r e"], Float[Array, " r"], Float[Array, " r"]]:
    """(out, peak, log_total): (0, -inf, 0) where no key was seen."""
    total = jnp.where(state.total == 0, 1, state.total)
    return state.mixed / total[:, None], state.peak, jnp.log(total)


def tangent(
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    scale: Float[Array, ""],
    lse: LogSumExp,
    allowed: Bool[Array, "#r #c"] | None,
    d: Tangents,
) -> tuple[Float[Array, "r e"], Float[Array, " r"]]:
    """This tile's part of (Σ p·dl·v + Σ p·dv, Σ p·dl), with p = exp(logits - lse).

    Written with the keys as rows: then the transpose, which is the backward pass, has plain
    products for dk and dv. Rows and columns that hold NaN or Inf count as 0, and so does p for a
    query whose lse is NaN because it may see one: no other query may learn of it.
    """
    q, k, v = finite(q), finite(k), finite(v)
    scaled_q = q * scale
    logits_cr = dot(k, scaled_q.T)
    if allowed is not None:
        logits_cr = jnp.where(allowed.T, logits_cr, -jnp.inf)
    peak = jnp.where(jnp.isfinite(lse.peak), lse.peak, jnp.inf)
    p_cr = jnp.exp((logits_cr - peak[None, :]) - finite(lse.log_total)[None, :])

    mixed, dlse = jnp.zeros((q.shape[0], v.shape[1]), q.dtype), jnp.zeros_like(peak)
    dq = None if d.q is None else d.q * scale
    if d.scale is not None:
        dq = q * d.scale if dq is None else dq + q * d.scale
    if dq is not None or d.k is not None:
        parts = [] if dq is None else [dot(k, dq.T)]
        parts += [] if d.k is None else [dot(d.k, scaled_q.T)]
        pdl_cr = p_cr * sum(parts[1:], parts[0])
        mixed, dlse = dot(pdl_cr.T, v), pdl_cr.sum(axis=0)
    if d.v is not None:
        mixed = mixed + dot(p_cr.T, d.v)
    return mixed, dlse

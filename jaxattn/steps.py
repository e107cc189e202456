"""Attention one textbook step at a time, every intermediate by name.

These functions are for reading, for drawing and for checking: each is the line of mathematics in
its docstring, on one head, with the whole score matrix in memory. `jaxattn.attention` computes the
same numbers without that matrix.

Source: Vaswani et al. 2017, "Attention Is All You Need", sections 3.2.1 and 3.2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, accumulator, dot
from jaxattn._content import as_int, is_whole


class Scores(NamedTuple):
    """raw: q kᵀ, one number for each query and key. scaled: the same times the scale."""

    raw: Float[Array, "t s"]
    scaled: Float[Array, "t s"]


class Head(NamedTuple):
    """Every intermediate of one attention head. `multi_head` puts a leading h on each field."""

    q: Float[Array, "*h t d"]
    k: Float[Array, "*h s d"]
    v: Float[Array, "*h s e"]
    raw: Float[Array, "*h t s"]
    scaled: Float[Array, "*h t s"]
    masked: Float[Array, "*h t s"]
    weights: Float[Array, "*h t s"]
    out: Float[Array, "*h t e"]


class MultiHead(NamedTuple):
    """heads: what each head computed, on a leading axis h. concat: their outputs side by side.

    out: concat times W_o.
    """

    heads: Head
    concat: Float[Array, "t he"]
    out: Float[Array, "t m"]


def scores(
    q: Float[AnyArray, "t d"], k: Float[AnyArray, "s d"], scale: Real[AnyNumber, ""] | None = None
) -> Scores:
    """q kᵀ · scale: how well each query matches each key. `scale` is 1/√d where none is given."""
    raw = dot(q, k.T)
    return Scores(raw, raw * (q.shape[-1] ** -0.5 if scale is None else scale))


def mask(
    logits: Float[AnyArray, "t s"], allowed: Bool[AnyArray, "t s"] | None
) -> Float[Array, "t s"]:
    """-inf where a query may not see a key, the logit itself elsewhere."""
    return jnp.asarray(logits) if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def log_sum_exp(logits: Float[AnyArray, "t s"]) -> Float[Array, " t"]:
    """log Σ_s exp(logits), in nats: the logarithm of the denominator of the softmax."""
    peak_t = row_peak(logits)
    sum_t = jnp.exp(logits - peak_t[:, None]).sum(axis=1)
    blind_t = sum_t == 0
    return jnp.where(blind_t, -jnp.inf, peak_t + jnp.log(jnp.where(blind_t, 1, sum_t)))


def weights(logits: Float[AnyArray, "t s"]) -> Float[Array, "t s"]:
    """softmax over the keys: exp(logits) / Σ_s exp(logits), and 0 in a row that is all -inf."""
    unnormalised_ts = jnp.exp(logits - row_peak(logits)[:, None])
    sum_t = unnormalised_ts.sum(axis=1, keepdims=True)
    return unnormalised_ts / jnp.where(sum_t == 0, 1, sum_t)


def mix(weights: Float[AnyArray, "t s"], v: Float[AnyArray, "s e"]) -> Float[Array, "t e"]:
    """weights · v: every query's average of the values, by its weights."""
    return dot(weights, v)


def row_peak(logits: Float[AnyArray, "t s"]) -> Float[Array, " t"]:
    """The largest logit of each row, which the softmax subtracts; 0 where a row is all -inf."""
    peak_t = jax.lax.stop_gradient(logits.max(axis=1, initial=-jnp.inf))
    return jnp.where(peak_t == -jnp.inf, 0, peak_t)


def single_head(
    x: Float[AnyArray, "t m"],
    w_q: Float[AnyArray, "m d"],
    w_k: Float[AnyArray, "m d"],
    w_v: Float[AnyArray, "m e"],
    allowed: Bool[AnyArray, "t t"] | None = None,
    scale: Real[AnyNumber, ""] | None = None,
) -> Head:
    """softmax(mask(Q Kᵀ · scale)) V with Q = X W_q, K = X W_k, V = X W_v.

    Args:
      x: one embedding of width m for each token.
      w_q, w_k, w_v: the head's projections.
      allowed: which keys each query may see; None for all.
      scale: of the scores; 1/√d where none is given.
    """
    # Tensors in half precision are multiplied and summed in float32, as in the rest of the package.
    x, w_q, w_k, w_v = (a.astype(accumulator(a.dtype)) for a in (x, w_q, w_k, w_v))
    q, k, v = dot(x, w_q), dot(x, w_k), dot(x, w_v)
    raw, scaled = scores(q, k, scale)
    masked = mask(scaled, allowed)
    weights_ts = weights(masked)
    return Head(q, k, v, raw, scaled, masked, weights_ts, mix(weights_ts, v))


def multi_head(
    x: Float[AnyArray, "t m"],
    w_q: Float[AnyArray, "m hd"],
    w_k: Float[AnyArray, "m hd"],
    w_v: Float[AnyArray, "m he"],
    w_o: Float[AnyArray, "he o"],
    heads: int,
    allowed: Bool[AnyArray, "t t"] | None = None,
    scale: Real[AnyNumber, ""] | None = None,
) -> MultiHead:
    """concat(head_1, ..., head_h) W_o, where head i is `single_head` with its columns of W.

    Args:
      x: one embedding of width m for each token.
      w_q, w_k, w_v: the projections of all heads side by side, hd = h·d and he = h·e columns:
        head i has columns i·d to (i+1)·d.
      w_o: the output projection.
      heads: how many heads the columns are cut into.
      allowed, scale: as in `single_head`, the same for every head.
    Raises:
      ValueError: the columns of a projection cannot be cut into `heads` equal parts.
    """
    heads = as_int(heads)
    if not is_whole(heads):
        raise TypeError(f"heads is a whole number, got {heads!r}")
    for name, w in (("w_q", w_q), ("w_k", w_k), ("w_v", w_v)):
        if heads < 1 or w.shape[1] % heads:
            raise ValueError(
                f"the columns of {name} must divide into equal heads, got {w.shape[1]} columns and "
                f"heads={heads}; choose a number of heads that divides them"
            )
    cut = lambda w: w.reshape(w.shape[0], heads, -1)
    each = jax.vmap(single_head, in_axes=(None, 1, 1, 1, None, None))
    every = each(x, cut(w_q), cut(w_k), cut(w_v), allowed, scale)
    concat = jnp.concatenate(list(every.out), axis=-1)
    return MultiHead(every, concat, dot(concat, w_o.astype(concat.dtype)))

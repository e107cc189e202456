"""Attention with the whole score matrix, in jnp: what every transformation is compared with.

`benchmarks.support` compares with it too.

Written out so that JAX differentiates each line by itself, to any order. Shares no code with the
package. Shapes and policies as in oracle.py.
"""

import jax
import jax.numpy as jnp
from jax.lax import Precision


def attend(q, k, v, allowed=None, scale=None, score=None, sinks=None, factor=1):
    """out [*b t h e] and lse [*b t h]; `allowed` broadcasts to [*b h t s].

    score: of the scaled logits [*b h t s]. sinks: [h]. factor: of the weights after the softmax.
    """
    group = q.shape[-2] // k.shape[-2]
    k, v = (jnp.repeat(x, group, axis=-2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    raw = jnp.einsum("...thd,...shd->...hts", q, k, precision=Precision.HIGHEST)
    allowed = jnp.broadcast_to(True if allowed is None else allowed, raw.shape)
    scaled = raw * scale if score is None else score(raw * scale)
    logits = jnp.where(allowed, scaled, -jnp.inf)
    peak = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    if sinks is not None:
        sinks = sinks[:, None, None]
        peak = jnp.maximum(peak, jax.lax.stop_gradient(sinks))
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    grown = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits, 0) - peak), 0)
    total = grown.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - peak)
    live = total > 0
    total = jnp.where(live, total, 1)
    lse = jnp.where(live, peak + jnp.log(total), -jnp.inf)[..., 0]
    out = jnp.einsum(
        "...hts,...she->...the", grown / total * factor, v, precision=Precision.HIGHEST
    )
    return out, lse.swapaxes(-1, -2)

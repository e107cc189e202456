"""Ring attention in its plainest form, a peer to compare `jaxattn.sharded` with.

Queries stay; keys and values go round by `ppermute`; each visit is an online softmax over the whole
block of scores, left out where a causal mask hides all of it. Derivatives are JAX's own, of a scan
whose steps are computed again. No masks but causal, no scores, nothing to observe.

Source: Liu et al. 2023, "Ring attention with blockwise transformers", and MaxText's public design
of context parallelism, as functions of `jax.shard_map`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HIDDEN = -1e30  # a logit that is never seen


def attention(
    q: Float[Array, "b t h d"], k: Float[Array, "b t h d"], v: Float[Array, "b t h d"], axis: str
) -> Float[Array, "b t h d"]:
    """Causal, of what a device has; inside `jax.shard_map` over `axis`, in order."""
    n, me, t = jax.lax.axis_size(axis), jax.lax.axis_index(axis), q.shape[1]
    of_device = jnp.arange(t)

    def visit(state: Any, k: Array, v: Array, owner: Array) -> Any:
        mixed, peak, total = state
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        sees = (me * t + of_device)[:, None] >= owner * t + of_device
        logits = jnp.where(sees, logits, HIDDEN)
        top = jnp.maximum(peak, logits.max(-1))
        weights, kept = jnp.exp(logits - top[..., None]), jnp.exp(peak - top)
        mixed = mixed * kept[..., None] + jnp.einsum("bhqk,bkhd->bhqd", weights, v)
        return mixed, top, total * kept + weights.sum(-1)

    def step(carry: Any, i: Array) -> tuple[Any, None]:
        state, k, v = carry
        owner = (me - i) % n
        state = jax.lax.cond(owner > me, lambda state, *_: state, visit, state, k, v, owner)
        onward = [(j, (j + 1) % n) for j in range(n)]
        return (state, *jax.lax.ppermute((k, v), axis, onward)), None

    rows = jnp.zeros_like(q[..., 0]).swapaxes(1, 2)
    start = jnp.zeros_like(q).swapaxes(1, 2), rows + HIDDEN, rows
    ((mixed, _, total), _, _), _ = jax.lax.scan(jax.checkpoint(step), (start, k, v), jnp.arange(n))
    return (mixed / total[..., None]).swapaxes(1, 2)

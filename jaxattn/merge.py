"""Partial results over different keys, put together."""

import functools

import jax
import jax.numpy as jnp

from jaxattn._axes import Attended, accumulator


def merge(first: Attended, *others: Attended) -> Attended:
    """What `attend` over all the keys would give, from its results over disjoint sets of them.

    Sinks and dropout belong to one softmax: give sinks to one of the parts only.

    Args:
      first, others: results for the same queries, each over keys of its own.
    Returns:
      out in the dtype of `first.out` and lse of all the keys. Both are differentiable, through
      every out and every lse.
    Raises:
      ValueError: the results are not for the same queries.
    Source: Dao et al. 2022, section 3.1.
    """
    for other in others:
        if other.out.shape != first.out.shape or other.lse.shape != first.lse.shape:
            raise ValueError(
                f"merge takes results for the same queries, got out {first.out.shape} and "
                f"{other.out.shape}, lse {first.lse.shape} and {other.lse.shape}; attend with the "
                f"same q to different k and v"
            )
    parts = (first, *others)
    acc = accumulator(first.out.dtype)
    lse = [part.lse.astype(jnp.promote_types(acc, part.lse.dtype)) for part in parts]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, lse))
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    shares = [jnp.exp(x - peak) for x in lse]
    total = functools.reduce(jnp.add, shares)
    live = total > 0
    whole = jnp.where(live, total, 1)
    mixed = sum(share[..., None] * part.out for share, part in zip(shares, parts, strict=True))
    # NaN is not greater than 0, but is not the lse of a query that sees no key either.
    merged = jnp.where(total == 0, -jnp.inf, peak + jnp.log(whole))
    merged = jnp.where(jnp.isnan(total), total, merged)
    out = jnp.asarray(mixed) / jnp.where(jnp.isnan(total), total, whole)[..., None]
    return Attended(out.astype(first.out.dtype), merged)

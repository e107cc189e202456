"""Partial results over different keys, put together."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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


def add_sinks(
    out: Float[Array, "*b t h e"],
    peak: Float[Array, "*b t h"],
    log_total: Float[Array, "*b t h"],
    sinks: Float[Array, " h"],
) -> tuple[Float[Array, "*b t h e"], Float[Array, "*b t h"]]:
    """(out, lse) of a softmax whose denominator has exp(sink) added; lse = peak + log_total before.

    Source: Xiao et al. 2024, section 3.3; learnt for each head, as in OpenAI 2025, "gpt-oss".
    """
    blind = jnp.isneginf(peak)
    # In this order, so that a large peak takes no digits from the rest.
    above = jnp.where(blind, 0, sinks - jnp.where(blind, 0, peak) - log_total)
    out = out * jax.nn.sigmoid(-above)[..., None]
    lse = jnp.where(blind, sinks, peak + (log_total + jax.nn.softplus(above)))
    return out, lse

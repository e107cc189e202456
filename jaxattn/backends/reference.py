"""The textbook steps over every head, with the whole score matrix in memory: what is right."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn import steps
from jaxattn._axes import accumulator
from jaxattn._mask import Mask, Span
from jaxattn._problem import Problem


@dataclass(frozen=True)
class Reference:
    """`jaxattn.steps` mapped over heads. Memory grows with t x s; for checking and for reading."""

    def refuses(self, problem: Problem) -> str | None:
        """Why this backend cannot do a problem; None where it can."""
        del problem
        return None

    def run(self, problem: Problem) -> tuple[Array, Array]:
        """(out, lse) of a problem that is not empty."""
        q, k, v, scale, mask = problem
        sizes, acc = problem.sizes, accumulator(q.dtype)
        repeat = lambda x: jnp.repeat(x, sizes.h // problem.kv_heads, axis=-2)
        q, k, v = (x.astype(acc) for x in (q, repeat(k), repeat(v)))

        def one(q: Array, k: Array, v: Array, *index: Array) -> tuple[Array, Array]:
            allowed = _dense(mask.head(index[:-1], index[-1]), sizes.t, sizes.s)
            return one_head(q, k, v, scale, allowed)

        each = jax.vmap(one, in_axes=(1, 1, 1, *(None for _ in sizes.batch), 0), out_axes=1)
        for axis in reversed(range(len(sizes.batch))):
            index = [0 if i == axis else None for i in range(len(sizes.batch))]
            each = jax.vmap(each, in_axes=(0, 0, 0, *index, None))
        out, lse = each(q, k, v, *(jnp.arange(size) for size in (*sizes.batch, sizes.h)))
        return out.astype(problem.q.dtype), lse


def one_head(
    q: Float[Array, "t d"],
    k: Float[Array, "s d"],
    v: Float[Array, "s e"],
    scale: Float[Array, ""],
    allowed: Bool[Array, "t s"] | None,
) -> tuple[Float[Array, "t e"], Float[Array, " t"]]:
    """The steps of one head, with NaN and Inf kept from queries that may not see them.

    A product with a weight of 0 does not do that (0 · NaN is NaN), in neither direction. So the
    products run on finite numbers, and NaN is put in at the end where it is seen.
    """
    scaled = steps.scores(_finite(q), _finite(k), scale).scaled
    logits = steps.mask(scaled, allowed)
    weights = steps.weights(logits)
    seen = jnp.isfinite(logits)
    bad_logits = (seen & (_bad(q)[:, None] | _bad(k)[None, :])).any(axis=1)
    bad_values = steps.mix(seen.astype(v.dtype), (~jnp.isfinite(v)).astype(v.dtype)) > 0
    out = jnp.where(bad_logits[:, None] | bad_values, jnp.nan, steps.mix(weights, _finite(v)))
    return out, jnp.where(bad_logits, jnp.nan, steps.log_sum_exp(logits))


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _bad(x: Array) -> Array:
    """Whether there is a NaN or Inf in each row."""
    return ~jnp.isfinite(x).all(axis=1)


def _dense(mask: Mask, t: int, s: int) -> Bool[Array, "t s"] | None:
    allowed = mask.allows(Span(0, t), Span(0, s))
    return None if allowed is None else jnp.broadcast_to(allowed, (t, s))

"""`attention` and `attend`: check, choose a backend, run it over all heads."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import Attended, accumulator
from jaxattn._problem import Problem, check
from jaxattn.backends.auto import AUTO, Backend, choose
from jaxattn.backends.blockwise import Blockwise
from jaxattn.backends.reference import Reference
from jaxattn.masks import EVERYTHING, Mask


def attention(
    q: Float[Array, "*b t h d"],
    k: Float[Array, "*b s n d"],
    v: Float[Array, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    scale: float | Float[Array, ""] | None = None,
    backend: Backend = AUTO,
) -> Float[Array, "*b t h e"]:
    """Softmax attention: every query mixes the values of the keys it may see.

    Query head i reads key/value head i // (h // n). Logits, softmax and sums are at least float32.
    NaN and Inf in a key or value reach no query that may not see it.

    Args:
      q, k, v: queries, keys and values, of one floating point dtype.
      mask: which keys each query may see.
      scale: of the products q kᵀ; 1/√d where none is given. May be traced, and has a gradient.
      backend: how to compute it.
    Returns:
      The mixed values, in q's dtype. A query that may see no key gets 0, and gives no gradient.
    Raises:
      ValueError: the axes disagree, or the mask does not fit them or is ambiguous for t != s.
      TypeError: integer or mixed dtypes; something that is not a mask or a backend.
    Source: Vaswani et al. 2017, eq. 1; grouped heads, Ainslie et al. 2023.
    """
    return attend(q, k, v, mask=mask, scale=scale, backend=backend).out


def attend(
    q: Float[Array, "*b t h d"],
    k: Float[Array, "*b s n d"],
    v: Float[Array, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    scale: float | Float[Array, ""] | None = None,
    backend: Backend = AUTO,
) -> Attended:
    """`attention`, and with it the log-sum-exp of every query's logits.

    Takes and raises what `attention` does. Both results are differentiable, to any order, in q, k,
    v and scale.
    """
    problem = check(q, k, v, mask, scale)
    chosen = choose(backend, problem)
    if problem.is_empty:
        return _nothing(problem)
    return _run(chosen, problem)


@partial(jax.jit, static_argnums=0)
def _run(backend: Reference | Blockwise, problem: Problem) -> Attended:
    return Attended(*backend.run(problem))


def _nothing(problem: Problem) -> Attended:
    """The answer where there is no query or no key."""
    q, v = problem.q, problem.v
    lse = jnp.full(q.shape[:-1], -jnp.inf, accumulator(q.dtype))
    return Attended(jnp.zeros((*q.shape[:-1], v.shape[-1]), q.dtype), lse)

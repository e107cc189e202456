"""`attention` and `attend`: check, choose a backend, run it over all heads."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import Attended, accumulator
from jaxattn._problem import Problem, check
from jaxattn._score import Score
from jaxattn.backends.auto import AUTO, Backend, choose
from jaxattn.backends.blockwise import Blockwise
from jaxattn.backends.reference import Reference
from jaxattn.dropout import Dropout
from jaxattn.masks import EVERYTHING, Mask
from jaxattn.merge import add_sinks

Scoring: TypeAlias = Score | Callable[..., Array] | Sequence[Score | Callable[..., Array]]


def attention(
    q: Float[Array, "*b t h d"],
    k: Float[Array, "*b s n d"],
    v: Float[Array, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: float | Float[Array, ""] | None = None,
    sinks: Float[Array, " h"] | None = None,
    dropout: Dropout | None = None,
    backend: Backend = AUTO,
) -> Float[Array, "*b t h e"]:
    """Softmax attention: every query mixes the values of the keys it may see.

    Query head i reads key/value head i // (h // n). Logits, softmax and sums are at least float32.
    NaN and Inf in a key or value reach no query that may not see it.

    Args:
      q, k, v: queries, keys and values, of one floating point dtype.
      mask: which keys each query may see.
      score: what is done to the scaled logits before the mask: `Bias`, `ALiBi`, `RelativeBias`,
        `SoftCap`, or a function (logit, at) -> logit of one pair, where `at.batch`, `at.head`,
        `at.q` and `at.k` say which; or a sequence of them, applied from left to right. Every array
        in it, also those that a function closes over, has a gradient.
      scale: of the products q kᵀ; 1/√d where none is given. May be traced, and has a gradient.
      sinks: a logit for each query head that joins the denominator of the softmax, and lse, only.
      dropout: of the weights, after the softmax.
      backend: how to compute it.
    Returns:
      The mixed values, in q's dtype. A query that may see no key gets 0, and gives no gradient.
    Raises:
      ValueError: the axes disagree; a mask, score or sinks do not fit, or are ambiguous for t != s.
      TypeError: integer or mixed dtypes; something that is not a mask, a score or a backend.
    Source: Vaswani et al. 2017, eq. 1; grouped heads, Ainslie et al. 2023.
    """
    return attend(
        q,
        k,
        v,
        mask=mask,
        score=score,
        scale=scale,
        sinks=sinks,
        dropout=dropout,
        backend=backend,
    ).out


def attend(
    q: Float[Array, "*b t h d"],
    k: Float[Array, "*b s n d"],
    v: Float[Array, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: float | Float[Array, ""] | None = None,
    sinks: Float[Array, " h"] | None = None,
    dropout: Dropout | None = None,
    backend: Backend = AUTO,
) -> Attended:
    """`attention`, and with it the log-sum-exp of every query's logits and sink.

    Takes and raises what `attention` does. Both results are differentiable, to any order, in q, k,
    v, scale, sinks and every array in `score`.
    """
    problem = check(q, k, v, mask, score, scale, sinks, dropout)
    return run(choose(backend, problem), problem)


@partial(jax.jit, static_argnums=0)
def run(backend: Reference | Blockwise, problem: Problem) -> Attended:
    """The answer to a checked problem, as one compiled function."""
    q, v, sinks = problem.q, problem.v, problem.sinks
    if problem.is_empty:  # no query, or no key to answer with
        nothing = jnp.zeros(q.shape[:-1], accumulator(q.dtype))
        out, peak, log_total = jnp.zeros((*q.shape[:-1], v.shape[-1])), nothing - jnp.inf, nothing
    else:
        out, peak, log_total = backend.run(problem)
    if sinks is None:
        return Attended(out.astype(q.dtype), peak + log_total)
    out, lse = add_sinks(out, peak, log_total, sinks)
    return Attended(out.astype(q.dtype), lse)

"""`attention` and `attend`: check, choose a backend, run it over all heads."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, Attended, accumulator
from jaxattn._function import Compiled, keep
from jaxattn._linear import linear
from jaxattn._mesh import sharded_as
from jaxattn._observation import (
    QUERY,
    Observation,
    Watch,
    check_observations,
    finish,
    states_of_no_pairs,
)
from jaxattn._problem import Problem, check
from jaxattn._score import Score
from jaxattn._softmax import LogSumExp
from jaxattn._trace import At
from jaxattn._varying import vary, varying
from jaxattn.backends.protocol import Backend, Call
from jaxattn.backends.rule import answer
from jaxattn.backends.select import AUTO, check_backend
from jaxattn.dropout import Dropout
from jaxattn.masks import EVERYTHING, Mask
from jaxattn.positions import Frame, Given

Pairwise: TypeAlias = Callable[[Array, At], ArrayLike]
"""A function (logit, at) -> logit of one pair."""

Scoring: TypeAlias = Score | Pairwise | Sequence[Score | Pairwise]
"""What `score=` takes."""


def attention(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
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
      positions: where the queries and keys are, for all that goes by order or distance:
        `Positions(q=..., k=...)`, each a start or a position for every token; or `END`, where the
        queries are the last of the keys. May be left out if t == s; both then start at 0.
      dropout: of the weights, after the softmax.
      backend: how to compute it.
    Returns:
      The mixed values, in q's dtype. A query that may see no key gets 0, and gives no gradient.
    Raises:
      ValueError: the axes disagree; a mask, score, sinks or positions do not fit; something goes by
        positions, which are not told, and t != s.
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
        positions=positions,
        dropout=dropout,
        backend=backend,
    ).out


def attend(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
) -> Attended:
    """`attention`, and with it the log-sum-exp of every query's logits and sink, and observations.

    Takes and raises what `attention` does. The results are differentiable, to any order, in q, k,
    v, scale, sinks and every array in `score`; an observation where its mathematics is.

    Args:
      observe: what to see of the weights, by name, such as {"entropy": jaxattn.observe.Entropy()}.
        Several share the work. Observing changes neither out nor lse, nor how they are computed,
        and takes no memory that grows with t · s. Out and lse are the same to the bit, whatever is
        observed. But inside `jax.jit` XLA rounds out otherwise where nothing uses lse: `attention`
        there agrees with `attend` to one rounding of a sum.

    Under `jax.checkpoint` with a policy such as `save_only_these_names("attention_out",
    "attention_lse")` a `Blockwise` pass back does not compute the forward pass again; out is kept
    in the accumulator's dtype. `jax.linear_transpose` works for out, over v.

    Raises:
      TypeError: also, something in `observe` that is not an observation.
    """
    checked = check(q, k, v, mask, score, scale, sinks, dropout, positions)
    return solve(*checked, observe, backend)


def solve(
    problem: Problem, frame: Frame, observe: Mapping[str, Observation] | None, backend: Backend
) -> Attended:
    """`attend` of a problem that is checked."""
    observations = check_observations(observe, frame, problem.q.dtype)
    watched = tuple(observations.values())
    problem, watched = vary((problem, watched), varying(problem, watched))
    check_backend(backend).choose(Call(problem, watched))
    out, lse, states, live = keep(watched, run(backend, problem, watched))
    return Attended(out, lse, finish(observations, states, live))


@Compiled
def run(
    backend: Backend, problem: Problem, watched: Watch
) -> tuple[Array, Array, tuple[Any, ...], Bool[Array, "*b t h"]]:
    """(out, lse, states of observations, which queries see any key), as one compiled function."""
    results = QUERY, QUERY, tuple(each.per for each in watched), QUERY
    compute = sharded_as(problem.q, partial(_run, backend), results)
    of_values = lambda rest, v: compute(rest[0]._replace(v=v), rest[1])
    return linear(of_values, (problem._replace(v=None), watched), problem.v)


def _run(
    backend: Backend, problem: Problem, watched: Watch
) -> tuple[Array, Array, tuple[Any, ...], Bool[Array, "*b t h"]]:
    q, v, sinks, sizes = problem.q, problem.v, problem.rule.sinks, problem.sizes
    acc = accumulator(q.dtype)
    if problem.is_empty:  # no query, or no key to answer with
        nothing = jnp.zeros(q.shape[:-1], acc)
        out, peak, log_total = jnp.zeros((*q.shape[:-1], v.shape[-1])), nothing - jnp.inf, nothing
        states = states_of_no_pairs(sizes, watched, acc)
    else:
        out, peak, log_total, states = answer(backend, problem, watched)
    lse = LogSumExp(peak, log_total)
    if sinks is not None:
        lse, share = lse.with_sink(sinks.logits)
        out = out * share[..., None]
    return out.astype(q.dtype), lse.value, states, ~jnp.isneginf(peak)

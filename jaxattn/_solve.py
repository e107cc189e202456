"""A call that is checked: choose a backend, run it over all heads."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from jaxattn._axes import Attended, accumulator
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
from jaxattn._problem import Problem
from jaxattn._score import Score
from jaxattn._softmax import LogSumExp
from jaxattn._trace import At
from jaxattn._varying import vary, varying
from jaxattn.backends.protocol import Backend, Call
from jaxattn.backends.rule import answer
from jaxattn.backends.select import check_backend
from jaxattn.positions import Frame

Pairwise: TypeAlias = Callable[[Array, At], ArrayLike]
"""A function (logit, at) -> logit of one pair."""

Scoring: TypeAlias = Score | Pairwise | Sequence[Score | Pairwise]
"""What `score=` takes."""


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

"""Observations from the lse of any kernel."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, accumulator
from jaxattn._content import as_array
from jaxattn._function import Compiled, keep
from jaxattn._mask import Mask
from jaxattn._mesh import sharded_as
from jaxattn._observation import (
    Observation,
    Watch,
    check_observations,
    finish,
    states_of_no_pairs,
)
from jaxattn._problem import Problem, check
from jaxattn._varying import vary, varying
from jaxattn.attend import Scoring
from jaxattn.backends.protocol import Backend, Call
from jaxattn.backends.rule import observed
from jaxattn.backends.select import AUTO, check_backend
from jaxattn.masks import EVERYTHING
from jaxattn.positions import Given


def observe(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    lse: Float[AnyArray, "*b t h"],
    observe: Mapping[str, Observation],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    positions: Given = None,
    backend: Backend = AUTO,
) -> dict[str, Any]:
    """What `attend(..., observe=...)` shows, of the weights exp(logits - lse).

    Args:
      q, k, mask, score, scale, positions: as in `attend`, as the kernel had them.
      lse: of every query, in nats, with the sinks in it if there were any. It counts as a function
        of its own: to differentiate through it too, use an lse that has a gradient.
      observe: observations by name.
      backend: how to compute it.
    Returns:
      What each observation shows, by name.
    Raises:
      ValueError: also, lse is not of the queries' shape; Unsupported, by a backend that observes on
        the way only.
    """
    problem, frame = check(q, k, k, mask, score, scale, None, None, positions)
    lse = as_array(lse, "lse")
    if lse.shape != problem.q.shape[:-1]:
        raise ValueError(
            f"lse has a number for each query and head, {problem.q.shape[:-1]} for q "
            f"{problem.q.shape}, got shape {lse.shape}; transpose it to [*b t h]"
        )
    observations = check_observations(observe, frame, problem.q.dtype)
    watched = tuple(observations.values())
    lse = lse.astype(accumulator(problem.q.dtype))
    axes = varying(problem, watched, lse)
    problem, watched, lse = vary((problem, watched, lse), axes)
    check_backend(backend).choose(Call(problem, watched, from_lse=True))
    states = keep(watched, _run(backend, problem, watched, lse))
    return finish(observations, states, ~jnp.isneginf(lse))


@Compiled
def _run(backend: Backend, problem: Problem, watched: Watch, lse: Array) -> tuple[Any, ...]:
    if problem.is_empty:
        return states_of_no_pairs(problem.sizes, watched, lse.dtype)
    compute = sharded_as(problem.q, partial(observed, backend), tuple(each.per for each in watched))
    return compute(problem, watched, lse)

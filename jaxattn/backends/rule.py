"""Attention by any backend, with the rule of its derivatives.

The rule knows no backend. Which one makes the results, which the tangents and which the gradients
is settled where each of these is lowered.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxattn._axes import accumulator
from jaxattn._lowering import Target, lowered
from jaxattn._observation import Watch, states_of_no_pairs
from jaxattn._problem import Problem
from jaxattn._value import Zero
from jaxattn.backends.protocol import Backend, Call, Moves, Moving, Results


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def answer(backend: Backend, problem: Problem, watched: Watch) -> Results:
    """The results, by the backend that `backend` chooses. No axis may be empty."""
    return lowered(_Results(backend), problem, watched, like=_like(problem, watched))


def tangents_of(backend: Backend, given: tuple[Problem, Watch, Results], moving: Moving) -> Any:
    """The tangents of results that there are already: `Moves`, with None of integers alone."""
    results = given[2]
    like = Moves(results.out, results.log_total, _real(results.states))
    return lowered(_Tangent(backend), given, moving, like=like, linear=True)


def observed(
    backend: Backend,
    problem: Problem,
    watched: Watch,
    lse: Float[Array, "*b t h"],
) -> tuple[Any, ...]:
    """The states of observations, from an lse."""
    like = _like(problem, watched).states
    return lowered(_Observed(backend), problem, watched, lse, like=like)


@partial(answer.defjvp, symbolic_zeros=True)
def _answer_jvp(backend: Backend, primals: Any, tangents: Any) -> tuple[Results, Results]:
    problem, watched = primals
    results = _named(answer(backend, problem, watched))
    moving = jax.tree.map(_zero_if_still, tangents, is_leaf=_is_symbolic)
    moves = tangents_of(backend, (problem, watched, results), moving)
    still: Any = lambda x: SymbolicZero(jax.typeof(x).to_tangent_aval())
    fill = lambda x, dx: still(x) if dx is None else dx
    dstates = jax.tree.map(fill, results.states, moves.states)
    return results, Results(moves.out, still(results.peak), moves.log_total, dstates)


def _named(results: Results) -> Results:
    """With the names by which a policy of `jax.checkpoint` keeps what a derivative needs."""
    return results._replace(
        out=checkpoint_name(results.out, "attention_out"),
        peak=checkpoint_name(results.peak, "attention_lse"),
        log_total=checkpoint_name(results.log_total, "attention_lse"),
    )


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _zero_if_still(x: Any) -> Any:
    return Zero() if _is_symbolic(x) or x.dtype == jax.dtypes.float0 else x


def _real(states: Any) -> Any:
    """The states with None for arrays of integers, which have no tangents."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, states)


def _like(problem: Problem, watched: Watch) -> Results:
    """The shapes of the results."""
    q, v, acc = problem.q, problem.v, accumulator(problem.q.dtype)
    of_query = jax.ShapeDtypeStruct(q.shape[:-1], acc)
    out = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), acc)
    states = jax.eval_shape(partial(states_of_no_pairs, problem.sizes, watched, acc))
    return Results(out, of_query, of_query, states)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _By:
    """What a backend makes."""

    backend: Backend

    @property
    def over_devices(self) -> bool:
        return self.backend.OVER_DEVICES


@dataclass(frozen=True)
class _Results(_By):
    def __call__(self, target: Target, problem: Problem, watched: Any) -> Results:
        call = Call(problem, watched, platform=target.platform, order=target.order)
        return self.backend.choose(call).run(problem, watched)


@dataclass(frozen=True)
class _Observed(_By):
    def __call__(self, target: Target, problem: Problem, watched: Any, lse: Array) -> Any:
        call = Call(problem, watched, True, target.platform, target.order)
        return self.backend.choose(call).observe(problem, watched, lse, target.order)


@dataclass(frozen=True)
class _Tangent(_By):
    """Linear in the last argument."""

    def __call__(self, target: Target, given: Any, moving: Moving) -> Moves:
        problem, watched, results = given
        moves = self._chosen(target, given).tangent(problem, watched, results, moving)
        return moves._replace(states=_real(moves.states))

    def transpose(self, target: Target, given: Any, moving: Moving, cotangents: Moves) -> Any:
        if target.order:  # JAX is to differentiate it
            return NotImplemented
        problem, watched, results = given
        chosen = self._chosen(target, given)
        return chosen.transpose(problem, watched, results, moving, cotangents)

    def _chosen(self, target: Target, given: Any) -> Backend:
        problem, watched, _ = given
        call = Call(problem, watched, platform=target.platform, order=target.order + 1)
        return self.backend.choose(call)

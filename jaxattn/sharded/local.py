"""What a device does: `attend` inside `jax.shard_map`, of the queries and keys that it has."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from jaxattn._axes import Attended
from jaxattn._function import Compiled, keep
from jaxattn._observation import (
    HEAD,
    Observation,
    Share,
    Watch,
    check_observations,
    states_of_no_pairs,
)
from jaxattn._problem import Problem, Whole, check
from jaxattn._solve import run
from jaxattn._varying import vary, varying
from jaxattn.backends.protocol import Backend, Call
from jaxattn.backends.rule import observed
from jaxattn.backends.select import check_backend
from jaxattn.sharded.backend import Round
from jaxattn.sharded.heads import exchange, restore, restore_states
from jaxattn.sharded.observing import over_devices
from jaxattn.sharded.ways import Axes


def attend_here(
    axes: Axes,
    arrays: tuple[Array, Array, Array],
    rule: tuple[Any, ...],
    observe: Mapping[str, Observation] | None,
    backend: Backend,
) -> Attended:
    """`attend` of what a device has. rule: as `check` takes it."""
    q, k, _ = arrays
    t, s = q.shape[-3], k.shape[-3]
    axes.check("queries", t, axes.order.parts)
    axes.check("keys", s, axes.order.parts)
    whole = Whole(t * axes.count, s * axes.count, axes.tokens(t), axes.tokens(s))
    problem, frame = check(*arrays, *rule, whole=whole)
    observations = check_observations(observe, frame, problem.q.dtype)
    watched = tuple(observations.values())
    out, lse, states, live = solve(axes, problem, watched, check_backend(backend))
    share = Share(axes.tokens(t), lambda x: jax.lax.psum(x, axes.names))
    pairs = zip(observations.items(), states, strict=True)
    return Attended(out, lse, {n: each.finish_part(x, live, share) for (n, each), x in pairs})


def solve(
    axes: Axes, problem: Problem, watched: Watch, backend: Backend
) -> tuple[Array, Array, tuple[Any, ...], Array]:
    """As `jaxattn.attend.run`, of what a device has. The states of heads are those of all pairs."""
    names = varying(problem, watched)
    names |= frozenset(axes.names if names else ())
    problem, watched = vary((problem, watched), names)
    here, watch = problem, watched
    if axes.heads is not None:
        here, watch = vary(exchange(axes.heads, axes.groups, (problem, watched)), names)
    if axes.ring is None:
        backend.choose(Call(here, watch))
        out, lse, states, live = keep(watch, run(backend, here, watch))
    else:
        axes.check_pieces(here.sizes.s)
        ring = Round(axes.ring, axes.order, axes.pieces, backend)
        ring.choose(Call(here, watch))
        out, lse, _, live = run(ring, here, ())
        states = keep(watch, observe_again(ring, here, watch, lse))
        pairs = zip(watch, states, strict=True)
        states = tuple(
            over_devices(ring.axis, each, x) if each.per is HEAD else x for each, x in pairs
        )
    if axes.heads is not None:
        lead = len(problem.sizes.batch)
        out, lse, live = restore(axes.heads, (out, lse, live), lead)
        states = restore_states(axes.heads, axes.groups, watched, states, problem)
    return out, lse, states, live


@Compiled
def observe_again(ring: Backend, problem: Problem, watched: Watch, lse: Array) -> tuple[Any, ...]:
    """The states of observations, from the lse of all keys and of the sink."""
    if not watched:
        return ()
    if problem.is_empty:
        return states_of_no_pairs(problem.sizes, watched, lse.dtype)
    bare = problem._replace(rule=problem.rule._replace(sinks=None))
    return observed(ring, bare, watched, lse)

"""The tangents of all results: those of out and lse by tangent.py, of observations by sweep.py."""

from typing import Any

import jax
from jaxtyping import Array

from jaxattn._finite import finite
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._softmax import LogSumExp
from jaxattn._value import Zero, push
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.sweep import sweep
from jaxattn.backends.blockwise.tangent import tangent
from jaxattn.backends.blockwise.walk import Walk
from jaxattn.backends.protocol import Moves, Moving, Results


def moves(walk: Walk, problem: Problem, watched: Watch, results: Results, moving: Moving) -> Moves:
    """The tangents of the results of a problem with one batch axis."""
    (q, k, v, rule), (dproblem, dwatched) = problem, moving
    hits, lse = walk.find_hits(rule.mask, held=True), results.lse
    # In the accumulator's dtype as a whole: what flows back is a sum over tiles.
    wide = lambda x: None if isinstance(x, Zero) else x.astype(results.out.dtype)
    dscore = dproblem.rule.score if jax.tree.leaves(dproblem.rule.score) else None
    dq, dk, dv, dscale = map(wide, (*dproblem[:3], dproblem.rule.scale))
    along = tile.Tangents(dq, dk, dv, dscale, dscore)
    mixed, dlse = tangent(walk, q, k, v, rule, hits, lse, along)
    dout = mixed - dlse[..., None] * finite(results.out)
    if not watched:
        return Moves(dout, dlse, ())

    def states(q: Array, k: Array, rule: Any, watched: Watch, log_total: Array) -> Any:
        return sweep(walk, q, k, rule, watched, hits, LogSumExp(lse.peak, log_total))

    # As the derivative of the second sweep, also where there was none.
    given = q, k, rule, watched, lse.log_total
    return Moves(dout, dlse, push(states, given, (*dproblem[:2], dproblem.rule, dwatched, dlse)))

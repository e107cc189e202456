"""Exact attention in linear memory, in plain JAX, on every platform and with every derivative."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxattn._axes import ceil_div
from jaxattn._content import as_int, is_whole
from jaxattn._finite import finite
from jaxattn._lowering import platform
from jaxattn._mask import BoundMask
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._softmax import LogSumExp
from jaxattn._value import Zero
from jaxattn.backends.blockwise import scheduled_forward
from jaxattn.backends.blockwise.cost import listed_pairs, visited_pairs
from jaxattn.backends.blockwise.forward import forward
from jaxattn.backends.blockwise.moves import moves
from jaxattn.backends.blockwise.plan import make_plan, plan_for_accelerator, whole_rows
from jaxattn.backends.blockwise.scheduled_backward import backward
from jaxattn.backends.blockwise.sweep import sweep
from jaxattn.backends.blockwise.walk import Walk
from jaxattn.backends.protocol import Backend, Call, Cost, Moves, Moving, Results


@dataclass(frozen=True)
class Blockwise(Backend):
    """A fold over tiles of q_block queries by k_block keys; None lets the plan choose.

    The result does not depend on the blocks beyond rounding.
    """

    q_block: int | None = None
    k_block: int | None = None

    def __post_init__(self) -> None:
        for name in ("q_block", "k_block"):
            block = as_int(getattr(self, name))
            object.__setattr__(self, name, block)
            if block is not None and (not is_whole(block) or block < 1):
                raise ValueError(
                    f"a block is a whole number of positions, at least 1, or None for the plan's "
                    f"choice; got {name}={block!r}"
                )

    def refuses(self, call: Call) -> str | None:
        sizes = call.problem.sizes
        if isinstance(sizes.t, int) and isinstance(sizes.s, int):
            return None
        return (
            f"tiles are planned for known lengths, got t={sizes.t} and s={sizes.s}; export one "
            f"function for each length, or hold whole matrices"
        )

    def forward_walk(self, problem: Problem) -> Walk:
        """How the score matrices of a problem are gone through forward, on a CPU."""
        walk = self.lse_walk(problem)
        if self.q_block is not None or self.k_block is not None:
            return walk
        args = problem.rule.mask, problem.sizes, problem.kv_heads
        return walk._replace(plan=whole_rows(walk.plan, *args))

    def lse_walk(self, problem: Problem) -> Walk:
        """The same where lse is known already: for tangents and observations."""
        sizes, n = problem.sizes, problem.kv_heads
        plan = make_plan(problem.rule.mask, sizes, n, platform(), self.q_block, self.k_block)
        return Walk(plan, sizes, n)

    def run(self, problem: Problem, watched: Watch) -> Results:
        """Where a row takes several tiles its lse is known only after them, and the observations
        take a second sweep.
        """
        q, k, v, rule = flat(problem)
        at_once = not watched
        if platform() != "cpu":
            made = *scheduled_forward.forward(self.listed(problem), q, k, v, rule), ()
        else:
            walk = self.forward_walk(problem)
            at_once = at_once or walk.plan.k_tiles == 1
            hits = walk.find_hits(rule.mask)
            made = forward(walk, q, k, v, rule, hits, watched if at_once else ())
        results = Results(*made)
        if not at_once:
            again = self.lse_walk(problem)
            hits = again.find_hits(rule.mask, held=True)
            states = sweep(again, q, k, rule, watched, hits, results.lse)
            results = results._replace(states=states)
        return unflat(results, problem.sizes.batch)

    def listed(self, problem: Problem) -> Walk:
        """The walk whose tiles are listed, on an accelerator."""
        sizes, n, mask = problem.sizes, problem.kv_heads, problem.rule.mask
        plan = plan_for_accelerator(mask, sizes, n, self.q_block, self.k_block)
        return Walk(plan, sizes, n)

    def observe(
        self, problem: Problem, watched: Watch, lse: Array, order: int = 0
    ) -> tuple[Any, ...]:
        walk, lead = self.lse_walk(problem), problem.sizes.batch
        q, k, _, rule = flat(problem)
        lse = one_axis(lse, len(lead))
        # A peak, which counts as a constant, and the rest.
        peak = jax.lax.stop_gradient(lse)
        parts = LogSumExp(peak, jnp.where(jnp.isneginf(peak), 0, lse - peak))
        hits = walk.find_hits(rule.mask, held=True)
        return unflat(sweep(walk, q, k, rule, watched, hits, parts), lead)

    def tangent(self, problem: Problem, watched: Watch, results: Results, moving: Moving) -> Moves:
        walk, lead = self.lse_walk(problem), problem.sizes.batch
        results = jax.tree.map(lambda x: one_axis(x, len(lead)), results._replace(states=()))
        moving = flat(moving[0]), moving[1]
        return unflat(moves(walk, flat(problem), watched, results, moving), lead)

    def transpose(
        self,
        problem: Problem,
        watched: Watch,
        results: Results,
        moving: Moving,
        cotangents: Moves,
    ) -> Any:
        """On an accelerator, where no observation has a cotangent; else JAX makes it."""
        if platform() == "cpu" or jax.tree.leaves((moving[1], cotangents.states)):
            return NotImplemented
        of_queries = pulled_back(problem, results, cotangents)
        dscore = moving[0].rule.score
        sums = backward(self.listed(problem), *flat(problem), dscore, *of_queries)
        return as_asked(problem, moving, sums[:3], sums.scale, sums.score)

    def cost(self, problem: Problem, mask: BoundMask, watched: Watch) -> Cost:
        listed = platform() != "cpu"
        walk = self.listed(problem) if listed else self.forward_walk(problem)
        plan, visited, flops = walk.plan, None, None
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mask)):
            visited, pairs = (listed_pairs if listed else visited_pairs)(walk, mask)
            flops = 2 * pairs * (problem.q.shape[-1] + problem.v.shape[-1])
        per_head = plan.q_blocks * ceil_div(problem.sizes.s, plan.k_block)
        return Cost(
            heads=plan.heads,
            batch=plan.batch,
            q_block=plan.q_block,
            k_block=plan.k_block,
            visited=visited,
            tiles=per_head * walk.batches * problem.sizes.h,
            flops=flops,
            second_sweep=bool(watched) and (listed or plan.k_tiles > 1),
        )


class Forward(Backend):
    """Base of backends that have their own way to make results: the rest is made as `Blockwise()`
    makes it, from their lse, but for what they override."""

    def observe(
        self, problem: Problem, watched: Watch, lse: Float[Array, "*b t h"], order: int = 0
    ) -> tuple[Any, ...]:
        return Blockwise().observe(problem, watched, lse, order)

    def tangent(self, problem: Problem, watched: Watch, results: Results, moving: Moving) -> Moves:
        return Blockwise().tangent(problem, watched, results, moving)

    def transpose(
        self,
        problem: Problem,
        watched: Watch,
        results: Results,
        moving: Moving,
        cotangents: Moves,
    ) -> Any:
        return Blockwise().transpose(problem, watched, results, moving, cotangents)


def pulled_back(
    problem: Problem, results: Results, cotangents: Moves
) -> tuple[LogSumExp, Array, Array]:
    """(lse, the cotangent of out, that of lse less what out takes of it), with one batch axis."""
    zeros = lambda x, like: jnp.zeros(like.shape, like.dtype) if x is None else x
    g = zeros(cotangents.out, results.out)
    dlse = zeros(cotangents.log_total, results.log_total)
    dlse = dlse - jnp.sum(g * finite(results.out), axis=-1)
    lead = len(problem.sizes.batch)
    return jax.tree.map(lambda x: one_axis(x, lead), (results.lse, g, dlse))


def as_asked(problem: Problem, moving: Moving, made: Any, scale: Any, score: Any) -> Moving:
    """Gradients in the places of what moves. made: of q, k and v, with one batch axis."""
    asked, lead = moving[0], problem.sizes.batch
    pairs = zip((*asked[:3], asked.rule.scale), (*unflat(made, lead), scale), strict=True)
    dq, dk, dv, dscale = (x if isinstance(x, Zero) else dx.astype(x.dtype) for x, dx in pairs)
    # Sinks move, perhaps, but none of these results with them.
    still = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), asked.rule.sinks)
    rule = asked.rule._replace(scale=dscale, score=score, sinks=still)
    return asked._replace(q=dq, k=dk, v=dv, rule=rule), moving[1]


def flat(problem: Problem) -> Problem:
    """The problem, or tangents of it, with all its batch axes in q, k and v as one."""
    fit = lambda x: x if isinstance(x, Zero) else one_axis(x, x.ndim - 3)
    return problem._replace(q=fit(problem.q), k=fit(problem.k), v=fit(problem.v))


def one_axis(x: Array, lead: int) -> Array:
    """x with its first `lead` axes as one."""
    return x.reshape(math.prod(x.shape[:lead]), *x.shape[lead:])


def unflat(tree: Any, lead: tuple[int, ...]) -> Any:
    """The tree with the batch axes again."""
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), tree)

"""Exact attention in linear memory, in plain JAX, on every platform and with every derivative."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from jaxattn._axes import ceil_div
from jaxattn._mask import BoundMask
from jaxattn._observation import BoundObservation
from jaxattn._problem import Problem
from jaxattn._softmax import LogSumExp
from jaxattn._value import as_int, is_whole
from jaxattn.backends.blockwise.cost import visited_pairs
from jaxattn.backends.blockwise.forward import forward
from jaxattn.backends.blockwise.plan import make_plan, whole_rows
from jaxattn.backends.blockwise.rule import Folded, Hits, Passes, fold
from jaxattn.backends.blockwise.sweep import sweep
from jaxattn.backends.blockwise.walk import Walk
from jaxattn.backends.protocol import Backend, Call, Cost


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

    def forward(self, problem: Problem) -> Walk:
        """How the score matrices of a problem are gone through forward."""
        return self._forward(problem, self.tangent(problem))

    def _forward(self, problem: Problem, tangent: Walk) -> Walk:
        if self.q_block is not None or self.k_block is not None:
            return tangent
        args = problem.rule.mask, problem.sizes, problem.kv_heads, jax.default_backend()
        return tangent._replace(plan=whole_rows(tangent.plan, *args))

    def tangent(self, problem: Problem) -> Walk:
        """As `forward`, in the tangent rule and where observations are made from lse."""
        sizes, n, platform = problem.sizes, problem.kv_heads, jax.default_backend()
        plan = make_plan(problem.rule.mask, sizes, n, platform, self.q_block, self.k_block)
        return Walk(plan, sizes, n)

    def run(self, problem: Problem, watched: tuple[BoundObservation, ...]) -> Folded:
        tangent = self.tangent(problem)
        walk = self._forward(problem, tangent)
        hits = walk.find_hits(problem.rule.mask)
        return derived(Forward(walk, tangent), problem, watched, tangent, hits)

    def observe(
        self, problem: Problem, watched: tuple[BoundObservation, ...], lse: Array
    ) -> tuple[Any, ...]:
        sizes, walk = problem.sizes, self.tangent(problem)
        flat = lambda x, n: x.reshape(math.prod(sizes.batch), *x.shape[-n:])
        q, k, lse = flat(problem.q, 3), flat(problem.k, 3), flat(lse, 2)
        # A peak, which counts as a constant, and the rest.
        peak = jax.lax.stop_gradient(lse)
        parts = LogSumExp(peak, jnp.where(jnp.isneginf(peak), 0, lse - peak))
        hits = walk.find_hits(problem.rule.mask, held=True)
        states = sweep(walk, q, k, problem.rule, watched, hits, parts)
        return jax.tree.map(lambda x: x.reshape(*sizes.batch, *x.shape[1:]), states)

    def cost(
        self, problem: Problem, mask: BoundMask, watched: tuple[BoundObservation, ...]
    ) -> Cost:
        walk, visited, flops = self.forward(problem), None, None
        plan = walk.plan
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mask)):
            visited, pairs = visited_pairs(walk, mask)
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
            second_sweep=bool(watched) and plan.k_tiles > 1,
        )


@dataclass(frozen=True)
class Forward:
    """The forward pass of `Blockwise`, as the rule of derivatives takes it."""

    walk: Walk
    tangent: Walk

    def __call__(self, q: Array, k: Array, v: Array, rule: Any, watched: Any, hits: Hits) -> Folded:
        """Where a row takes several tiles its lse is known only after them, and the observations
        take a second sweep.
        """
        if self.walk.plan.k_tiles == 1 or not watched:
            return Folded(*forward(self.walk, q, k, v, rule, hits.forward, watched))
        out, peak, log_total, _ = forward(self.walk, q, k, v, rule, hits.forward, ())
        lse = LogSumExp(peak, log_total)
        states = sweep(self.tangent, q, k, rule, watched, hits.tangent, lse)
        return Folded(out, peak, log_total, states)


def derived(
    forward: Callable[..., Folded],
    problem: Problem,
    watched: tuple[BoundObservation, ...],
    tangent: Walk | None = None,
    hits: Array | None = None,
) -> Folded:
    """What a forward pass gives for a problem, over its batch axes, with every derivative.

    forward: any pass (q, k, v, rule, watched, hits) -> `Folded`, with one batch axis. It is never
      differentiated itself. Needs equality and a hash.
    tangent: the walk of the rule; planned for the sizes if not given.
    hits: what the pass has found out of the mask for itself, if anything.
    """
    sizes, tangent = problem.sizes, tangent or Blockwise().tangent(problem)
    flat = lambda x: x.reshape(math.prod(sizes.batch), *x.shape[-3:])
    q, k, v = (flat(x) for x in (problem.q, problem.k, problem.v))
    found = Hits(hits, tangent.find_hits(problem.rule.mask, held=True))
    folded = fold(Passes(forward, tangent), q, k, v, problem.rule, watched, found)
    return jax.tree.map(lambda x: x.reshape(*sizes.batch, *x.shape[1:]), folded)

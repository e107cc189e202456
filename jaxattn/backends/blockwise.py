"""Exact attention in linear memory, in plain JAX, on every platform and with every derivative."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._problem import Problem
from jaxattn._value import as_int, is_whole
from jaxattn.kernels.fold import Folded, Hits, Walks, fold
from jaxattn.kernels.plan import make_plan, whole_rows
from jaxattn.kernels.sweep import sweep
from jaxattn.kernels.tile import LogSumExp
from jaxattn.kernels.walk import Walk
from jaxattn.kernels.watch import Watch


@dataclass(frozen=True)
class Blockwise:
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

    def refuses(self, problem: Problem) -> str | None:
        """Why this backend cannot do a problem; None where it can."""
        sizes = problem.sizes
        if isinstance(sizes.t, int) and isinstance(sizes.s, int):
            return None
        return (
            f"tiles are planned for known lengths, got t={sizes.t} and s={sizes.s}; export one "
            f"function for each length, or hold whole matrices"
        )

    def walks(self, problem: Problem) -> Walks:
        """How the score matrices of a problem are gone through, forward and back."""
        sizes, n, platform = problem.sizes, problem.kv_heads, jax.default_backend()
        plan = make_plan(problem.rule.mask, sizes, n, platform, self.q_block, self.k_block)
        tangent = Walk(plan, sizes, n)
        if self.q_block is None and self.k_block is None:
            plan = whole_rows(plan, problem.rule.mask, sizes, n, platform)
        return Walks(Walk(plan, sizes, n), tangent)

    def run(self, problem: Problem, watched: Watch) -> Folded:
        """The answer to a problem that is not empty, over its batch axes."""
        sizes, walks, mask = problem.sizes, self.walks(problem), problem.rule.mask
        flat = lambda x: x.reshape(math.prod(sizes.batch), *x.shape[-3:])
        q, k, v = (flat(x) for x in (problem.q, problem.k, problem.v))
        hits = Hits(walks.forward.find_hits(mask), walks.tangent.find_hits(mask, held=True))
        folded = fold(walks, q, k, v, problem.rule, watched, hits)
        return jax.tree.map(lambda x: x.reshape(*sizes.batch, *x.shape[1:]), folded)

    def observe(self, problem: Problem, watched: Watch, lse: Array) -> tuple[Any, ...]:
        """The states of observations of a problem that is not empty, from its lse."""
        sizes, walk = problem.sizes, self.walks(problem).tangent
        flat = lambda x, n: x.reshape(math.prod(sizes.batch), *x.shape[-n:])
        q, k, lse = flat(problem.q, 3), flat(problem.k, 3), flat(lse, 2)
        # A peak, which counts as a constant, and the rest.
        peak = jax.lax.stop_gradient(lse)
        parts = LogSumExp(peak, jnp.where(jnp.isneginf(peak), 0, lse - peak))
        hits = walk.find_hits(problem.rule.mask, held=True)
        states = sweep(walk, q, k, problem.rule, watched, hits, parts)
        return jax.tree.map(lambda x: x.reshape(*sizes.batch, *x.shape[1:]), states)

"""Exact attention in linear memory, in plain JAX, on every platform and with every derivative."""

import math
from dataclasses import dataclass

import jax
from jaxtyping import Array

from jaxattn._problem import Problem
from jaxattn.kernels.fold import fold
from jaxattn.kernels.plan import make_plan
from jaxattn.kernels.walk import Walk


@dataclass(frozen=True)
class Blockwise:
    """A fold over tiles of q_block queries by k_block keys; None lets the plan choose.

    The result does not depend on the blocks beyond rounding.
    """

    q_block: int | None = None
    k_block: int | None = None

    def __post_init__(self) -> None:
        for name, block in (("q_block", self.q_block), ("k_block", self.k_block)):
            if block is not None and (not isinstance(block, int) or block < 1):
                raise ValueError(
                    f"a block is a whole number of positions, at least 1, or None for the plan's "
                    f"choice; got {name}={block!r}"
                )

    def refuses(self, problem: Problem) -> str | None:
        """Why this backend cannot do a problem; None where it can."""
        del problem
        return None

    def walk(self, problem: Problem) -> Walk:
        """How the score matrices of a problem are gone through."""
        sizes, n, platform = problem.sizes, problem.kv_heads, jax.default_backend()
        plan = make_plan(problem.rule.mask, sizes, n, platform, self.q_block, self.k_block)
        return Walk(plan, sizes, n)

    def run(self, problem: Problem) -> tuple[Array, Array, Array]:
        """(out, peak, log_total), lse being their sum, of a problem that is not empty."""
        sizes, walk = problem.sizes, self.walk(problem)
        flat = lambda x: x.reshape(math.prod(sizes.batch), *x.shape[-3:])
        q, k, v = (flat(x) for x in (problem.q, problem.k, problem.v))
        mask = problem.rule.mask
        hits = walk.find_hits(mask), walk.find_hits(mask, held=True)
        found = fold(walk, q, k, v, problem.rule, hits)
        out, peak, log_total = (x.reshape(*sizes.batch, *x.shape[1:]) for x in found)
        return out, peak, log_total

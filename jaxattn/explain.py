"""`explain`: what `attend` would do with these arguments, and what it would cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxattn._axes import count_to
from jaxattn._function import Compiled
from jaxattn._mask import Mask, check_mask
from jaxattn._observation import Observation, check_observations
from jaxattn._problem import check
from jaxattn._value import as_array
from jaxattn.attend import Scoring, run
from jaxattn.backends.auto import AUTO, Backend, turned_down
from jaxattn.backends.reference import Reference
from jaxattn.dropout import Dropout
from jaxattn.kernels import stairs
from jaxattn.kernels.plan import ceil_div
from jaxattn.kernels.walk import Walk
from jaxattn.masks import EVERYTHING


@dataclass(frozen=True)
class Explanation:
    """What a call of `attend` would do.

    backend: the one that would run. turned_down: why each of the others would not.
    heads, batch: query heads and batch elements taken at a time.
    q_block, k_block: the sides of a tile, in positions.
    visited, tiles: tiles that the mask needs, of all tiles of all heads. visited is None where it
      depends on arrays that are being traced.
    flops: of the products q kᵀ and p v in what is computed of the visited tiles, a multiply and an
      add counted as two; None as for visited.
    second_sweep: whether observations, if any were asked for, are made from lse after the forward
      fold, and not on the way. No field but this one and the next depends on them.
    temporary_bytes: memory beside arguments and results, as the compiler plans it for the forward
      pass alone; None where it does not say.
    """

    backend: Backend
    turned_down: dict[Backend, str]
    heads: int
    batch: int
    q_block: int
    k_block: int
    visited: int | None
    tiles: int
    flops: int | None
    second_sweep: bool
    temporary_bytes: int | None

    def __repr__(self) -> str:
        share = "unknown while tracing"
        if self.visited is not None and self.flops is not None:
            percent = 100 * self.visited / max(self.tiles, 1)
            share = f"{self.visited:,} of {self.tiles:,} visited ({percent:.0f} %)"
            share += f", {self.flops / 1e9:,.3f} GFLOP"
        memory = "unknown"
        if self.temporary_bytes is not None:
            memory = f"{self.temporary_bytes / 2**20:,.2f} MiB"
        lines = [
            f"backend    {self.backend!r}",
            *(f"           not {other!r}: {why}" for other, why in self.turned_down.items()),
            f"tile       {self.q_block} queries × {self.k_block} keys, "
            f"{self.heads} heads and {self.batch} batch elements at a time",
            f"tiles      {share}",
            *(["observed   in a second sweep"] if self.second_sweep else ()),
            f"temporary  {memory} in the forward pass",
        ]
        return "\n".join(lines)


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Any = None,
    sinks: Any = None,
    dropout: Dropout | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
) -> Explanation:
    """What `attend` would do with these arguments. Compiles the forward pass; runs nothing of it.

    q, k and v may be given as `jax.ShapeDtypeStruct`. Takes and raises what `attend` does.
    """
    build = partial(check, mask=mask, score=score, scale=scale, sinks=sinks, dropout=dropout)
    arrays = (
        x if isinstance(x, jax.ShapeDtypeStruct) else as_array(x, name)
        for name, x in (("q", q), ("k", k), ("v", v))
    )
    problem = jax.eval_shape(build, *arrays)
    chosen, others = turned_down(backend, problem)
    watched = tuple(check_observations(observe, problem.sizes, problem.q.dtype).values())
    memory: Any = (
        run.of(problem, watched).lower(chosen, problem, watched).compile().memory_analysis()
    )
    temporary = None if memory is None else int(memory.temp_size_in_bytes)
    sizes = problem.sizes
    if problem.is_empty:
        return Explanation(chosen, others, 0, 0, 0, 0, 0, 0, 0, False, temporary)
    features = problem.q.shape[-1] + problem.v.shape[-1]
    if isinstance(chosen, Reference):
        count = math.prod(sizes.batch) * sizes.h
        flops = 2 * count * sizes.t * sizes.s * features
        whole = (sizes.h, count // sizes.h, sizes.t, sizes.s)
        return Explanation(chosen, others, *whole, count, count, flops, False, temporary)

    walk = chosen.walks(problem).forward
    plan, per_head = walk.plan, walk.plan.q_blocks * ceil_div(sizes.s, walk.plan.k_block)
    resolved = check_mask(mask).resolve(sizes)
    visited, flops = None, None
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(resolved)):
        visited, pairs = _count(walk, resolved)
        flops = 2 * pairs * features
    total = per_head * walk.batches * sizes.h
    shape = (plan.heads, plan.batch, plan.q_block, plan.k_block)
    again = bool(watched) and plan.k_tiles > 1
    return Explanation(chosen, others, *shape, visited, total, flops, again, temporary)


def _count(walk: Walk, mask: Mask) -> tuple[int, int]:
    """(tiles visited, the pairs computed in them), over all heads and blocks of queries."""
    plan, heads = walk.plan, walk.plan.heads * walk.plan.batch
    widths = np.asarray(_widths(walk, mask)).clip(0, plan.k_block)
    step = plan.widths[0]
    pairs = np.minimum(-(-widths // step) * step, plan.k_block).astype(np.int64) * plan.q_block
    for i in range(plan.q_blocks if plan.unrolled else 0):
        way = stairs.find(walk, mask, i)
        if way is not None:
            pairs[:, i] = (widths[:, i] > 0) * way.pairs
    return int((widths > 0).sum()) * heads, int(pairs.sum()) * heads


@Compiled
def _widths(walk: Walk, mask: Mask) -> Int[Array, "runs q_blocks k_tiles"]:
    """How many keys are needed of each tile; 0 or less for none."""
    plan, hits = walk.plan, walk.find_hits(mask)

    def block(index: Array) -> Array:
        reach = walk.reach(mask, hits, index // plan.q_blocks, index % plan.q_blocks)
        return jnp.stack([jnp.asarray(reach.width(j), jnp.int32) for j in range(plan.k_tiles)])

    widths = jax.lax.map(block, count_to(walk.runs * plan.q_blocks))
    return widths.reshape(walk.runs, plan.q_blocks, plan.k_tiles)

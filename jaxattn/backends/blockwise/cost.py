"""What a walk costs: the tiles that a mask needs, and the products in them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxattn._axes import count_to
from jaxattn._function import Compiled
from jaxattn._mask import BoundMask
from jaxattn.backends.blockwise import stairs
from jaxattn.backends.blockwise.schedule import schedule
from jaxattn.backends.blockwise.walk import Walk


def visited_pairs(walk: Walk, mask: BoundMask) -> tuple[int, int]:
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


def listed_pairs(walk: Walk, mask: BoundMask) -> tuple[int, int]:
    """`visited_pairs` where tiles are listed."""
    plan = walk.plan
    visited = int(_listed(walk, mask).sum()) * plan.heads * plan.batch
    return visited, visited * plan.q_block * plan.k_block


@Compiled
def _listed(walk: Walk, mask: BoundMask) -> Int[Array, " runs"]:
    """How many tiles each run of heads visits."""
    tiles_of = schedule(walk, mask)
    count = lambda run: sum(jnp.asarray(tiles.count, jnp.int32) for tiles in tiles_of(run))
    return jax.lax.map(lambda run: jnp.asarray(count(run), jnp.int32), count_to(walk.runs))


@Compiled
def _widths(walk: Walk, mask: BoundMask) -> Int[Array, "runs q_blocks k_tiles"]:
    """How many keys are needed of each tile; 0 or less for none."""
    plan, hits = walk.plan, walk.find_hits(mask)

    def block(index: Array) -> Array:
        reach = walk.reach(mask, hits, index // plan.q_blocks, index % plan.q_blocks)
        return jnp.stack([jnp.asarray(reach.width(j), jnp.int32) for j in range(plan.k_tiles)])

    widths = jax.lax.map(block, count_to(walk.runs * plan.q_blocks))
    return widths.reshape(walk.runs, plan.q_blocks, plan.k_tiles)

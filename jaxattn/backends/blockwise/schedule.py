"""Which tiles accelerators visit, as lists: no step of a loop then waits for the host.

A loop of a known number of steps runs on the device alone. So the tiles that a mask needs are
listed: while tracing where the mask tells, else on the device, and then the host reads no more than
the length of the list. Tiles all of whose pairs are allowed are a list of their own, without mask.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxattn._axes import Index, ceil_div, count_to
from jaxattn._mask import BoundMask
from jaxattn._value import Span, unflatten_index
from jaxattn.backends.blockwise.walk import Walk

PAIRS = 2**24  # that a mask is asked for at a time


class Tiles(NamedTuple):
    """A list of tiles: blocks of queries and blocks of keys, by their numbers.

    count: how many of them count, the first ones. whole: whether the mask allows all of their
    pairs.
    """

    q_blocks: Int[Array, " n"] | Int[np.ndarray, " n"]
    k_blocks: Int[Array, " n"] | Int[np.ndarray, " n"]
    count: Index
    whole: bool

    def spans(self, walk: Walk, n: Index) -> tuple[Index, Span, Span, Bool[Array, " c"] | None]:
        """The n-th tile: (block of queries, rows, keys, which of the keys are in no earlier tile).

        None where all of them are new.
        """
        pick = lambda x: int(x[n]) if isinstance(n, int) and self.is_known else jnp.asarray(x)[n]
        i, j = pick(self.q_blocks), pick(self.k_blocks)
        begin = j * walk.plan.k_block
        keys = walk.keys(begin, walk.plan.k_block)
        moved = not self.whole and walk.sizes.s % walk.plan.k_block > 0
        return i, walk.rows(i), keys, keys.indices() >= begin if moved else None

    @property
    def is_known(self) -> bool:
        return isinstance(self.count, int)


def schedule(walk: Walk, mask: BoundMask) -> Callable[[Index], tuple[Tiles, ...]]:
    """From the number of a run of heads to the tiles that it needs."""
    plan, tiles = walk.plan, _within_limits(walk, mask)
    if mask.is_known or len(tiles) <= 1:
        whole = [tile for tile in tiles if _is_whole(walk, mask, *tile)]
        cut = [tile for tile in tiles if tile not in set(whole)]
        lists = tuple(_listed(x, y) for x, y in ((whole, True), (cut, False)) if x)
        return lambda run: lists

    visited = needed(walk, mask)
    count = plan.q_blocks * _across(walk)

    def of_run(run: Index) -> tuple[Tiles, ...]:
        runs = walk.runs_per_batch
        here = visited[run // runs, run % runs if mask.by_head else 0].reshape(-1)
        (which,) = jnp.nonzero(here, size=count, fill_value=0)
        q_blocks, k_blocks = jnp.divmod(which.astype(jnp.int32), _across(walk))
        return (Tiles(q_blocks, k_blocks, here.sum(dtype=jnp.int32), False),)

    return of_run


def _across(walk: Walk) -> int:
    """How many tiles lie beside each other."""
    return ceil_div(walk.sizes.s, walk.plan.k_block)


def _listed(tiles: list[tuple[int, int]], whole: bool) -> Tiles:
    q_blocks, k_blocks = np.array(tiles, np.int32).T
    return Tiles(q_blocks, k_blocks, len(tiles), whole)


def _within_limits(walk: Walk, mask: BoundMask) -> list[tuple[int, int]]:
    """The tiles within the mask's limits."""
    found, size = [], walk.plan.k_block
    for i in range(walk.plan.q_blocks):
        first, stop = mask.limits(walk.rows(i), walk.sizes.s)
        if first < stop:
            found += [(i, j) for j in range(first // size, ceil_div(stop, size))]
    return found


def _is_whole(walk: Walk, mask: BoundMask, i: int, j: int) -> bool:
    keys = Span(j * walk.plan.k_block, walk.plan.k_block)
    assert isinstance(keys.start, int)
    return keys.start + keys.size <= walk.sizes.s and mask.covers(walk.rows(i), keys)


def needed(walk: Walk, mask: BoundMask) -> Bool[Array, "b runs q_blocks k_blocks"]:
    """Which tiles hold an allowed pair. runs: of a batch element; 1 if heads do not differ.

    Of a mask that is not exact every pair is asked, `PAIRS` at a time, without a branch for tiles
    out of its range.
    """
    plan, s = walk.plan, walk.sizes.s
    runs = walk.runs_per_batch if mask.by_head else 1
    shape = walk.batches, runs, plan.q_blocks
    blocks = count_to(_across(walk))

    def row_of_tiles(index: Array) -> Array:
        batch, which, i = unflatten_index(index, shape)
        run, rows = walk.run(batch * walk.runs_per_batch + which), walk.rows(i)
        run = run if mask.by_head else run._replace(kv=1, group=1)
        element = mask.element(unflatten_index(batch, walk.sizes.batch))
        first, stop = element.needs(rows, s)
        hit = (blocks * plan.k_block < stop) & ((blocks + 1) * plan.k_block > first)
        hit &= jnp.less(first, stop)
        if mask.exact:
            return hit

        def look(j: Array) -> Array:
            keys = walk.keys(j * plan.k_block, plan.k_block)
            return walk.any_allowed(mask, run, rows, keys, j * plan.k_block)

        return hit & jax.vmap(look)(blocks)

    at_once = max(PAIRS // (plan.q_block * s), 1)
    every = count_to(walk.batches * runs * plan.q_blocks)
    mapped = jax.lax.map(row_of_tiles, every, batch_size=at_once)
    return mapped.reshape(*shape, -1)

"""The second sweep: observations of the weights, from queries, keys and lse alone.

Plain JAX throughout, so that it can be differentiated as it stands: a scan over runs of heads and
blocks of queries, each block checkpointed with nothing saved, and again each of its tiles.
"""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index, count_to, cut_axis, max_along
from jaxattn._finite import finite
from jaxattn._observation import Watch
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Place
from jaxattn.backends.blockwise import tile, watch
from jaxattn.backends.blockwise.loops import NOTHING, by_width
from jaxattn.backends.blockwise.walk import Walk, read_keys, read_rows


def sweep(
    walk: Walk,
    q: Array,
    k: Array,
    rule: Rule,
    watched: Watch,
    hits: Array | None,
    lse: LogSumExp,
) -> tuple[Any, ...]:
    """The states of observations. hits: of the mask, with `held`."""
    plan, acc = walk.plan, lse.peak.dtype

    def each_block(carry: Any, index: Index) -> tuple[Any, Any]:
        run_index, i = index // plan.q_blocks, index % plan.q_blocks
        block = partial(_block, walk, run_index, i)
        block = jax.checkpoint(block, policy=NOTHING, prevent_cse=False)
        added, first_key = block(q, k, rule, watched, hits, lse)
        return watch.add(watched, carry, added, walk.run(run_index), walk.rows(i), first_key), None

    states = watch.start(walk, watched, acc)
    n = walk.runs * plan.q_blocks
    if n == 1:
        return each_block(states, 0)[0]
    return jax.lax.scan(each_block, states, count_to(n))[0]


def _block(
    walk: Walk,
    run_index: Index,
    i: Index,
    q: Array,
    k: Array,
    rule: Rule,
    watched: Watch,
    hits: Array | None,
    lse: LogSumExp,
) -> tuple[Any, Index]:
    """What the i-th block of queries of a run of heads adds to the states, and its first key."""
    plan, acc = walk.plan, lse.peak.dtype
    run, rows = walk.run(run_index), walk.rows(i)
    reach = walk.reach(rule.mask, hits, run_index, i, held=True)
    held = walk.keys(reach.base, min(plan.k_tiles * plan.k_block, walk.sizes.s))
    q_rows = finite(read_rows(q, run, rows).astype(acc))
    k_held = finite(read_keys(k, run, held).astype(acc))
    lse_rows = jax.tree.map(lambda x: read_rows(x, run, rows), lse)
    unseen = watch.nothing(walk, watched, run, rows.size, held.size, acc)

    def each_tile(j: Index) -> Any:
        begin = reach.begin(j)

        def visit(width: int) -> Any:
            span = walk.keys(begin, width)
            fresh = span.indices() >= begin if reach.overlaps else None
            one = partial(_tile, fresh, walk.new_rows(i))

            @partial(jax.checkpoint, policy=NOTHING, prevent_cse=False)
            def compute(q_rows: Array, lse_rows: Any, k_held: Array) -> Any:
                at = span.start - held.start
                keys = cut_axis(k_held, at, width, axis=2)
                part = walk.read((rule, watched), run, rows, span)
                added = walk.over_heads(run, one, (q_rows, lse_rows), (keys,), part, rows, span)
                return watch.widen(watched, added, at, unseen)

            return compute(q_rows, lse_rows, k_held)

        needed = reach.width(j)
        if reach.all_needed and not isinstance(needed, int):
            needed = plan.k_block
        return by_width(plan.held_widths, needed, lambda: unseen, visit)

    if plan.k_tiles == 1:
        return each_tile(0), held.start
    merge = lambda states, added: tuple(
        each.merge(*x) for each, *x in zip(watched, states, added, strict=True)
    )
    more = lambda states, j: (merge(states, each_tile(j)), None)
    return jax.lax.scan(more, unseen, count_to(plan.k_tiles))[0], held.start


def _tile(
    fresh: Bool[Array, " c"] | None,
    new: Bool[Array, " r"] | None,
    q: Float[Array, "r d"],
    lse: LogSumExp,
    k: Float[Array, "c d"],
    part: tuple[Rule, Watch],
    place: Place,
) -> tuple[Any, ...]:
    """What a tile of one head adds. fresh, new: keys and rows in no earlier tile; None for all."""
    rule, watched = part
    scaled = tile.scaled(q, k, rule.scale)
    logits = tile.logits(scaled, rule, place, fresh)
    tiles = tile.Products(scaled, logits, max_along(logits, 1))
    return watch.look(watched, tiles, lse, rule, place, fresh, new)

"""The forward fold: softmax and products, tile by tile, with a running peak and total.

Source: Rabe and Staats 2021; Dao et al. 2022.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import Index, accumulator, ceil_div, dot, put
from jaxattn._finite import nan_unless_finite
from jaxattn._mask import Mask
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp, Partial, nothing
from jaxattn._value import Place
from jaxattn._varying import vary
from jaxattn.backends.blockwise import stairs, tile, watch
from jaxattn.backends.blockwise.loops import after, by_width, loop, repeat
from jaxattn.backends.blockwise.walk import Keys, Walk, read_keys, read_rows, to_rows
from jaxattn.backends.blockwise.watch import Watch

SMALL = 2**21  # scores of all blocks together, of which all may be held
AT_A_TIME = 5 * 2**18  # scores of blocks that are observed together where there are more
MANY = 8  # observations, which hold much of a block: then one block at a time


def forward(
    walk: Walk, q: Array, k: Array, v: Array, rule: Rule, hits: Array | None, watched: Watch
) -> tuple[Array, Array, Array, tuple[Any, ...]]:
    """(out, peak, log_total, states) of every query, as `fold`.

    watched: observations to make on the way; only where one tile holds all that a row needs.
    """
    compute = partial(_pass, walk, q, k, v, rule, hits)
    is_few = _is_few(walk)
    out, peak, log_total, states = compute(watched, trusting=is_few)
    if is_few:
        repair = lambda _: _poison(walk, v, rule, compute(())[0])
        wrong = ~jnp.isfinite(out).all()
    else:
        repair, wrong = partial(_poison, walk, v, rule), ~jnp.isfinite(v.sum(dtype=out.dtype))
    # A loop of at most one turn, not a cond: under vmap a cond would run both of its branches.
    once = lambda carry: (repair(carry[0]), carry[1] & False)
    out, _ = jax.lax.while_loop(lambda carry: carry[1], once, (out, wrong))
    return out, peak, log_total, states


def _scores(walk: Walk, mask: Mask, i: Index) -> int:
    """How many scores the i-th block of an unrolled walk holds, of a run of heads."""
    first, stop = mask.limits(walk.rows(i), walk.sizes.s)
    return walk.plan.batch * walk.plan.heads * walk.plan.q_block * (stop - first)


def _is_few(walk: Walk) -> bool:
    """Whether there are few queries for the keys, so that reading the values is what takes time.

    Then they are trusted to be finite: NaN and Inf, hidden ones too, show in `out`, which is then
    made again. Else a sum of all values tells, the fastest test there is; where it overflows there
    is nothing to repair.
    """
    plan, sizes = walk.plan, walk.sizes
    return plan.q_blocks == 1 and (plan.k_tiles > 1 or sizes.s >= 4 * sizes.t)


def _pass(
    walk: Walk,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    hits: Array | None,
    watched: Watch,
    trusting: bool = False,
) -> tuple[Array, Array, Array, tuple[Any, ...]]:
    """`forward` with NaN and Inf among the values read as 0; as they are if `trusting`."""
    acc, plan = accumulator(q.dtype), walk.plan
    widths = plan.widths if trusting or not _is_few(walk) else (plan.k_block,)

    def each_run(index: Index, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        run = walk.run(index)
        keys = Keys.of(k, v, run, acc, trusting, keep=plan.q_blocks > 1)

        # Else XLA makes the tiles of all blocks first, and holds what observations need of them.
        small = plan.batch * plan.heads * walk.sizes.t * plan.k_block <= SMALL
        in_order = watched and plan.unrolled and not small
        most = AT_A_TIME if len(watched) < MANY else 0
        before: list[tuple[int, Any]] = []

        def each_block(i: Index, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            *wholes, states = carry
            scores = _scores(walk, rule.mask, i) if in_order else 0
            ready = []
            while before and scores + sum(size for size, _ in before) > most:
                ready.append(before.pop(0)[1])
            *parts, added, first_key = _block(
                walk, index, i, q, keys, rule, hits, watched, ready, widths
            )
            if in_order:
                before.append((scores, (parts, added)))
            rows = walk.rows(i)

            def written(whole: Array, part: Array) -> Array:
                starts = (run.batch, rows.start, run.q_head, *(0,) * (whole.ndim - 3))
                return put(whole, to_rows(part), starts)

            if watched:
                states = watch.add(watched, states, added, run, rows, first_key)
            return (*map(written, wholes, parts), states)

        return repeat(plan.q_blocks, each_block, carry, plan.unrolled)

    # Every row will be written, whatever is there. Zeros could be made before q is: XLA would make
    # those of all layers of a model first, and hold them.
    anything = q[0, 0, 0, :1].sum()
    flat = jnp.full(q.shape[:3], anything, acc)
    empty = jnp.full((*q.shape[:3], v.shape[3]), anything, acc), flat, flat
    return repeat(walk.runs, each_run, (*empty, watch.start(walk, watched, acc)))


def _block(
    walk: Walk,
    run_index: Index,
    i: Index,
    q: Array,
    keys: Keys,
    rule: Rule,
    hits: Array | None,
    watched: Watch,
    ready: Any,
    widths: tuple[int, ...],
) -> tuple[Any, ...]:
    """The i-th block of queries of a run of heads against every key it needs, after `ready`.

    widths: that the last tile may take. Gives (out, peak, log_total, what it adds to the states,
    the first key of that).
    """
    plan, features = walk.plan, keys.v.shape[-1]
    run, rows = walk.run(run_index), walk.rows(i)
    reach = walk.reach(rule.mask, hits, run_index, i)
    q_rows = nan_unless_finite(read_rows(q, run, rows).astype(keys.dtype))
    q_rows = after(q_rows, ready) if ready else q_rows
    held = walk.keys(reach.begin(0), plan.k_block)
    unseen = watch.nothing(walk, watched, run, rows.size, held.size, keys.dtype)

    def visit(j: Index, width: int, state: Partial | None) -> tuple[Partial, Any]:
        begin = reach.begin(j)
        span = walk.keys(begin, width)
        part = walk.read((rule, watched), run, rows, span)
        fresh = span.positions() >= begin if reach.overlaps else None

        def one(
            q: Array, state: Partial | None, k: Array, v: Array, part: Any, place: Place
        ) -> tuple[Partial, Any]:
            rule, watched = part
            after, tiles = tile.absorb(state, q, k, v, rule, place, fresh)
            if not watched:
                return after, ()
            tiles, lse = _apart(tiles, after)
            new = walk.new_rows(i)
            return after, watch.look(watched, tiles, lse, rule, place, fresh, new)

        after, added = walk.over_heads(run, one, (q_rows, state), keys.read(span), part, rows, span)
        added = watch.widen(watched, added, span.start - held.start, unseen)
        return after, added

    def blank() -> tuple[Partial, Any]:
        none = nothing(rows.size, features, q_rows.dtype)
        grow = lambda x: jnp.broadcast_to(x, (*q_rows.shape[:3], *x.shape))
        return vary(jax.tree.map(grow, none), walk.sizes.varying), unseen

    def climb(way: stairs.Stairs) -> tuple[Partial, Any]:
        span = way.whole.keys
        parts = tuple(walk.read((rule, watched), run, *piece) for piece in way.pieces)

        def one(q: Array, k: Array, v: Array, parts: Any, place: Place) -> tuple[Partial, Any]:
            rules, each = zip(*parts, strict=True)
            after, tiles = stairs.absorb(way, q, k, v, rules, place)
            if not watched:
                return after, ()
            tiles, lse = _apart(tiles, after)
            new = walk.new_rows(i)
            return after, stairs.look(way, each, tiles, lse, rules, place, new, walk.sizes)

        after, added = walk.over_heads(run, one, (q_rows,), keys.read(span), parts, rows, span)
        added = watch.widen(watched, added, span.start - held.start, unseen)
        return after, added

    way = stairs.find(walk, rule.mask, i) if isinstance(i, int) else None
    # The last tile goes first: it may be narrower, and it starts the state.
    first, last = reach.tiles()
    if way is not None and hits is None:
        state, added = climb(way)
    elif way is not None:
        state, added = jax.lax.cond(reach.width(last) > 0, lambda: climb(way), blank)
    else:
        visit_last = lambda width: visit(last, width, None)
        state, added = by_width(widths, reach.width(last), blank, visit_last)
    if plan.k_tiles > 1:

        def more(j: Index, state: Partial) -> Partial:
            full = lambda: visit(j, plan.k_block, state)[0]
            if hits is None:
                return full()
            return jax.lax.cond(reach.width(j) > 0, full, lambda: state)

        state = loop(first, last, more, state)
    close = lambda state, part, place: state.finish()
    out, lse = walk.over_heads(run, close, (state,), (), (), rows, rows)
    return out, *lse, added, held.start


def _apart(tiles: Any, state: Partial) -> tuple[Any, LogSumExp]:
    """The products and the lse of rows all of whose keys they hold, for observations.

    Behind a barrier, so that the products are made as they are where nobody watches.
    """
    tiles, state = jax.lax.optimization_barrier((tiles, state))
    return tiles, state.finish()[1]


def _poison(
    walk: Walk, v: Float[Array, "b s n e"], rule: Rule, out: Float[Array, "b t h e"]
) -> Float[Array, "b t h e"]:
    """`out` with NaN in every feature in which its query may see a NaN or Inf."""
    plan, sizes = walk.plan, walk.sizes

    def each_block(index: Index, out: Array) -> Array:
        run, rows = walk.run(index // plan.q_blocks), walk.rows(index % plan.q_blocks)

        def each_tile(j: Index, seen: Array) -> Array:
            span = walk.keys(j * plan.k_block, plan.k_block)
            bad = ~jnp.isfinite(read_keys(v, run, span))

            def one(seen: Array, bad: Array, rule: Rule, place: Place) -> Array:
                allowed = tile.allows(rule, place, None)
                every = jnp.broadcast_to(
                    True if allowed is None else allowed, (rows.size, span.size)
                )
                return seen | (dot(every.astype(out.dtype), bad.astype(out.dtype)) > 0)

            part = walk.read(rule, run, rows, span)
            return walk.over_heads(run, one, (seen,), (bad,), part, rows, span)

        old = read_rows(out, run, rows)
        tiles = ceil_div(sizes.s, plan.k_block)
        none = vary(jnp.zeros(old.shape, bool), sizes.varying)
        seen = loop(0, tiles, each_tile, none)
        new = to_rows(jnp.where(seen, jnp.nan, old))
        return put(out, new, (run.batch, rows.start, run.q_head, 0))

    return repeat(walk.runs * plan.q_blocks, each_block, out)

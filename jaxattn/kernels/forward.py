"""The forward fold: softmax and products, tile by tile, with a running peak and total.

Source: Rabe and Staats 2021; Dao et al. 2022.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import Index, accumulator, dot, put
from jaxattn._problem import Rule
from jaxattn._value import Place
from jaxattn._varying import vary
from jaxattn.kernels import stairs, tile, watch
from jaxattn.kernels.loops import after, by_width, loop, repeat
from jaxattn.kernels.plan import ceil_div
from jaxattn.kernels.walk import Keys, Walk, read_keys, read_rows, to_rows
from jaxattn.kernels.watch import Watch


def forward(
    walk: Walk, q: Array, k: Array, v: Array, rule: Rule, hits: Array | None, watched: Watch
) -> tuple[Array, Array, Array, tuple[Any, ...]]:
    """(out, peak, log_total, states) of every query, as `fold`.

    watched: observations to make on the way; only where one tile holds all that a row needs.
    """
    acc, plan = accumulator(q.dtype), walk.plan

    def each_run(index: Index, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        run = walk.run(index)
        keys = Keys.of(k, v, run, acc, keep=plan.q_blocks > 1)

        before: list[Any] = []

        def each_block(i: Index, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            *wholes, total, states = carry
            # Else XLA makes the tiles of all of them first, and holds what observations need.
            ready = before.pop() if before else ()
            *parts, its_total, added, first_key = _block(
                walk, index, i, q, keys, rule, hits, watched, ready
            )
            if watched and plan.unrolled:
                before.append((parts, added))
            rows = walk.rows(i)

            def written(whole: Array, part: Array) -> Array:
                starts = (run.batch, rows.start, run.q_head, *(0,) * (whole.ndim - 3))
                return put(whole, to_rows(part), starts)

            if watched:
                states = watch.add(watched, states, added, run, rows, first_key)
            return (*map(written, wholes, parts), total + its_total, states)

        return repeat(plan.q_blocks, each_block, carry, plan.unrolled)

    # Every row will be written, whatever is there. Zeros could be made before q is: XLA would make
    # those of all layers of a model first, and hold them.
    anything = q[0, 0, 0, :1].sum()
    flat = jnp.full(q.shape[:3], anything, acc)
    empty = jnp.full((*q.shape[:3], v.shape[3]), anything, acc), flat, flat
    nil = vary(jnp.zeros((), acc), walk.sizes.varying)
    total = nil if _sums_on_the_way(walk) else v.sum(dtype=acc)
    out, peak, log_total, total, states = repeat(
        walk.runs, each_run, (*empty, total, watch.start(walk, watched, acc))
    )
    return _poison(walk, out, v, rule, total), peak, log_total, states


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
) -> tuple[Any, ...]:
    """The i-th block of queries of a run of heads against every key it needs, after `ready`.

    (out, peak, log_total, the sum of the values that it read if those are summed on the way, what
    it adds to the states, the first key of that).
    """
    plan, features = walk.plan, keys.v.shape[-1]
    run, rows = walk.run(run_index), walk.rows(i)
    reach = walk.reach(rule.mask, hits, run_index, i)
    q_rows = tile.nan_unless_finite(read_rows(q, run, rows).astype(keys.dtype))
    q_rows = after(q_rows, ready) if ready else q_rows
    held = walk.keys(reach.begin(0), plan.k_block)
    unseen = watch.nothing(walk, watched, run, rows.size, held.size, keys.dtype)
    nil = vary(jnp.zeros((), keys.dtype), walk.sizes.varying)
    sum_of_values = keys.total if _sums_on_the_way(walk) else lambda _: nil

    def visit(j: Index, width: int, state: tile.State | None) -> tuple[tile.State, Array, Any]:
        begin = reach.begin(j)
        span = walk.keys(begin, width)
        part = walk.read((rule, watched), run, rows, span)
        fresh = span.positions() >= begin if reach.overlaps else None

        def one(
            q: Array, state: tile.State | None, k: Array, v: Array, part: Any, place: Place
        ) -> tuple[tile.State, Any]:
            rule, watched = part
            after, tiles = tile.absorb(state, q, k, v, rule, place, fresh)
            if not watched:
                return after, ()
            tiles, lse = _apart(tiles, after)
            new = walk.new_rows(i)
            return after, watch.look(watched, tiles, lse, rule, place, fresh, new)

        after, added = walk.over_heads(run, one, (q_rows, state), keys.read(span), part, rows, span)
        added = watch.widen(watched, added, span.start - held.start, unseen)
        return after, sum_of_values(span), added

    def blank() -> tuple[tile.State, Array, Any]:
        none = tile.nothing_seen(rows.size, features, q_rows.dtype)
        grow = lambda x: jnp.broadcast_to(x, (*q_rows.shape[:3], *x.shape))
        return vary(jax.tree.map(grow, none), walk.sizes.varying), nil, unseen

    def climb(way: stairs.Stairs) -> tuple[tile.State, Array, Any]:
        span = way.whole.keys
        parts = tuple(walk.read((rule, watched), run, *piece) for piece in way.pieces)

        def one(q: Array, k: Array, v: Array, parts: Any, place: Place) -> tuple[tile.State, Any]:
            rules, each = zip(*parts, strict=True)
            after, tiles = stairs.absorb(way, q, k, v, rules, place)
            if not watched:
                return after, ()
            tiles, lse = _apart(tiles, after)
            new = walk.new_rows(i)
            return after, stairs.look(way, each, tiles, lse, rules, place, new, walk.sizes)

        after, added = walk.over_heads(run, one, (q_rows,), keys.read(span), parts, rows, span)
        added = watch.widen(watched, added, span.start - held.start, unseen)
        return after, sum_of_values(span), added

    way = stairs.find(walk, rule.mask, i) if isinstance(i, int) else None
    # The last tile goes first: it may be narrower, and it starts the state.
    first, last = reach.tiles()
    if way is not None and hits is None:
        state, total, added = climb(way)
    elif way is not None:
        state, total, added = jax.lax.cond(reach.width(last) > 0, lambda: climb(way), blank)
    else:
        visit_last = lambda width: visit(last, width, None)
        state, total, added = by_width(plan.widths, reach.width(last), blank, visit_last)
    if plan.k_tiles > 1:

        def more(j: Index, carry: tuple[tile.State, Array]) -> tuple[tile.State, Array]:
            state, total = carry

            def full() -> tuple[tile.State, Array]:
                after, its_total, _ = visit(j, plan.k_block, state)
                return after, total + its_total

            if hits is None:
                return full()
            return jax.lax.cond(reach.width(j) > 0, full, lambda: carry)

        state, total = loop(first, last, more, (state, total))
    close = lambda state, part, place: tile.finish(state)
    return *walk.over_heads(run, close, (state,), (), (), rows, rows), total, added, held.start


def _apart(tiles: Any, state: tile.State) -> tuple[Any, tile.LogSumExp]:
    """The products and the lse of rows all of whose keys they hold, for observations.

    Behind a barrier, so that the products are made as they are where nobody watches.
    """
    tiles, state = jax.lax.optimization_barrier((tiles, state))
    _, *lse = tile.finish(state)
    return tiles, tile.LogSumExp(*lse)


def _sums_on_the_way(walk: Walk) -> bool:
    """Whether the sum of the values, which tells if all are finite, is taken where they are read.

    Few queries over many keys must not read the values twice, nor those that nobody may see.
    """
    plan, sizes = walk.plan, walk.sizes
    return plan.q_blocks == 1 and (plan.k_tiles > 1 or sizes.s >= 4 * sizes.t)


def _poison(
    walk: Walk,
    out: Float[Array, "b t h e"],
    v: Float[Array, "b s n e"],
    rule: Rule,
    total: Float[Array, ""],
) -> Float[Array, "b t h e"]:
    """`out` with NaN in every feature in which its query may see a NaN or Inf.

    total: the sum of all values that may be seen, or of more.
    """
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

    def poison(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return repeat(walk.runs * plan.q_blocks, each_block, carry[0]), carry[1] & False

    # A loop of at most one turn, not a cond: under vmap a cond would run both of its branches.
    # A sum is the fastest test there is; where it overflows the loop finds nothing to do.
    return jax.lax.while_loop(lambda carry: carry[1], poison, (out, ~jnp.isfinite(total)))[0]

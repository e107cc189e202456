"""Attention as a fold over tiles, and the one tangent rule from which every derivative comes.

`fold` maps one head's tile functions over heads, blocks of queries and tiles of keys. Its tangent
rule is a scan over the same blocks, each of them checkpointed with nothing saved, and again each of
its tiles. JAX transposes it, differentiates it again and maps it, so that reverse mode, forward
mode, their compositions and vmap are exact and take memory linear in t and s.

With p = exp(logits - lse) and dl the tangent of the logits, the rule is

    dlse = Σ_s p·dl        dout = Σ_s p·dl·v + Σ_s p·dv - dlse·out

Source: forward, Rabe and Staats 2021 and Dao et al. 2022; the rule is the derivative of eq. 1 of
Vaswani et al. 2017.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index, accumulator, dot
from jaxattn._problem import Rule
from jaxattn._value import Place, Span, Zero
from jaxattn.kernels import tile
from jaxattn.kernels.plan import Plan, ceil_div
from jaxattn.kernels.walk import Keys, Walk, read_keys, read_rows, to_rows

NOTHING = jax.checkpoint_policies.nothing_saveable


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def fold(
    walk: Walk,
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n e"],
    rule: Rule,
    hits: tuple[Bool[Array, "b runs q_blocks k_tiles"] | None, ...],
) -> tuple[Float[Array, "b t h e"], Float[Array, "b t h"], Float[Array, "b t h"]]:
    """(out, peak, log_total) of every query, in the accumulator's dtype; lse = peak + log_total.

    The two parts of lse are kept apart because their sum, rounded, would spoil exp(logits - lse)
    where lse is large. The peak counts as a constant. No axis may be empty. hits: what
    `walk.find_hits` gives for the mask, and what it gives with `held`.
    """
    acc = accumulator(q.dtype)
    plan = walk.plan

    def each_run(index: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        run = walk.run(index)
        keys = Keys.of(k, v, run, acc, keep=plan.q_blocks > 1)

        def each_block(i: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            rows = walk.rows(i)
            block = _forward_block(walk, index, i, q, keys, rule, hits[0])
            put = lambda whole, part: jax.lax.dynamic_update_slice(
                whole,
                to_rows(part),
                (run.batch, rows.start, run.q_head, *(0,) * (whole.ndim - 3)),
            )
            return tuple(map(put, carry, block))

        return _repeat(plan.q_blocks, each_block, carry, plan.unrolled)

    flat = jnp.zeros(q.shape[:3], acc)
    empty = jnp.zeros((*q.shape[:3], v.shape[3]), acc), flat, flat
    out, peak, log_total = _repeat(walk.runs, each_run, empty)
    return _poison(walk, out, v, rule), peak, log_total


@partial(fold.defjvp, symbolic_zeros=True)
def _fold_jvp(walk: Walk, primals: Any, tangents: Any) -> Any:
    out, peak, log_total = fold(walk, *primals)
    q, k, v, rule, (_, hits) = primals
    acc = out.dtype
    # In the accumulator's dtype as a whole: what flows back is a sum over tiles.
    dq, dk, dv, dscale = (
        None if isinstance(x, SymbolicZero) else x.astype(acc)
        for x in (*tangents[:3], tangents[3].scale)
    )
    d = tile.Tangents(dq, dk, dv, dscale, _moving(rule.score, tangents[3].score))
    lse = tile.LogSumExp(peak, log_total)
    narrow, fits = walk.narrow(rule.mask)
    if narrow is None:
        mixed, dlse = _tangent(walk, q, k, v, rule, hits, lse, d)
    else:
        # A block reads all the keys that it might need, and what it reads costs time, also where
        # the mask's arrays then tell that a tile would do.
        one_hit = None if hits is None else hits.any(axis=-1, keepdims=True)

        @partial(jax.checkpoint, policy=NOTHING, prevent_cse=False)
        def choose(*args: Any) -> tuple[Array, Array]:
            slim = lambda q, k, v, rule, _, *rest: _tangent(narrow, q, k, v, rule, one_hit, *rest)
            return jax.lax.cond(fits, slim, partial(_tangent, walk), *args)

        mixed, dlse = choose(q, k, v, rule, hits, lse, d)
    dout = mixed - dlse[..., None] * tile.finite(out)
    return (out, peak, log_total), (dout, jnp.zeros_like(peak), dlse)


def _moving(score: Any, dscore: Any) -> Any:
    """The tangents of the scores with `Zero` for those that are zero; None if all are."""
    leaves, structure = jax.tree.flatten(score)
    is_zero = lambda x: isinstance(x, SymbolicZero)
    moves = [
        Zero() if is_zero(x) or x.dtype == jax.dtypes.float0 else x
        for x in jax.tree.leaves(dscore, is_leaf=is_zero)
    ]
    if len(moves) != len(leaves):
        raise AssertionError(f"{len(leaves)} arrays in scores, {len(moves)} tangents")
    still = all(isinstance(x, Zero) for x in moves)
    return None if still else jax.tree.unflatten(structure, moves)


def _forward_block(
    walk: Walk, run_index: Index, i: Index, q: Array, keys: Keys, rule: Rule, hits: Array | None
) -> tuple[Array, Array, Array]:
    """The i-th block of queries of a run of heads against every key it needs."""
    plan, features = walk.plan, keys.v.shape[-1]
    run, rows = walk.run(run_index), walk.rows(i)
    reach = walk.reach(rule.mask, hits, run_index, i)
    q_rows = tile.nan_unless_finite(read_rows(q, run, rows).astype(keys.dtype))

    def visit(j: Index, width: int, state: tile.State | None) -> tile.State:
        begin = reach.begin(j)
        span = walk.keys(begin, width)
        part = walk.read(rule, run, rows, span)
        fresh = span.positions() >= begin if reach.overlaps else None

        def one(q: Array, state: tile.State | None, k: Array, v: Array, rule: Rule, place: Place):
            return tile.absorb(state, q, k, v, rule, place, fresh)

        return walk.over_heads(run, one, (q_rows, state), keys.read(span), part, rows, span)

    def blank() -> tile.State:
        none = tile.nothing_seen(rows.size, features, q_rows.dtype)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*q_rows.shape[:3], *x.shape)), none)

    # The last tile goes first: it may be narrower, and it starts the state.
    first, last = reach.tiles()
    state = _by_width(plan, reach.width(last), blank, lambda w: visit(last, w, None))
    if plan.k_tiles > 1:

        def more(j: Index, state: tile.State) -> tile.State:
            if hits is None:
                return visit(j, plan.k_block, state)
            full = lambda: visit(j, plan.k_block, state)
            return jax.lax.cond(reach.width(j) > 0, full, lambda: state)

        state = jax.lax.fori_loop(first, last, more, state)
    close = lambda state, part, place: tile.finish(state)
    return walk.over_heads(run, close, (state,), (), (), rows, rows)


def _poison(
    walk: Walk, out: Float[Array, "b t h e"], v: Float[Array, "b s n e"], rule: Rule
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
        seen = jax.lax.fori_loop(0, tiles, each_tile, jnp.zeros(old.shape, bool))
        new = to_rows(jnp.where(seen, jnp.nan, old))
        return jax.lax.dynamic_update_slice(out, new, (run.batch, rows.start, run.q_head, 0))

    def poison(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return _repeat(walk.runs * plan.q_blocks, each_block, carry[0]), jnp.zeros_like(carry[1])

    # A loop of at most one turn, not a cond: under vmap a cond would run both of its branches.
    # A sum is the fastest test there is; where it overflows the loop finds nothing to do.
    any_bad = ~jnp.isfinite(v.sum(dtype=accumulator(v.dtype)))
    return jax.lax.while_loop(lambda carry: carry[1], poison, (out, any_bad))[0]


def _tangent(
    walk: Walk,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    hits: Array | None,
    lse: tile.LogSumExp,
    d: tile.Tangents,
) -> tuple[Float[Array, "b t h e"], Float[Array, "b t h"]]:
    """(Σ w·dl·v + Σ w·dv, Σ p·dl) of every query: a scan over the tiles of the forward fold."""
    plan = walk.plan

    def each_block(run: Index, i: Index) -> tuple[Array, Array]:
        block = partial(_tangent_block, walk, run, i)
        block = jax.checkpoint(block, policy=NOTHING, prevent_cse=False)
        return block(q, k, v, rule, hits, lse, d)

    def each_run(run: Index) -> tuple[Array, Array]:
        blocks = [each_block(run, i) for i in range(plan.q_blocks)]
        return jax.tree.map(lambda *x: jnp.stack(x), *blocks)

    if plan.unrolled:
        stacked = _stack(walk.runs, each_run)
        mixed, dlse = (jax.lax.collapse(x, 0, 2) for x in stacked)
    else:  # one scan, not two: inside another one, a scan keeps more for a second derivative
        n = plan.q_blocks
        mixed, dlse = _stack(walk.runs * n, lambda index: each_block(index // n, index % n))
    return walk.join(mixed), walk.join(dlse)


def _tangent_block(
    walk: Walk,
    run_index: Index,
    i: Index,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    hits: Array | None,
    lse: tile.LogSumExp,
    d: tile.Tangents,
) -> tuple[Array, Array]:
    """The tangent of the i-th block of queries of a run of heads.

    Each array is read once, as one slice: such a read transposes to adding to that slice in place.
    """
    plan, acc = walk.plan, lse.peak.dtype
    run, rows = walk.run(run_index), walk.rows(i)
    reach = walk.reach(rule.mask, hits, run_index, i, held=True)
    keys = walk.keys(reach.base, min(plan.k_tiles * plan.k_block, walk.sizes.s))

    lse_rows = jax.tree.map(lambda x: read_rows(x, run, rows), lse)
    read = lambda x: None if x is None else read_rows(x, run, rows).astype(acc)
    q_rows, dq_rows = read(q), read(d.q)
    read = lambda x: None if x is None else read_keys(x, run, keys).astype(acc)
    k_cols, v_cols, dk_cols, dv_cols = read(k), read(v), read(d.k), read(d.v)
    score, dscore = (walk.read(x, run, rows, keys) for x in (rule.score, d.score))

    size, whole = plan.k_block, keys.size // plan.k_block

    def tiles(x: Array, axis: int) -> Array:
        """The tiles of x along an axis, on a new first axis; the last tile ends with x."""
        cut = partial(jax.lax.slice_in_dim, x, axis=axis)
        parts = [cut(i * size, (i + 1) * size) for i in range(whole)]
        rest = [] if whole == plan.k_tiles else [cut(keys.size - size, keys.size)]
        return jnp.stack([*parts, *rest])

    # Of the scores, the arrays with an axis of keys go from tile to tile, the others stay.
    parts = [*score, *(dscore or ())]
    along_keys = []
    for part in parts:
        part.along_keys(lambda x, axis: along_keys.append(tiles(x, axis)))
    xs = jax.tree.map(lambda x: tiles(x, 2), (k_cols, v_cols, dk_cols, dv_cols)), along_keys

    def each_tile(j: Index, x: Any) -> tuple[Array, Array]:
        kv, along_keys = x
        begin, start = reach.begin(j), reach.begin(j)
        if whole < plan.k_tiles:
            start = keys.start + jnp.minimum(j * size, keys.size - size)

        def narrow(width: int) -> tuple[Array, Array]:
            span = Span(start, width)
            fresh = None if whole == plan.k_tiles else span.positions() >= begin

            def one(*x: Any) -> tuple[Array, Array]:
                q, lse, dq, k, v, dk, dv, (rule, dscore), place = x
                moves = tile.Tangents(dq, dk, dv, d.scale, dscore)
                return tile.tangent(q, k, v, rule, place, fresh, lse, moves)

            @partial(jax.checkpoint, policy=NOTHING, prevent_cse=False)
            def compute(x: Any, kv: Any, along_keys: Any) -> tuple[Array, Array]:
                kv = jax.tree.map(lambda x: x[:, :, :width], kv)
                rest = iter(along_keys)
                cut = lambda _, axis: jax.lax.slice_in_dim(next(rest), 0, width, axis=axis)
                here = [part.along_keys(cut) for part in parts]
                score, dscore = tuple(here[: len(rule.score)]), tuple(here[len(rule.score) :])
                part = walk.read(rule._replace(score=()), run, rows, span)._replace(score=score)
                return walk.over_heads(run, one, x, kv, (part, dscore or None), rows, span)

            return compute((q_rows, lse_rows, dq_rows), kv, along_keys)

        def nothing() -> tuple[Array, Array]:
            return jnp.zeros((*lse_rows.peak.shape, v.shape[3]), acc), jnp.zeros_like(lse_rows.peak)

        needed = reach.width(j)
        if whole < plan.k_tiles:  # a tile that was moved back has its new keys at its end
            needed = jnp.where(needed > 0, needed + begin - start, 0)
        return _by_width(plan, needed, nothing, narrow)

    return _sum_over(each_tile, xs)


def _by_width(
    plan: Plan, needed: Index, nothing: Callable[[], Any], visit: Callable[[int], Any]
) -> Any:
    """`visit` at the least width that holds the next `needed` keys; `nothing` if there are none."""
    widths = plan.widths
    if isinstance(needed, int):
        fits = [width for width in widths if width >= needed]
        return visit(fits[0] if fits else widths[-1]) if needed > 0 else nothing()
    index = jnp.clip((needed + widths[0] - 1) // widths[0], 0, len(widths))
    return jax.lax.switch(index, [nothing, *(partial(visit, width) for width in widths)])


def _repeat(n: int, step: Callable[[Index, Any], Any], carry: Any, unrolled: bool = False) -> Any:
    if n > 1 and not unrolled:
        return jax.lax.fori_loop(0, n, step, carry)
    for i in range(n):
        carry = step(i, carry)
    return carry


def _stack(n: int, step: Callable[[Index], Any]) -> Any:
    """step(0), ..., step(n - 1) on a new leading axis."""
    if n == 1:
        return jax.tree.map(lambda x: x[None], step(0))
    return jax.lax.scan(lambda _, i: (None, step(i)), None, jnp.arange(n))[1]


def _sum_over(step: Callable[[Index, Any], Any], xs: Any) -> Any:
    """Σ step(i, xs[i]) over the leading axis."""
    n = len(jax.tree.leaves(xs)[0])
    if n == 1:
        return step(0, jax.tree.map(lambda x: x[0], xs))
    add = lambda total, x: (jax.tree.map(jnp.add, total, step(*x)), None)
    shapes = jax.eval_shape(lambda: step(0, jax.tree.map(lambda x: x[0], xs)))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, (jnp.arange(n), xs))[0]

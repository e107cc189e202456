"""The tangent rule of the fold: a scan over the tiles of the score matrices.

With p = exp(logits - lse), w = p after dropout, and dl the tangent of the logits, the rule is

    dlse = Σ_s p·dl        dout = Σ_s w·dl·v + Σ_s w·dv - dlse·out

Each block of the scan is checkpointed with nothing saved, and again each of its tiles. JAX
transposes the scan, differentiates it again and maps it: reverse mode, forward mode, their
compositions and vmap are exact and take memory linear in t and s.

Source: the derivative of eq. 1 of Vaswani et al. 2017.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import Index
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Span
from jaxattn._varying import vary
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.loops import NOTHING, by_width, stack, sum_over
from jaxattn.backends.blockwise.walk import Walk, read_keys, read_rows


def tangent(
    walk: Walk,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    hits: Array | None,
    lse: LogSumExp,
    d: tile.Tangents,
) -> tuple[Float[Array, "b t h e"], Float[Array, "b t h"]]:
    """(Σ w·dl·v + Σ w·dv, Σ p·dl) of every query."""
    narrow, fits = walk.narrow(rule.mask)
    if narrow is None:
        return _scan(walk, q, k, v, rule, hits, lse, d)
    # A block reads all the keys that it might need, and what it reads costs time, also where the
    # mask's arrays then tell that a tile would do.
    one_hit = None if hits is None else hits.any(axis=-1, keepdims=True)

    @partial(jax.checkpoint, policy=NOTHING, prevent_cse=False)
    def choose(*args: Any) -> tuple[Array, Array]:
        slim = lambda q, k, v, rule, _, *rest: _scan(narrow, q, k, v, rule, one_hit, *rest)
        return jax.lax.cond(fits, slim, partial(_scan, walk), *args)

    return choose(q, k, v, rule, hits, lse, d)


def _scan(
    walk: Walk,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    hits: Array | None,
    lse: LogSumExp,
    d: tile.Tangents,
) -> tuple[Float[Array, "b t h e"], Float[Array, "b t h"]]:
    plan = walk.plan

    def each_block(run: Index, i: Index) -> tuple[Array, Array]:
        block = partial(_block, walk, run, i)
        block = jax.checkpoint(block, policy=NOTHING, prevent_cse=False)
        return block(q, k, v, rule, hits, lse, d)

    def each_run(run: Index) -> tuple[Array, Array]:
        blocks = [each_block(run, i) for i in range(plan.q_blocks)]
        return jax.tree.map(lambda *x: jnp.stack(x), *blocks)

    if plan.unrolled:
        stacked = stack(walk.runs, each_run)
        mixed, dlse = (jax.lax.collapse(x, 0, 2) for x in stacked)
    else:  # one scan, not two: inside another one, a scan keeps more for a second derivative
        n = plan.q_blocks
        mixed, dlse = stack(walk.runs * n, lambda index: each_block(index // n, index % n))
    return walk.join(mixed), walk.join(dlse)


def _block(
    walk: Walk,
    run_index: Index,
    i: Index,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    hits: Array | None,
    lse: LogSumExp,
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
        parts = cut(0, whole * size)
        parts = parts.reshape(*x.shape[:axis], whole, size, *x.shape[axis + 1 :])
        parts = jnp.moveaxis(parts, axis, 0)
        if whole == plan.k_tiles:
            return parts
        return jnp.concatenate([parts, cut(keys.size - size, keys.size)[None]])

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
            lead = lse_rows.peak.shape
            none = jnp.zeros((*lead, v.shape[3]), acc), jnp.zeros(lead, acc)
            return vary(none, walk.sizes.varying)

        needed = reach.width(j)
        if reach.all_needed and not isinstance(needed, int):
            return narrow(size)
        if whole < plan.k_tiles:  # a tile that was moved back has its new keys at its end
            needed = jnp.where(needed > 0, needed + begin - start, 0)
        return by_width(plan.held_widths, needed, nothing, narrow)

    return sum_over(each_tile, xs)

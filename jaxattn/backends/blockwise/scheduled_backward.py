"""Gradients on accelerators: one loop over the tiles of a run of heads.

The transpose of the tangent rule (tangent.py), written out: products of the operands as they are,
half precision too, and sums in the accumulator's dtype. With g the cotangent of out, and p and w as
there:

    dv = wᵀ g      ds = p·(dropout(g vᵀ) + dlse - g·out)      dq = ds k      dk = dsᵀ q

Source: Dao 2023, algorithm 2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index, cut_axis, dot, put, put_axis
from jaxattn._finite import finite, hide
from jaxattn._lowering import replaced
from jaxattn._mask import EVERYTHING
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Place, Span, Zero
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.loops import repeat
from jaxattn.backends.blockwise.schedule import Tiles, schedule
from jaxattn.backends.blockwise.walk import Run, Walk, read_keys, read_rows, to_rows


class Rows(NamedTuple):
    """What a tile needs of its queries. g: the cotangent of out; dlse: that of lse, less g·out."""

    q: Float[Array, "*a r d"]
    g: Float[Array, "*a r e"]
    lse: LogSumExp
    dlse: Float[Array, "*a r"]


class Sums(NamedTuple):
    """Gradients: of the queries, keys and values of a run of heads, of the scale, and of scores,
    with `Zero` where none is asked for."""

    q: Float[Array, "batches kv group t d"]
    k: Float[Array, "batches kv s d"]
    v: Float[Array, "batches kv s e"]
    scale: Float[Array, ""]
    score: Any


def backward(
    walk: Walk,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    dscore: Any,
    lse: LogSumExp,
    g: Float[Array, "b t h e"],
    dlse: Float[Array, "b t h"],
) -> Sums:
    """The gradients, here of all heads, [b t h d] and [b s n d].

    dscore: the scores with shapes where a gradient is asked for, else `Zero`. g, dlse: as in
    `Rows`, of every query.
    """
    every, tiles_of, acc = Rows(q, g.astype(v.dtype), lse, dlse), schedule(walk, rule.mask), g.dtype
    zeros = lambda *shape: jnp.zeros(shape, acc)
    none: Any = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (q, k, v, dscore))
    dq, dk, dv, dscore = none

    def each_run(index: Index, results: Sums) -> Sums:
        run = walk.run(index)
        lead = run.batches, run.kv
        sums = results._replace(
            q=zeros(*lead, run.group, walk.sizes.t, q.shape[3]),
            k=zeros(*lead, walk.sizes.s, k.shape[3]),
            v=zeros(*lead, walk.sizes.s, v.shape[3]),
        )
        for tiles in tiles_of(index):
            visit = partial(_visit, walk, run, tiles, every, k, v, rule)
            sums = repeat(tiles.count, visit, sums)

        def write(whole: Array, part: Array, head: Index) -> Array:
            return put(whole, part.astype(whole.dtype), (run.batch, 0, head, 0))

        return sums._replace(
            q=write(results.q, to_rows(sums.q), run.q_head),
            k=write(results.k, jnp.moveaxis(sums.k, 1, 2), run.kv_head),
            v=write(results.v, jnp.moveaxis(sums.v, 1, 2), run.kv_head),
        )

    return repeat(walk.runs, each_run, Sums(dq, dk, dv, zeros(), dscore))


def _asked(dscore: Any) -> list[int]:
    """Which arrays of scores have a gradient that is asked for."""
    moves = jax.tree.leaves(dscore, is_leaf=lambda x: isinstance(x, Zero))
    return [i for i, move in enumerate(moves) if not isinstance(move, Zero)]


def _visit(
    walk: Walk,
    run: Run,
    tiles: Tiles,
    every: Rows,
    k: Array,
    v: Array,
    rule: Rule,
    n: Index,
    sums: Sums,
) -> Sums:
    """The sums after the n-th of these tiles."""
    asked = _asked(sums.score)
    i, rows, keys, fresh = tiles.spans(walk, n)
    part = walk.read(rule._replace(mask=EVERYTHING) if tiles.whole else rule, run, rows, keys)
    of_rows = jax.tree.map(lambda x: read_rows(x, run, rows, packed=x.ndim == 4), every)
    of_keys = tuple(read_keys(x, run, keys, packed=True) for x in (k, v))
    one = partial(_tile, fresh, walk.new_rows(i), asked)
    added = Sums(*walk.over_heads(run, one, (of_rows,), of_keys, part, rows, keys))
    dk, dv = (jnp.sum(x, axis=2) for x in (added.k, added.v))
    likes, block = jax.tree.leaves(part.score), walk.block(run, rows, keys)
    parts = iter([_shared(x, likes[i]) for x, i in zip(added.score, asked, strict=True)])
    return Sums(
        _add(sums.q, added.q, rows, 3),
        _add(sums.k, dk, keys, 2),
        _add(sums.v, dv, keys, 2),
        sums.scale + jnp.sum(added.scale),
        tuple(item.add(block, parts) for item in sums.score),
    )


def _add(total: Array, part: Array, span: Span, axis: int) -> Array:
    return put_axis(total, cut_axis(total, span.start, span.size, axis) + part, span.start, axis)


def _shared(x: Array, like: Array) -> Array:
    """The sum over heads and batch elements that read the same part."""
    axes = tuple(axis for axis in range(3) if like.shape[axis] < x.shape[axis])
    return jnp.sum(x, axis=axes, keepdims=True)


def _tile(
    fresh: Bool[Array, " c"] | None,
    new: Bool[Array, " r"] | None,
    asked: Sequence[int],
    rows: Rows,
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rule: Rule,
    place: Place,
) -> tuple[Array, Array, Array, Array, list[Array]]:
    """What a tile of one head adds to each of `Sums`.

    fresh, new: keys and rows in no earlier tile; None for all. Rows and columns that hold NaN or
    Inf count as 0, as in the tangent rule.
    """
    q, k, v = finite(rows.q), finite(k), finite(v)
    g, dlse = rows.g, rows.dlse
    if new is not None:
        g, dlse = jnp.where(new[:, None], g, 0), jnp.where(new, dlse, 0)
    allowed = tile.allows(rule, place, fresh)
    leaves, structure = jax.tree.flatten(rule.score)

    def changed(logits_rc: Array, some: list[Array]) -> Array:
        for item in jax.tree.unflatten(structure, replaced(leaves, asked, some)):
            logits_rc = item.apply(logits_rc, place)
        return logits_rc

    logits_rc, pull = tile.scaled(q, k, rule.scale), None
    if rule.score:
        some = [leaves[i] for i in asked]
        logits_rc, pull = jax.vjp(changed, hide(logits_rc, allowed), some)
    if allowed is not None:
        logits_rc = jnp.where(allowed, logits_rc, -jnp.inf)
    peak = jnp.where(jnp.isfinite(rows.lse.peak), rows.lse.peak, jnp.inf)
    p_rc = jnp.exp((logits_rc - peak[:, None]) - finite(rows.lse.log_total)[:, None])
    w_rc, gv_rc = p_rc, dot(g, v.T)
    if rule.dropout is not None:
        w_rc, gv_rc = (rule.dropout.apply(x, place) for x in (p_rc, gv_rc))
    ds_rc, of_scores = jnp.where(p_rc == 0, 0, p_rc * (gv_rc + dlse[:, None])), []
    if pull is not None:
        ds_rc, of_scores = pull(ds_rc)
        ds_rc = hide(ds_rc, allowed)
    ds_rc = ds_rc.astype(k.dtype)
    dq, dk = dot(ds_rc, k), dot(ds_rc.T, q) * rule.scale
    return dq * rule.scale, dk, dot(w_rc.astype(v.dtype).T, g), jnp.sum(dq * q), of_scores

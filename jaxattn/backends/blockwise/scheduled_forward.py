"""The forward pass on accelerators: one loop over the tiles of a run of heads.

What is known of each query so far is in the results, where a tile reads and writes its rows. So
tiles may come in any order, and nothing but a tile is held. Products are of the operands as they
are, half precision too.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index, accumulator, dot, put
from jaxattn._finite import finite, nan_unless_finite
from jaxattn._mask import EVERYTHING
from jaxattn._problem import Rule
from jaxattn._softmax import Partial
from jaxattn._value import Place
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.loops import repeat
from jaxattn.backends.blockwise.schedule import Tiles, schedule
from jaxattn.backends.blockwise.walk import Run, Walk, read_keys, read_rows, to_rows


def forward(walk: Walk, q: Array, k: Array, v: Array, rule: Rule) -> tuple[Array, Array, Array]:
    """(out, peak, log_total) of every query."""
    acc, tiles_of = accumulator(q.dtype), schedule(walk, rule.mask)

    def each_run(index: Index, state: Partial) -> Partial:
        for tiles in tiles_of(index):
            visit = partial(_visit, walk, walk.run(index), tiles, q, k, v, rule)
            state = repeat(tiles.count, visit, state)
        return state

    zeros = partial(jnp.zeros, dtype=acc)
    unseen = jnp.full(q.shape[:3], -jnp.inf, acc)
    none = Partial(unseen, zeros(q.shape[:3]), zeros((*q.shape[:3], v.shape[3])))
    out, lse = repeat(walk.runs, each_run, none).finish()
    return out, *lse


def _visit(
    walk: Walk,
    run: Run,
    tiles: Tiles,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    n: Index,
    state: Partial,
) -> Partial:
    """The state of all queries after the n-th of these tiles."""
    i, rows, keys, fresh = tiles.spans(walk, n)
    part = walk.read(rule._replace(mask=EVERYTHING) if tiles.whole else rule, run, rows, keys)
    of_rows = lambda x: read_rows(x, run, rows)
    x = nan_unless_finite(read_rows(q, run, rows, True)), jax.tree.map(of_rows, state)
    k_rows, v_rows = (read_keys(x, run, keys, packed=True) for x in (k, v))
    kv = nan_unless_finite(k_rows), v_rows
    one = partial(_whole if tiles.whole else _cut, fresh)
    after = walk.over_heads(
        run, partial(_of_new_rows, one, walk.new_rows(i)), x, kv, part, rows, keys
    )
    starts = run.batch, rows.start, run.q_head, 0
    write = lambda whole, part: put(whole, to_rows(part), starts[: whole.ndim])
    return jax.tree.map(write, state, after)


def _of_new_rows(
    one: Any, new: Bool[Array, " r"] | None, q: Array, state: Partial, *rest: Any
) -> Partial:
    """`one` of a tile; a row that is in an earlier block too has been there already."""
    after = one(q, state, *rest)
    if new is None:
        return after
    fits = lambda x: new.reshape(-1, *(1,) * (x.ndim - 1))
    return jax.tree.map(lambda x, old: jnp.where(fits(x), x, old), after, state)


def _whole(
    fresh: None,
    q: Float[Array, "r d"],
    state: Partial,
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rule: Rule,
    place: Place,
) -> Partial:
    """`state` after a tile of one head in which all is seen: NaN in a value reaches every query."""
    return tile.absorb(state, q, k, nan_unless_finite(v), rule, place, fresh)[0]


def _cut(
    fresh: Bool[Array, " c"] | None,
    q: Float[Array, "r d"],
    state: Partial,
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rule: Rule,
    place: Place,
) -> Partial:
    """`state` after a tile of one head that a mask cuts: NaN reaches those who may see it."""
    allowed = tile.allows(rule, place, fresh)
    if q.shape[0] == 1 and allowed is not None:  # what this one query may not see counts for nobody
        v = jnp.where(allowed.T, nan_unless_finite(v), 0)
        return tile.absorb(state, q, k, v, rule, place, fresh)[0]
    after, _ = tile.absorb(state, q, k, finite(v), rule, place, fresh)
    every = jnp.broadcast_to(True if allowed is None else allowed, (q.shape[0], k.shape[0]))
    poisoned = dot(every.astype(v.dtype), (~jnp.isfinite(v)).astype(v.dtype)) > 0
    return after._replace(accumulator=jnp.where(poisoned, jnp.nan, after.accumulator))

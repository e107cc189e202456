"""The tangent rule of the fold: a scan over the tiles of the score matrices.

With p = exp(logits - lse), w = p after dropout, and dl the tangent of the logits, the rule is

    dlse = Σ_s p·dl        dout = Σ_s w·dl·v + Σ_s w·dv - dlse·out

Each block of the scan is checkpointed with nothing saved, and again each of its tiles. JAX
transposes the scan, differentiates it again and maps it: reverse mode, forward mode, their
compositions and vmap are exact and take memory linear in t and s.

Source: the derivative of eq. 1 of Vaswani et al. 2017.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index
from jaxattn._problem import Rule
from jaxattn._score import BoundScore
from jaxattn._softmax import LogSumExp
from jaxattn._value import Span
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.loops import NOTHING, by_width, stack, sum_over
from jaxattn.backends.blockwise.walk import Reach, Run, Walk, read_keys, read_rows


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

    read_q = lambda x: None if x is None else read_rows(x, run, rows).astype(acc)
    read_k = lambda x: None if x is None else read_keys(x, run, keys).astype(acc)
    lse_rows = jax.tree.map(lambda x: read_rows(x, run, rows), lse)
    of_rows: Any = read_q(q), lse_rows, read_q(d.q)
    of_keys = tuple(map(read_k, (k, v, d.k, d.v)))
    score, dscore = (walk.read(x, run, rows, keys) for x in (rule.score, d.score))

    block = Tiles(walk, run, rows, keys, reach, of_rows, rule, d.scale, score, dscore, v.shape[3])
    tiles = jax.tree.map(lambda x: block.cut(x, axis=2), of_keys)
    return sum_over(block.visit, (tiles, block.along_keys(block.cut)))


class Tiles(NamedTuple):
    """A block of queries of a run of heads, and the tiles of `keys`, all that it could need.

    of_rows: (q, lse, dq) of the block. score, dscore: the parts of the scores that it needs, of
    which the arrays with an axis of keys go from tile to tile, and the others stay.
    """

    walk: Walk
    run: Run
    rows: Span
    keys: Span
    reach: Reach
    of_rows: tuple[Array, LogSumExp, Array | None]
    rule: Rule
    dscale: Float[Array, ""] | None
    score: tuple[BoundScore, ...]
    dscore: tuple[BoundScore, ...] | None
    features: int

    @property
    def is_even(self) -> bool:
        """Whether the tiles cover the keys without an overlap."""
        plan = self.walk.plan
        return self.keys.size // plan.k_block == plan.k_tiles

    def cut(self, x: Array, axis: int) -> Array:
        """The tiles of x along an axis, on a new first axis; the last tile ends with x."""
        size = self.walk.plan.k_block
        whole = self.keys.size // size
        part = partial(jax.lax.slice_in_dim, x, axis=axis)
        tiles = part(0, whole * size)
        tiles = tiles.reshape(*x.shape[:axis], whole, size, *x.shape[axis + 1 :])
        tiles = jnp.moveaxis(tiles, axis, 0)
        if self.is_even:
            return tiles
        return jnp.concatenate([tiles, part(self.keys.size - size, self.keys.size)[None]])

    def along_keys(self, cut: Callable[[Array, int], Array]) -> list[Array]:
        """cut(array, axis) of each array of the scores that has an axis of keys."""
        found: list[Array] = []
        for part in (*self.score, *(self.dscore or ())):
            part.along_keys(lambda x, axis: found.append(cut(x, axis)))
        return found

    def with_keys(
        self, arrays: list[Array], cut: Callable[[Array, int], Array]
    ) -> tuple[tuple[BoundScore, ...], tuple[BoundScore, ...] | None]:
        """(score, dscore) with cut(array, axis) of these for the arrays that `along_keys` found."""
        rest = iter(arrays)
        fill = lambda part: part.along_keys(lambda _, axis: cut(next(rest), axis))
        score = tuple(map(fill, self.score))
        return score, None if self.dscore is None else tuple(map(fill, self.dscore))

    def visit(self, j: Index, tiles: Any) -> tuple[Array, Array]:
        """What the j-th tile gives. tiles: what `_block` cut for it."""
        plan, reach = self.walk.plan, self.reach
        begin, start = reach.begin(j), reach.begin(j)
        if not self.is_even:
            start = self.keys.start + jnp.minimum(j * plan.k_block, self.keys.size - plan.k_block)
        narrow = partial(self._narrow, begin, start, tiles)
        needed = reach.width(j)
        if reach.all_needed and not isinstance(needed, int):
            return narrow(plan.k_block)
        if not self.is_even:  # a tile that was moved back has its new keys at its end
            needed = jnp.where(needed > 0, needed + begin - start, 0)
        return by_width(plan.held_widths, needed, self._nothing, narrow)

    def _nothing(self) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(self.of_rows[1].peak)
        return jnp.zeros((*zeros.shape, self.features), zeros.dtype), zeros

    def _narrow(self, begin: Index, start: Index, tiles: Any, width: int) -> tuple[Array, Array]:
        """The first `width` keys of a tile. begin: the first that is in no tile before it."""
        span, walk = Span(start, width), self.walk
        fresh = None if self.is_even else span.indices() >= begin
        one = partial(_tile, fresh, self.dscale)

        @partial(jax.checkpoint, policy=NOTHING, prevent_cse=False)
        def compute(of_rows: Any, of_keys: Any, along_keys: Any) -> tuple[Array, Array]:
            of_keys = jax.tree.map(lambda x: x[:, :, :width], of_keys)
            cut = lambda x, axis: jax.lax.slice_in_dim(x, 0, width, axis=axis)
            score, dscore = self.with_keys(along_keys, cut)
            part = walk.read(self.rule._replace(score=()), self.run, self.rows, span)
            part = part._replace(score=score), dscore
            return walk.over_heads(self.run, one, of_rows, of_keys, part, self.rows, span)

        return compute(self.of_rows, *tiles)


def _tile(fresh: Bool[Array, " c"] | None, dscale: Any, *x: Any) -> tuple[Array, Array]:
    """`tile.tangent` of the arrays as `Tiles` has them."""
    q, lse, dq, k, v, dk, dv, (rule, dscore), place = x
    moves = tile.Tangents(dq, dk, dv, dscale, dscore)
    return tile.tangent(q, k, v, rule, place, fresh, lse, moves)

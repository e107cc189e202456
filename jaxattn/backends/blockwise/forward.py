"""The forward fold: softmax and products, tile by tile, with a running peak and total.

Source: Rabe and Staats 2021; Dao et al. 2022.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index, accumulator, ceil_div, dot, put
from jaxattn._finite import nan_unless_finite
from jaxattn._mask import BoundMask
from jaxattn._observation import Watch
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp, Partial, nothing
from jaxattn._value import Place, Sizes, Span
from jaxattn.backends.blockwise import stairs, tile, watch
from jaxattn.backends.blockwise.loops import after, by_width, loop, repeat
from jaxattn.backends.blockwise.walk import (
    Keys,
    Reach,
    Run,
    Walk,
    read_keys,
    read_rows,
    to_rows,
)

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
        run, in_turn = walk.run(index), InTurn(walk, rule.mask, watched)
        keys = Keys.of(k, v, run, acc, trusting, keep=plan.q_blocks > 1)

        def each_block(i: Index, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            *wholes, states = carry
            block = QueryBlock.of(walk, index, i, q, keys, rule, hits, watched, in_turn.before(i))
            *parts, added = block.attend(hits, widths)
            in_turn.made(i, (parts, added))
            starts = (run.batch, block.rows.start, run.q_head, 0)
            written = lambda whole, part: put(whole, to_rows(part), starts[: whole.ndim])
            if watched:
                states = watch.add(watched, states, added, run, block.rows, block.held.start)
            return (*map(written, wholes, parts), states)

        return repeat(plan.q_blocks, each_block, carry, plan.unrolled)

    # Every row will be written, whatever is there. Zeros could be made before q is: XLA would make
    # those of all layers of a model first, and hold them.
    anything = q[0, 0, 0, :1].sum()
    flat = jnp.full(q.shape[:3], anything, acc)
    empty = jnp.full((*q.shape[:3], v.shape[3]), anything, acc), flat, flat
    return repeat(walk.runs, each_run, (*empty, watch.start(walk, watched, acc)))


class InTurn:
    """Blocks of an unrolled walk that are observed: a block is made after those that there is no
    room for beside it. Else XLA makes the tiles of all first, and holds what observations need."""

    def __init__(self, walk: Walk, mask: BoundMask, watched: Watch) -> None:
        plan = walk.plan
        heads = plan.batch * plan.heads
        self.needed = bool(watched) and plan.unrolled
        self.needed &= heads * walk.sizes.t * plan.k_block > SMALL
        self.room = AT_A_TIME if len(watched) < MANY else 0
        self.walk, self.mask, self.scores_of_key = walk, mask, heads * plan.q_block
        self.beside: list[tuple[int, Any]] = []

    def before(self, i: Index) -> list[Any]:
        """What is to be there before the i-th block is made."""
        ready = []
        while self.beside and self._scores(i) + sum(size for size, _ in self.beside) > self.room:
            ready.append(self.beside.pop(0)[1])
        return ready

    def made(self, i: Index, results: Any) -> None:
        if self.needed:
            self.beside.append((self._scores(i), results))

    def _scores(self, i: Index) -> int:
        """How many scores the i-th block holds."""
        first, stop = self.mask.limits(self.walk.rows(i), self.walk.sizes.s)
        return self.scores_of_key * (stop - first)


class QueryBlock(NamedTuple):
    """The i-th block of queries of a run of heads, and the keys that it needs.

    held: the keys that its part of the observations is of. unseen: that part before any pair is
    seen.
    """

    walk: Walk
    run: Run
    i: Index
    rows: Span
    q: Float[Array, "batches kv group r d"]
    keys: Keys
    rule: Rule
    watched: Watch
    reach: Reach
    held: Span
    unseen: Any

    @staticmethod
    def of(
        walk: Walk,
        run_index: Index,
        i: Index,
        q: Array,
        keys: Keys,
        rule: Rule,
        hits: Array | None,
        watched: Watch,
        before: list[Any],
    ) -> "QueryBlock":
        """before: what has to be there first."""
        run, rows = walk.run(run_index), walk.rows(i)
        reach = walk.reach(rule.mask, hits, run_index, i)
        q_rows = nan_unless_finite(read_rows(q, run, rows).astype(keys.dtype))
        q_rows = after(q_rows, before) if before else q_rows
        held = walk.keys(reach.begin(0), walk.plan.k_block)
        unseen = watch.nothing(walk, watched, run, rows.size, held.size, keys.dtype)
        return QueryBlock(walk, run, i, rows, q_rows, keys, rule, watched, reach, held, unseen)

    def attend(self, hits: Array | None, widths: tuple[int, ...]) -> tuple[Any, ...]:
        """(out, peak, log_total, what is added to the states). widths: of the last tile."""
        walk, reach = self.walk, self.reach
        way = stairs.find(walk, self.rule.mask, self.i) if isinstance(self.i, int) else None
        # The last tile goes first: it may be narrower, and it starts the state.
        first, last = reach.tiles()
        if way is not None and hits is None:
            state, added = self.climb(way)
        elif way is not None:
            climb = partial(self.climb, way)
            state, added = jax.lax.cond(reach.width(last) > 0, climb, self.blank)
        else:
            visit = lambda width: self.visit(last, width, None)
            state, added = by_width(widths, reach.width(last), self.blank, visit)
        if walk.plan.k_tiles > 1:
            state = loop(first, last, partial(self.visit_full, hits is None), state)
        close = lambda state, part, place: state.finish()
        out, lse = walk.over_heads(self.run, close, (state,), (), (), self.rows, self.rows)
        return out, *lse, added

    def blank(self) -> tuple[Partial, Any]:
        """Where no tile is needed."""
        none = nothing(self.rows.size, self.keys.v.shape[-1], self.q.dtype)
        grow = lambda x: jnp.broadcast_to(x, (*self.q.shape[:3], *x.shape))
        return jax.tree.map(grow, none), self.unseen

    def visit_full(self, needed: bool, j: Index, state: Partial) -> Partial:
        """`state` after the j-th tile; `needed` if it is known to be."""
        full = lambda: self.visit(j, self.walk.plan.k_block, state)[0]
        return full() if needed else jax.lax.cond(self.reach.width(j) > 0, full, lambda: state)

    def visit(self, j: Index, width: int, state: Partial | None) -> tuple[Partial, Any]:
        """The j-th tile, of `width` keys; without a state it is the first."""
        begin = self.reach.begin(j)
        span = self.walk.keys(begin, width)
        part = self.walk.read((self.rule, self.watched), self.run, self.rows, span)
        fresh = span.indices() >= begin if self.reach.overlaps else None
        one = partial(_tile, fresh, self.walk.new_rows(self.i))
        return self._over_heads(one, (self.q, state), part, span)

    def climb(self, way: stairs.Stairs) -> tuple[Partial, Any]:
        """The only tile, by its stairs."""
        read = lambda piece: self.walk.read((self.rule, self.watched), self.run, *piece)
        one = partial(_stairs, way, self.walk.new_rows(self.i), self.walk.sizes)
        return self._over_heads(one, (self.q,), tuple(map(read, way.pieces)), way.whole.keys)

    def _over_heads(self, one: Any, x: Any, part: Any, span: Span) -> tuple[Partial, Any]:
        of_heads = self.walk.over_heads
        state, added = of_heads(self.run, one, x, self.keys.read(span), part, self.rows, span)
        at = span.start - self.held.start
        return state, watch.widen(self.watched, added, at, self.unseen)


def _tile(
    fresh: Bool[Array, " c"] | None,
    new: Bool[Array, " r"] | None,
    q: Float[Array, "r d"],
    state: Partial | None,
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    part: tuple[Rule, Watch],
    place: Place,
) -> tuple[Partial, Any]:
    """(`state` after a tile of one head, what it adds). fresh, new: keys and rows in no earlier
    tile; None for all."""
    rule, watched = part
    after, tiles = tile.absorb(state, q, k, v, rule, place, fresh)
    if not watched:
        return after, ()
    tiles, lse = _apart(tiles, after)
    return after, watch.look(watched, tiles, lse, rule, place, fresh, new)


def _stairs(
    way: stairs.Stairs,
    new: Bool[Array, " r"] | None,
    sizes: Sizes,
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    parts: tuple[tuple[Rule, Watch], ...],
    place: Place,
) -> tuple[Partial, Any]:
    """`_tile` by its stairs. parts: of the pieces."""
    rules, each = zip(*parts, strict=True)
    after, tiles = stairs.absorb(way, q, k, v, rules, place)
    if not each[0]:
        return after, ()
    tiles, lse = _apart(tiles, after)
    return after, stairs.look(way, each, tiles, lse, rules, place, new, sizes)


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
        seen = loop(0, tiles, each_tile, jnp.zeros(old.shape, bool))
        new = to_rows(jnp.where(seen, jnp.nan, old))
        return put(out, new, (run.batch, rows.start, run.q_head, 0))

    return repeat(walk.runs * plan.q_blocks, each_block, out)

"""Observations for Hopper from the lse, in two kernels: what queries give, and what keys get.

Both make the weights of a tile again. In the first a program has queries, and keys come through the
ring: it sums and compares along its rows. In the second it has keys, with the tiles' keys first,
and queries come: what its keys receive is a sum along its rows, and so is a picture's cell. All
sums are made in one order, by one warpgroup: the same bits every time.
"""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxattn._axes import INDEX, ceil_div, count_to
from jaxattn._finite import finite
from jaxattn._mask import BoundMask
from jaxattn._observation import Grid, Statistic, Watch
from jaxattn._problem import Rule
from jaxattn._score import BoundFunction
from jaxattn._value import Place, Sizes, Span, unflatten_index
from jaxattn.backends.hopper.kernel import Kernel
from jaxattn.backends.hopper.place import ROW, TILE, ColumnSpan, Here, TilePlace, operands, pieces
from jaxattn.backends.hopper.plan import ROWS, SHARED_BYTES, WARPGROUPS, KeyTiles, Plan, Tiles
from jaxattn.backends.hopper.warpgroups import LOG2E, Ring, by_heads, even, product

BLOCK = WARPGROUPS * ROWS  # queries or keys of a program
BARRIERS = 1024  # bytes that those take at most
LEAST = -1e30  # in place of the log of a weight of 0: their product is 0
FINEST = 8  # queries, and keys, that a cell of a picture has at least
ENTROPY, PEAK, PEAK_BEFORE_SCORES, RECEIVED = Statistic
MASS, COUNT = "mass", "count"  # of what a key receives


def choose(watched: Watch, rule: Rule, d: int) -> tuple[Plan, list[bool]]:
    """The plan of both kernels, for d features, and which observations they make."""
    grids = [x.statistic for x in watched if isinstance(x.statistic, Grid)]
    plan = Plan(BLOCK, 128, 2)
    by_hand = any(isinstance(item, BoundFunction) for item in rule.score)
    if d > 128 or by_hand or not all(Cells(x, plan).even for x in grids):  # for registers
        plan = replace(plan, block_kv=64)
    room = SHARED_BYTES - BARRIERS - 2 * d * (BLOCK + plan.stages * plan.block_kv)

    def shown(statistic: Statistic | Grid | None) -> bool:
        nonlocal room
        if not isinstance(statistic, Grid):
            return statistic is not None
        taken = 4 * BLOCK * Cells(statistic, plan).height
        if min(statistic.down, statistic.across) < FINEST or taken > room:
            return False
        room -= taken
        return True

    return plan, [shown(observation.statistic) for observation in watched]


def observe(
    plan: Plan,
    sizes: Sizes,
    q: Array,
    k: Array,
    rule: Rule,
    watched: Watch,
    lse: Float[Array, "b t h"],
    interpret: Any = None,
) -> tuple[Any, ...]:
    """The states of observations that `choose` names, by its plan. One batch axis; features of
    `WIDTHS`. lse: with the sinks. NaN in it is NaN for all that the query may see."""
    rule, mask = rule._replace(dropout=None, sinks=None), rule.mask
    asked = [observation.statistic for observation in watched]
    (b, t, h, _), s = q.shape, k.shape[1]
    tiles, by_keys = Tiles(plan, sizes, mask), KeyTiles(plan, sizes, mask)
    length = max(tiles.programs * BLOCK, by_keys.across * by_keys.size)
    columns = max(tiles.across * tiles.size, by_keys.programs * BLOCK)
    # A query that sees no key has weights of 0, and so has one after the last.
    logs = by_heads(length, jnp.where(jnp.isneginf(lse), jnp.inf, lse) * LOG2E, jnp.inf)
    # Queries after the last have weights of NaN for a key of NaN. A query shows it by its lse, but
    # not in a peak, for which it counts as 0.
    q = finite(q) if PEAK in asked or PEAK_BEFORE_SCORES in asked else q
    given, group = [even(q), even(finite(k)), logs], h // k.shape[2]

    def run(kernel: Any, tiles: Tiles, parts: Any, shapes: list[tuple[int, ...]]) -> list[Array]:
        if not parts:
            return []
        more = operands(rule, length, columns, kernel.keys_first)
        like = [jax.ShapeDtypeStruct((b, h, *shape), jnp.float32) for shape in shapes]
        return kernel(tiles, rule, group, more, interpret, parts=parts).run(h, given, like)

    names = list(dict.fromkeys(x for x in asked if x in (ENTROPY, PEAK, PEAK_BEFORE_SCORES)))
    made = run(_OfQueries, tiles, names, [(tiles.programs * BLOCK,)] * len(names))
    found: dict[Any, Any] = dict(zip(names, (x[:, :, :t] for x in made), strict=True))
    found = {x: y.swapaxes(1, 2) if x is ENTROPY else y.max(axis=2) for x, y in found.items()}

    queries = _count(mask, sizes) if RECEIVED in asked else None
    of_key = [] if RECEIVED not in asked else [MASS] if queries is not None else [MASS, COUNT]
    pictures = [Cells(x, plan) for x in dict.fromkeys(asked) if isinstance(x, Grid)]
    blocks = by_keys.programs * WARPGROUPS
    shapes = [*[(blocks * ROWS,)] * len(of_key), *((blocks, x.width, x.height) for x in pictures)]
    made = run(_OfKeys, by_keys, [*of_key, *pictures], shapes)
    found |= {x.grid: x.join(y) for x, y in zip(pictures, made[len(of_key) :], strict=True)}
    if of_key:
        mass, *rest = (x[:, :, :s].swapaxes(1, 2) for x in made[: len(of_key)])
        count = rest[0].astype(jnp.int32) if queries is None else queries
        found[RECEIVED] = mass, jnp.broadcast_to(count, mass.shape)
    return tuple(found[x] for x in asked)


def _count(mask: BoundMask, sizes: Sizes) -> Array | None:
    """How many queries may see each key, [b s 1], of a mask that tells without looking."""
    rows, keys = Span(0, sizes.t), Span(0, sizes.s)

    def one(flat: Array) -> Array | None:
        batch = unflatten_index(flat, sizes.batch)
        return mask.element(batch).count(Place(batch, 0, rows, keys))

    count = jax.vmap(one)(count_to(math.prod(sizes.batch)))
    return None if count is None else count[..., None].astype(jnp.int32)


class _Observing(Kernel):
    """parts: what it makes, in the order of its results."""

    def __init__(self, *rest: Any, parts: list[Any]) -> None:
        super().__init__(*rest)
        self.parts = parts

    def scratch(self, shared: Callable[..., Any], d: int, e: int) -> list[Any]:
        barrier = plgpu.Barrier(num_barriers=WARPGROUPS)
        return [barrier, shared(WARPGROUPS, self.mine, d)]

    def fetch(self, source: Any, head: Any, here: Here, there: Any, mine: Any) -> None:
        """Its rows, or keys, of the source."""
        part = source.at[pl.ds(here.mine.start, self.mine), head]
        plgpu.copy_gmem_to_smem(part, mine, there)
        plgpu.barrier_wait(there)

    def row(self, x: float) -> Array:
        """x for each row."""
        return plgpu.layout_cast(jnp.full((self.mine,), x, jnp.float32), ROW)

    def product(self, mine: Any, ring: Ring, i: Any) -> Array:
        """That with the i-th tile, which may go then."""
        slot = ring.slot(i)
        plgpu.barrier_wait(ring.a_there.at[slot])
        x = product(mine, ring.a.at[slot])
        plgpu.barrier_arrive(ring.a_free.at[slot])
        return x


class _OfQueries(_Observing):
    def ring_of(self, arrays: list[Any]) -> list[Any]:
        return arrays[1:2]

    def compute(
        self, here: Here, arrays: Any, ring: Ring, more: Any, results: Any, scratch: Any
    ) -> None:
        there, mine = (x.at[here.warpgroup] for x in scratch)
        self.fetch(arrays[0], here.head, here, there, mine)
        rows = pl.ds(here.mine.start, self.mine)

        logs = None
        if ENTROPY in self.parts:
            logs = plgpu.load(arrays[2].at[here.head, rows], layout=ROW, optimized=False)

        def step(masked: bool, i: Any, state: Any) -> Any:
            x = self.product(mine, ring, i)
            return self.absorb(state, x, self.place(here, i), logs, more, masked)

        start = [self.row(0.0 if name is ENTROPY else -jnp.inf) for name in self.parts]
        for made, result in zip(self.over(here, step, start), results, strict=True):
            result.at[here.head, rows][...] = made

    def absorb(
        self, state: list[Array], x: Array, place: TilePlace, logs: Any, more: Any, masked: bool
    ) -> list[Array]:
        """The state after a tile. x: q kᵀ. logs: lse · log2 e of the queries."""
        mask, score, _, scale = pieces(self.rule, more, place)

        def hidden(x: Array, instead: float) -> Array:
            allowed = mask.allows(place) if masked else None
            if masked and self.sizes.s % self.tiles.size:
                there = place.k < self.sizes.s
                allowed = there if allowed is None else allowed & there
            return x if allowed is None else jnp.where(allowed, x, instead)

        scaled = x * scale
        logits = hidden(scaled, 0.0) if score else scaled
        for item in score:
            logits = item.apply(logits, place)
        logits = hidden(logits, -jnp.inf)

        def one(name: Statistic, before: Array) -> Array:
            if name is ENTROPY:
                log = logits * LOG2E - place.each_q(logs)
                part = (jnp.exp2(log) * jnp.maximum(log, LEAST)).sum(axis=1)
                return before - part / LOG2E
            seen = logits
            if name is PEAK_BEFORE_SCORES and score:
                seen = jnp.where(logits > -jnp.inf, scaled, -jnp.inf)
            return jnp.maximum(before, seen.max(axis=1))

        return [one(*x) for x in zip(self.parts, state, strict=True)]


class _OfKeys(_Observing):
    keys_first = True

    def ring_of(self, arrays: list[Any]) -> list[Any]:
        return arrays[:1]

    def coming(self, here: Here, i: Any) -> tuple[Any, Any]:
        return here.tile(i), here.head

    def place(self, here: Here, i: Any) -> TilePlace:
        rows = Span(here.tile(i) * self.tiles.size, self.tiles.size)
        return TilePlace.of(here, here.head, rows, here.mine, keys_first=True)

    @property
    def numbers(self) -> list[str]:
        """Those of each key that it makes."""
        return [x for x in self.parts if isinstance(x, str)]

    @property
    def pictures(self) -> "list[Cells]":
        return [x for x in self.parts if isinstance(x, Cells)]

    def scratch(self, shared: Callable[..., Any], d: int, e: int) -> list[Any]:
        pool = lambda x: plgpu.SMEM((WARPGROUPS, x.height, self.mine), jnp.float32)
        return [*super().scratch(shared, d, e), *map(pool, self.pictures)]

    def compute(
        self, here: Here, arrays: Any, ring: Ring, more: Any, results: Any, scratch: Any
    ) -> None:
        there, mine, *pools = (x.at[here.warpgroup] for x in scratch)
        self.fetch(arrays[1], lax.div(here.head, INDEX(self.group)), here, there, mine)
        drawn = list(zip(self.pictures, pools, strict=True))
        for picture, pool in drawn:
            picture.clear(pool, self.row(0.0))

        def step(masked: bool, i: Any, state: list[Array]) -> list[Array]:
            place = self.place(here, i)
            part = arrays[2].at[here.head, pl.ds(place.rows.start, place.rows.size)]
            log = plgpu.load(part, layout=place.layout("t"), optimized=False)
            x = self.product(mine, ring, i)
            p, count = self.weights(x, place, log, more, masked)
            for picture, pool in drawn:
                picture.absorb(p, place, here.tile(i), pool)
            made = {MASS: lambda: p.sum(axis=1), COUNT: count}
            return [x + made[name]() for name, x in zip(self.numbers, state, strict=True)]

        sums = self.over(here, step, [self.row(0.0) for _ in self.numbers])
        for made, result in zip(sums, results, strict=False):
            result.at[here.head, pl.ds(here.mine.start, self.mine)][...] = made
        if drawn:
            plgpu.commit_smem()  # what was written as rows is read as tiles
        for (picture, pool), result in zip(drawn, results[len(sums) :], strict=True):
            picture.flush(here.mine, self.sizes.s, pool, result.at[here.head])

    def weights(
        self, x: Array, place: TilePlace, log: Array, more: Any, masked: bool
    ) -> tuple[Array, Callable[[], Any]]:
        """The weights, and what counts the queries that may see each key. x: k qᵀ. log: lse ·
        log2 e of the queries."""
        mask, score, _, scale = pieces(self.rule, more, place)
        allows = lambda: mask.allows(place) if masked else None

        def hidden(x: Array, instead: float) -> Array:
            allowed = allows()
            return x if allowed is None else jnp.where(allowed, x, instead)

        unit = scale * LOG2E
        if score:
            x, unit = hidden(x * scale, 0.0), LOG2E
            for item in score:
                x = item.apply(x, place)
        p = jnp.exp2(hidden(x * unit - place.each_q(log), -jnp.inf))

        def count() -> Any:
            allowed, t = allows(), self.sizes.t
            if allowed is None:
                there = jnp.minimum(t - place.rows.start, place.rows.size)
                return lax.broadcast_in_dim(there.astype(jnp.float32), (self.mine,), [])
            if t % place.rows.size:
                allowed &= place.q < t
            return jnp.where(allowed, 1.0, 0.0).sum(axis=1)

        return p, count


class Cells:
    """A `Grid` in a kernel: for each warpgroup the cells of all queries by its own keys, in shared
    memory, and at the end by the cells of its keys.

    height: how many cells of queries there is room for. width: of keys. parts: how many cells of
    queries a tile has a part of.
    """

    def __init__(self, grid: Grid, plan: Plan) -> None:
        self.grid, self.size = grid, plan.block_kv
        self.height = ceil_div(grid.rows, ROWS) * ROWS
        self.parts, self.width = _most(self.size, grid.down), _most(ROWS, grid.across)

    @property
    def even(self) -> bool:
        """Whether a cell has whole blocks of queries, or a block whole cells."""
        return self.grid.down % self.size == 0 or self.size % self.grid.down == 0

    def reduce(self, x: Array) -> Array:
        return x.max(axis=1) if self.grid.largest else x.sum(axis=1)

    def clear(self, pool: Any, nothing: Array) -> None:
        def one(cell: Any, _: Any) -> None:
            pool.at[cell][...] = nothing

        lax.fori_loop(INDEX(0), INDEX(self.height), one, None)

    def absorb(self, p: Array, place: TilePlace, tile: Any, pool: Any) -> None:
        """Adds the tile's weights, [keys queries]."""
        first = lax.div(tile * self.size, INDEX(self.grid.down))
        for j, part in enumerate(self.cut(p, place, first)):
            here = pool.at[jnp.minimum(first + j, self.grid.rows - 1)]  # beyond it there are zeros
            before = plgpu.load(here, layout=ROW, optimized=False)
            both = jnp.maximum if self.grid.largest else jnp.add
            here[...] = both(before, self.reduce(part))

    def cut(self, p: Array, place: TilePlace, first: Any) -> list[Array]:
        """The weights of each cell of queries, from the first on."""
        if self.parts == 1:
            return [p]
        if self.even:
            starts = range(0, self.size, self.grid.down)
            return [lax.slice(p, (0, at), (len(p), at + self.grid.down)) for at in starts]
        cell = lax.div(place.rows.indices(), INDEX(self.grid.down)) - first
        return [jnp.where(place.each_q(cell) == j, p, 0.0) for j in range(self.parts)]

    def flush(self, mine: Span, s: int, pool: Any, result: Any) -> None:
        """What the cells of all queries get from those of its keys."""
        result = result.at[lax.div(mine.start, INDEX(ROWS))]
        keys = ColumnSpan(*mine).indices()
        cell = lax.div(keys, INDEX(self.grid.across)) - lax.div(mine.start, INDEX(self.grid.across))
        cell = jnp.where(keys < s, cell, -1)

        def some(i: Any, _: Any) -> None:
            rows = pl.ds(i * ROWS, ROWS)
            x = plgpu.load(pool.at[rows], layout=TILE, optimized=False)
            of = lax.broadcast_in_dim(cell, x.shape, [1])
            for j in range(self.width):
                result.at[j, rows][...] = self.reduce(jnp.where(of == j, x, 0.0))

        lax.fori_loop(INDEX(0), INDEX(self.height // ROWS), some, None)

    def join(self, x: Float[Array, "b h blocks columns rows"]) -> Float[Array, "b h rows columns"]:
        """The picture, from those of all blocks of keys."""
        cells, blocks = self.grid.columns, x.shape[2]
        column = np.arange(blocks)[:, None] * ROWS // self.grid.across + np.arange(self.width)
        order, counts = np.argsort(column.ravel(), kind="stable"), np.bincount(column.ravel())
        first, counts = np.cumsum(counts) - counts, counts[:cells, None]
        at = first[:cells, None] + np.arange(counts.max())
        there = np.arange(counts.max()) < counts
        parts = x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, order[np.where(there, at, 0)]]
        parts = jnp.where(there[..., None], parts, 0)
        joined = parts.max(axis=3) if self.grid.largest else parts.sum(axis=3)
        return joined[..., : self.grid.rows].swapaxes(2, 3)


def _most(size: int, side: int) -> int:
    """How many cells of a side a block of so many, which starts at a multiple of that, has a part
    of at most."""
    if side % size == 0 or size % side == 0:
        return ceil_div(size, side)
    return (size + side - 2) // side + 1

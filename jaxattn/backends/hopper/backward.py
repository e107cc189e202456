"""Gradients for Hopper, in two kernels: of the queries, and of the keys and values.

Both make the weights of a tile again from the lse, as the tangent rule of `Blockwise` has them. In
the first a program has queries, and keys and values come through the ring; in the second it has
keys and values, with the tiles' keys first, and what comes is the queries of all heads that share
them. So each gradient is summed in the registers of one warpgroup, in one order: the same bits
every time.

Source: Dao 2023, algorithm 2; Shah et al. 2024, appendix B.
"""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxattn._axes import INDEX, ceil_div
from jaxattn._finite import finite
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Sizes, Span, unflatten_index
from jaxattn.backends.hopper.place import TILE, TilePlace, operands, pieces
from jaxattn.backends.hopper.plan import ROWS, WARPGROUPS, KeyTiles, Plan, Tiles
from jaxattn.backends.hopper.warpgroups import (
    COMPUTING,
    LOADING,
    LOG2E,
    Ring,
    contract,
    even,
    over,
    product,
    ring_barriers,
    shared_tile,
)

PLAN = Plan(WARPGROUPS * ROWS, 64, 2)


def backward(
    sizes: Sizes,
    q: Array,
    k: Array,
    v: Array,
    rule: Rule,
    lse: LogSumExp,
    g: Float[Array, "b t h e"],
    dlse: Float[Array, "b t h"],
    interpret: Any = None,
) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v. g: the cotangent of out; dlse: that of lse, less g·out."""
    plan, mask = PLAN, rule.mask
    tiles, by_keys = Tiles(plan, sizes, mask), KeyTiles(plan, sizes, mask)
    length = max(tiles.programs, ceil_div(by_keys.across * by_keys.size, plan.block_q))
    length *= plan.block_q
    of_heads = partial(_rows, length)
    # Rows and columns that hold NaN or Inf count as 0, and so does a query whose lse is not finite.
    # What rounding its two parts to one takes is as little as the products of half precision lose.
    whole = jnp.where(jnp.isfinite(lse.value), lse.value, jnp.inf) * LOG2E
    rows = of_heads(whole, jnp.inf), of_heads(dlse, 0)
    values = rule.mask, rule.score, rule.dropout, rule.scale
    columns = max(tiles.across * plan.block_kv, by_keys.programs * plan.block_q)
    more = operands(values, length, columns)
    arrays = [even(x) for x in (finite(q), finite(k), v, g.astype(q.dtype))]
    given = plan, sizes, rule, q.shape[2] // k.shape[2], len(more), interpret
    (dq,) = _run(_OfQueries(tiles, *given), arrays, rows, more, arrays[:1])
    dk, dv = _run(_OfKeys(by_keys, *given), arrays, rows, more, arrays[1:3])
    return dq[:, : q.shape[1]], dk[:, : k.shape[1]], dv[:, : k.shape[1]]


def _rows(length: int, x: Float[Array, "b t h"], beyond: float) -> Float[Array, "b h length"]:
    """x of each head, with `beyond` after the last query."""
    more = (0, 0), (0, 0), (0, length - x.shape[1])
    return jnp.pad(x.swapaxes(1, 2), more, constant_values=beyond)


def _run(call: "_Call", arrays: Any, rows: Any, more: Any, like: Any) -> Any:
    q, k, v, _ = arrays
    heads = (k if call.keys_first else q).shape[2]
    kernel = plgpu.kernel(
        call.kernel,
        out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
        scratch_types=call.scratch(q.dtype, q.shape[3], v.shape[3]),
        grid=(heads, call.tiles.programs, q.shape[0]),
        grid_names=("head", "program", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({} if call.interpret is None else {"interpret": call.interpret}),
    )
    # Under `jax.vmap` it runs once for each element.
    return sequential_vmap(kernel)(*arrays, *rows, call.tiles.bounds(), *more)


class Tile(NamedTuple):
    """What there is of a tile: the weights that values are mixed with, and what makes the gradient
    of the scaled q kᵀ, later, when the registers of the weights are free."""

    w: Array
    ds: Callable[[], Array]


class _Call:
    """What is fixed while a kernel is traced. Of a warpgroup: 64 rows, or 64 keys if `keys_first`;
    what comes through the ring is the other."""

    keys_first = False

    def __init__(
        self,
        tiles: Any,
        plan: Plan,
        sizes: Sizes,
        rule: Rule,
        group: int,
        operands: int,
        interpret: Any,
    ) -> None:
        self.tiles, self.plan, self.sizes, self.rule = tiles, plan, sizes, rule
        self.group, self.operands, self.interpret = group, operands, interpret
        self.mine = plan.block_q // WARPGROUPS

    def scratch(self, dtype: Any, d: int, e: int) -> list[Any]:
        shared, stages, size = partial(shared_tile, dtype), self.plan.stages, self.tiles.size
        return [
            shared(WARPGROUPS, self.mine, d),
            shared(WARPGROUPS, self.mine, e),
            shared(stages, size, d),
            shared(stages, size, e),
            plgpu.Barrier(num_barriers=WARPGROUPS, num_arrivals=2),
            *ring_barriers(stages),
        ]

    def kernel(self, q: Any, k: Any, v: Any, g: Any, *rest: Any) -> None:
        *rows, bounds = rest[:3]
        rest = rest[3:]
        more, rest = rest[: self.operands], rest[self.operands :]
        outputs, rest = (rest[:2], rest[2:]) if self.keys_first else (rest[:1], rest[1:])
        a_s, b_s, a_ring, b_ring, there, *barriers = rest
        head, program, b, warpgroup = (
            lax.axis_index(x) for x in ("head", "program", "batch", "warpgroup")
        )
        its = bounds.at[0 if self.tiles.is_known else b, program]
        first, *_, stop = its_bounds = [its[i] for i in range(4)]
        ring = Ring(self.tiles.size, self.plan.stages, a_ring, b_ring, *barriers)
        held, coming = ((k, v), (q, g)) if self.keys_first else ((q, g), (k, v))

        @pl.when(warpgroup == WARPGROUPS)
        def load() -> None:
            plgpu.set_max_registers(LOADING, action="decrease")
            count = stop - first
            of = lambda i: (b, *self.coming(head, i, first, count))
            ring.load(*coming, count * self.times, of)

        @pl.when(warpgroup < WARPGROUPS)
        def compute() -> None:
            plgpu.set_max_registers(COMPUTING, action="increase")
            start = program * self.plan.block_q + warpgroup * self.mine
            here = pl.ds(start, self.mine)
            mine = a_s.at[warpgroup], b_s.at[warpgroup]
            for source, target in zip(held, mine, strict=True):
                plgpu.copy_gmem_to_smem(source.at[b, here, head], target, there.at[warpgroup])
            plgpu.barrier_wait(there.at[warpgroup])
            batch = unflatten_index(b, self.sizes.batch)
            at = partial(self.place, batch, head, Span(start, self.mine), first, stop - first)

            def row(which: int, place: TilePlace) -> Array:
                """lse · log2 e, or dlse, of each query of a tile."""
                here = pl.ds(place.rows.start, place.rows.size)
                part = rows[which].at[b, place.head, here]
                return plgpu.load(part, layout=place.layout("t"), optimized=False)

            def tile(i: Any, masked: bool) -> Tile:
                return self.tile(mine, ring, i, at(i), row, more, masked)

            sums = self.sum(tile, ring, its_bounds, [x.shape[-1] for x in mine])
            sums[0] = sums[0] * more[-1][0]  # by the scale
            for value, scratch, output in zip(sums, mine, outputs, strict=False):
                scratch[...] = value.astype(output.dtype)
            plgpu.commit_smem()
            for scratch, output in zip(mine, outputs, strict=False):
                plgpu.copy_smem_to_gmem(scratch, output.at[b, here, head])
            plgpu.wait_smem_to_gmem(0)

    @property
    def times(self) -> int:
        """How often the tiles of a range come."""
        return 1

    def coming(self, head: Any, i: Any, first: Any, count: Any) -> tuple[Any, Any]:
        """(tile, head) of what comes as the i-th."""
        raise NotImplementedError(f"{type(self).__name__}.coming")

    def place(self, batch: Any, head: Any, mine: Span, first: Any, count: Any, i: Any) -> TilePlace:
        """Where the i-th tile is."""
        raise NotImplementedError(f"{type(self).__name__}.place")

    def sum(
        self, tile: Callable[[Any, bool], Tile], ring: Ring, bounds: list[Any], features: list[int]
    ) -> list[Array]:
        """The gradients, from the tiles."""
        raise NotImplementedError(f"{type(self).__name__}.sum")

    def zeros(self, features: int) -> Array:
        return plgpu.layout_cast(jnp.zeros((self.mine, features), jnp.float32), TILE)

    def tile(
        self,
        mine: Any,
        ring: Ring,
        i: Any,
        place: TilePlace,
        row: Callable[[int, TilePlace], Array],
        more: Any,
        masked: bool,
    ) -> Tile:
        """The i-th tile; it has waited for both of its parts in the ring."""
        slot = ring.slot(i)
        values = self.rule.mask, self.rule.score, self.rule.dropout, self.rule.scale
        mask, score, dropout, scale = pieces(values, iter(more), place)
        plgpu.barrier_wait(ring.a_there.at[slot])
        x = product(mine[0], ring.a.at[slot])

        def hidden(x: Array, instead: float) -> Array:
            """x, but for pairs that the mask hides. It is asked anew each time: what it says takes
            as many registers as a tile."""
            allowed = mask.allows(place) if masked else None
            if masked and self.sizes.s % self.plan.block_kv:
                there = place.k < self.sizes.s
                allowed = there if allowed is None else allowed & there
            return x if allowed is None else jnp.where(allowed, x, instead)

        def changed(x: Array) -> Array:
            for item in score:
                x = item.apply(x, place)
            return x

        unit, pull = scale * LOG2E, None
        if score:
            x, pull = jax.vjp(changed, hidden(x * scale, 0.0))
            unit = LOG2E
        p = jnp.exp2(hidden(x * unit - place.each_q(row(0, place)), -jnp.inf))
        drop = (lambda x: x) if dropout is None else partial(dropout.apply, place=place)
        plgpu.barrier_wait(ring.b_there.at[slot])

        def ds() -> Array:
            dp = drop(product(mine[1], ring.b.at[slot]))
            # A hidden pair's may have overflowed.
            ds = jnp.where(p == 0.0, 0.0, p * (dp + place.each_q(row(1, place))))
            return ds if pull is None else hidden(pull(ds)[0], 0.0)

        return Tile(drop(p), ds)


class _OfQueries(_Call):
    def coming(self, head: Any, i: Any, first: Any, count: Any) -> tuple[Any, Any]:
        return first + i, lax.div(head, INDEX(self.group))

    def place(self, batch: Any, head: Any, mine: Span, first: Any, count: Any, i: Any) -> TilePlace:
        size = self.tiles.size
        return TilePlace.of(batch, head, mine, Span((first + i) * size, size))

    def sum(
        self, tile: Callable[[Any, bool], Tile], ring: Ring, bounds: list[Any], features: list[int]
    ) -> list[Array]:
        def step(masked: bool, i: Any, dq: Array) -> Array:
            slot = ring.slot(i)
            ds, k = tile(i, masked).ds(), ring.a.at[slot]
            plgpu.barrier_arrive(ring.b_free.at[slot])
            dq = contract(dq, ds.astype(k.dtype), k, self.interpret)
            plgpu.barrier_arrive(ring.a_free.at[slot])
            return dq

        return [over(self.tiles, bounds, step, self.zeros(features[0]))]


class _OfKeys(_Call):
    keys_first = True

    @property
    def times(self) -> int:
        return self.group

    def coming(self, head: Any, i: Any, first: Any, count: Any) -> tuple[Any, Any]:
        return first + lax.rem(i, count), head * self.group + lax.div(i, count)

    def place(self, batch: Any, head: Any, mine: Span, first: Any, count: Any, i: Any) -> TilePlace:
        size, (tile, of) = self.tiles.size, self.coming(head, i, first, jnp.maximum(count, 1))
        return TilePlace.of(batch, of, Span(tile * size, size), mine, keys_first=True)

    def sum(
        self, tile: Callable[[Any, bool], Tile], ring: Ring, bounds: list[Any], features: list[int]
    ) -> list[Array]:
        first, *_, stop = bounds

        def each_head(n: Any, sums: Any) -> Any:
            def step(masked: bool, i: Any, sums: Any) -> Any:
                dk, dv = sums
                i = n * (stop - first) + i
                its, slot = tile(i, masked), ring.slot(i)
                q, g = ring.a.at[slot], ring.b.at[slot]
                dv = contract(dv, its.w.astype(g.dtype), g, self.interpret)
                ds = its.ds()
                plgpu.barrier_arrive(ring.b_free.at[slot])
                dk = contract(dk, ds.astype(q.dtype), q, self.interpret)
                plgpu.barrier_arrive(ring.a_free.at[slot])
                return dk, dv

            return over(self.tiles, bounds, step, sums, splits=max(features) <= 64)

        zeros = self.zeros(features[0]), self.zeros(features[1])
        if self.group == 1:
            return list(each_head(INDEX(0), zeros))
        return list(lax.fori_loop(INDEX(0), INDEX(self.group), each_head, zeros))

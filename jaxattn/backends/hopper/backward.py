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
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxattn._axes import INDEX, ceil_div
from jaxattn._finite import finite
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Sizes, Span
from jaxattn.backends.hopper.kernel import Kernel
from jaxattn.backends.hopper.place import TILE, Here, TilePlace, operands, pieces
from jaxattn.backends.hopper.plan import ROWS, WARPGROUPS, KeyTiles, Plan, Tiles
from jaxattn.backends.hopper.warpgroups import LOG2E, Ring, by_heads, contract, even, product


def make_plan(d: int, e: int) -> Plan:
    """The plan for features d and e: one tile at a time where shared memory holds no two."""
    return Plan(WARPGROUPS * ROWS, 64, 2 if d + e <= 384 else 1)


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
    d, e, mask = q.shape[3], v.shape[3], rule.mask
    plan = make_plan(d, e)
    tiles, by_keys = Tiles(plan, sizes, mask), KeyTiles(plan, sizes, mask)
    length = max(tiles.programs, ceil_div(by_keys.across * by_keys.size, plan.block_q))
    length *= plan.block_q
    of_heads = partial(by_heads, length)
    # Rows and columns that hold NaN or Inf count as 0, and so does a query whose lse is not finite.
    # What rounding its two parts to one takes is as little as the products of half precision lose.
    whole = jnp.where(jnp.isfinite(lse.value), lse.value, jnp.inf) * LOG2E
    rows = of_heads(whole, jnp.inf), of_heads(dlse, 0)
    columns = max(tiles.across * plan.block_kv, by_keys.programs * plan.block_q)
    more = [operands(rule, length, columns, keys_first) for keys_first in (False, True)]
    arrays = [even(x) for x in (finite(q), finite(k), v, g.astype(q.dtype))]
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    h, n = q.shape[2], k.shape[2]
    group, given = h // n, [*arrays, *rows]
    (dq,) = _OfQueries(tiles, rule, group, more[0], interpret).run(h, given, like[:1])
    of_keys = partial(_OfKeys, by_keys, rule, group, more[1], interpret)
    if max(d, e) <= (64 if rule.dropout else 128):
        dk, dv = of_keys().run(n, given, like[1:3])
    else:  # there are registers for one of the sums
        (dk,) = of_keys(dv=False).run(n, given, like[1:2])
        (dv,) = of_keys(dk=False).run(n, given, like[2:3])
    return dq[:, : q.shape[1]], dk[:, : k.shape[1]], dv[:, : k.shape[1]]


class Tile(NamedTuple):
    """What there is of a tile: the weights that values are mixed with, and what makes the gradient
    of the scaled q kᵀ, later, when the registers of the weights are free."""

    w: Array
    ds: Callable[[], Array]


class _Backward(Kernel):
    """A computing warpgroup has 64 rows or keys, and what goes with them."""

    def scratch(self, shared: Callable[..., Any], d: int, e: int) -> list[Any]:
        mine = WARPGROUPS, self.mine
        return [
            plgpu.Barrier(num_barriers=WARPGROUPS, num_arrivals=2),
            shared(*mine, d),
            shared(*mine, e),
        ]

    def held(self, arrays: list[Any]) -> list[Any]:
        """Which two a warpgroup has."""
        q, _, _, g = arrays
        return [q, g]

    def compute(
        self, here: Here, arrays: Any, ring: Ring, more: Any, results: Any, scratch: Any
    ) -> None:
        there, *mine = (x.at[here.warpgroup] for x in scratch)
        part = pl.ds(here.mine.start, self.mine), here.head
        for source, target in zip(self.held(arrays[:4]), mine, strict=True):
            plgpu.copy_gmem_to_smem(source.at[part], target, there)
        plgpu.barrier_wait(there)

        def row(which: int, place: TilePlace) -> Array:
            """lse · log2 e, or dlse, of each query of a tile."""
            part = arrays[4 + which].at[place.head, pl.ds(place.rows.start, place.rows.size)]
            return plgpu.load(part, layout=place.layout("t"), optimized=False)

        def tile(i: Any, masked: bool) -> Tile:
            return self.tile(mine, ring, i, self.place(here, i), row, more, masked)

        sums = self.sum(here, tile, ring, [x.shape[-1] for x in mine])
        if sums[0] is not None:
            sums[0] = sums[0] * self.scale(here, more)
        made = [(x, target) for x, target in zip(sums, mine, strict=False) if x is not None]
        for (value, target), result in zip(made, results, strict=True):
            target[...] = value.astype(result.dtype)
        plgpu.commit_smem()
        for (_, source), result in zip(made, results, strict=True):
            plgpu.copy_smem_to_gmem(source, result.at[part])
        plgpu.wait_smem_to_gmem(0)

    def sum(
        self, here: Here, tile: Callable[[Any, bool], Tile], ring: Ring, features: list[int]
    ) -> list[Array | None]:
        """The gradients, from the tiles; None for what is not asked for."""
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
        plgpu.barrier_wait(ring.a_there.at[slot])
        x = product(mine[0], ring.a.at[slot])
        mask, score, dropout, scale = pieces(self.rule, more, place)

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

        unit, slope = scale * LOG2E, None
        if score:  # each changes a logit by itself
            x = hidden(x * scale, 0.0)
            (x, slope), unit = jax.jvp(changed, (x,), (jnp.ones_like(x),)), LOG2E
        p = jnp.exp2(hidden(x * unit - place.each_q(row(0, place)), -jnp.inf))
        p_slope = p if slope is None else p * slope
        drop = (lambda x: x) if dropout is None else partial(dropout.apply, place=place)
        plgpu.barrier_wait(ring.b_there.at[slot])

        def ds() -> Array:
            dp = drop(product(mine[1], ring.b.at[slot]))
            # A hidden pair's may have overflowed.
            ds = p_slope * (dp + place.each_q(row(1, place)))
            return jnp.where(p_slope == 0.0, 0.0, ds)

        return Tile(drop(p), ds)


class _OfQueries(_Backward):
    def sum(
        self, here: Here, tile: Callable[[Any, bool], Tile], ring: Ring, features: list[int]
    ) -> list[Array | None]:
        def step(masked: bool, i: Any, dq: Array) -> Array:
            slot = ring.slot(i)
            ds, k = tile(i, masked).ds(), ring.a.at[slot]
            plgpu.barrier_arrive(ring.b_free.at[slot])
            dq = contract(dq, ds.astype(k.dtype), k, self.interpret)
            plgpu.barrier_arrive(ring.a_free.at[slot])
            return dq

        return [self.over(here, step, self.zeros(features[0]), splits=features[0] <= 128)]


class _OfKeys(_Backward):
    keys_first = True

    def __init__(self, *kernel: Any, dk: bool = True, dv: bool = True) -> None:
        """dk, dv: which of the two gradients to make."""
        super().__init__(*kernel)
        self.asked = dk, dv

    def held(self, arrays: list[Any]) -> list[Any]:
        return arrays[1:3]

    def ring_of(self, arrays: list[Any]) -> list[Any]:
        q, _, _, g, *_ = arrays
        return [q, g]

    @property
    def times(self) -> int:
        return self.group

    def coming(self, here: Here, i: Any) -> tuple[Any, Any]:
        if self.group == 1:
            return here.tile(i), here.head
        count = jnp.maximum(here.count, 1)
        return here.tile(lax.rem(i, count)), here.head * self.group + lax.div(i, count)

    def place(self, here: Here, i: Any) -> TilePlace:
        tile, head = self.coming(here, i)
        rows = Span(tile * self.tiles.size, self.tiles.size)
        return TilePlace.of(here, head, rows, here.mine, keys_first=True)

    def sum(
        self, here: Here, tile: Callable[[Any, bool], Tile], ring: Ring, features: list[int]
    ) -> list[Array | None]:
        def each_head(n: Any, sums: Any) -> Any:
            def step(masked: bool, i: Any, sums: Any) -> Any:
                dk: Any
                dk, dv = sums
                i = n * here.count + i
                its, slot = tile(i, masked), ring.slot(i)
                q, g = ring.a.at[slot], ring.b.at[slot]
                if dv is not None:
                    dv = contract(dv, its.w.astype(g.dtype), g, self.interpret)
                ds = None if dk is None else its.ds()
                plgpu.barrier_arrive(ring.b_free.at[slot])
                if dk is not None and ds is not None:
                    dk = contract(dk, ds.astype(q.dtype), q, self.interpret)
                plgpu.barrier_arrive(ring.a_free.at[slot])
                return [dk, dv]

            return self.over(here, step, sums, splits=max(features) <= 64)

        zeros = [self.zeros(n) if x else None for x, n in zip(self.asked, features, strict=True)]
        if self.group == 1:
            return each_head(INDEX(0), zeros)
        return lax.fori_loop(INDEX(0), INDEX(self.group), each_head, zeros)

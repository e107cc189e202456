"""The forward pass for Hopper: a warpgroup loads tiles of keys and values, two compute.

A program has `block_q` queries of one head, half of them in each computing warpgroup, whose scores,
weights and output stay in registers. Keys and values come by TMA into a ring of shared memory.

Source: Dao et al. 2022, algorithm 1; Shah et al. 2024, section 3.1, for the division of work.
"""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn._axes import INDEX
from jaxattn._finite import hide
from jaxattn._problem import Rule
from jaxattn._value import Sizes, Span, unflatten_index
from jaxattn.backends.hopper.place import COLUMN, ROW, TILE, TilePlace, operands, pieces
from jaxattn.backends.hopper.plan import WARPGROUPS, Plan, Tiles
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
    spread_rows,
)

PART = 64  # features that are multiplied outside of the matrix units at a time


def forward(
    plan: Plan, sizes: Sizes, q: Array, k: Array, v: Array, rule: Rule, interpret: Any = None
) -> tuple[Array, Array, Array]:
    """(out, peak, log_total) of every query; out in q's dtype. One batch axis; features of
    `WIDTHS`. interpret: parameters of Pallas's interpreter, which stands in for a device."""
    (b, t, h, d), n, e = q.shape, k.shape[2], v.shape[3]
    tiles = Tiles(plan, sizes, rule.mask)
    rows = tiles.programs * plan.block_q
    values = rule.mask, rule.score, rule.dropout, rule.scale
    more = operands(values, rows, tiles.across * plan.block_kv)
    q, k, v = map(even, (q, k, v))
    call = _Call(plan, sizes, tiles, rule, h // n, len(more), interpret)
    of_rows = jax.ShapeDtypeStruct((b, h, rows), jnp.float32)
    kernel = plgpu.kernel(
        call.kernel,
        out_type=[jax.ShapeDtypeStruct((*q.shape[:3], e), q.dtype), of_rows, of_rows],
        scratch_types=call.scratch(q.dtype, d, e),
        grid=(h, tiles.programs, b),
        grid_names=("head", "program", "batch"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({} if interpret is None else {"interpret": interpret}),
    )
    # Under `jax.vmap` it runs once for each element.
    out, peak, log_total = sequential_vmap(kernel)(q, k, v, tiles.bounds(), *more)
    of_query = lambda x: x[:, :, :t].swapaxes(1, 2)
    return out[:, :t], of_query(peak), of_query(log_total)


class _Call:
    """What is fixed while a kernel is traced."""

    def __init__(
        self,
        plan: Plan,
        sizes: Sizes,
        tiles: Tiles,
        rule: Rule,
        group: int,
        operands: int,
        interpret: Any,
    ) -> None:
        self.plan, self.sizes, self.tiles, self.rule = plan, sizes, tiles, rule
        self.group, self.operands, self.interpret = group, operands, interpret
        self.rows = plan.block_q // WARPGROUPS

    def scratch(self, dtype: Any, d: int, e: int) -> list[Any]:
        plan = self.plan
        shared = partial(shared_tile, dtype)
        return [
            shared(WARPGROUPS, self.rows, d),
            *([] if d == e else [shared(WARPGROUPS, self.rows, e)]),
            shared(plan.stages, plan.block_kv, d),
            shared(plan.stages, plan.block_kv, e),
            plgpu.SMEM((WARPGROUPS, 2, self.rows), jnp.float32),
            plgpu.Barrier(num_barriers=WARPGROUPS),
            *ring_barriers(plan.stages),
        ]

    def kernel(self, q: Any, k: Any, v: Any, bounds: Any, *rest: Any) -> None:
        more, (out, peak, log_total), scratch = (
            rest[: self.operands],
            rest[self.operands : self.operands + 3],
            rest[self.operands + 3 :],
        )
        head, program, b, warpgroup = (
            lax.axis_index(x) for x in ("head", "program", "batch", "warpgroup")
        )
        its = bounds.at[0 if self.tiles.is_known else b, program]
        first, *_, stop = its_bounds = [its[i] for i in range(4)]
        *q_out, k_s, v_s, row_s, q_there = scratch[:-4]
        barriers = scratch[-4:]
        q_s, out_s = q_out[0], q_out[-1]  # where they are alike the output takes over
        ring = Ring(self.plan.block_kv, self.plan.stages, k_s, v_s, *barriers)

        @pl.when(warpgroup == WARPGROUPS)
        def load() -> None:
            plgpu.set_max_registers(LOADING, action="decrease")
            kv_head = lax.div(head, INDEX(self.group))
            ring.load(k, v, stop - first, lambda i: (b, first + i, kv_head))

        @pl.when(warpgroup < WARPGROUPS)
        def compute() -> None:
            plgpu.set_max_registers(COMPUTING, action="increase")
            start = program * self.plan.block_q + warpgroup * self.rows
            here = pl.ds(start, self.rows)
            mine = q_s.at[warpgroup]
            plgpu.copy_gmem_to_smem(q.at[b, here, head], mine, q_there.at[warpgroup])
            plgpu.barrier_wait(q_there.at[warpgroup])

            @pl.when(more[-1][0] < 0)
            def turn() -> None:
                """A row's peak is found before the scale, which has to be positive for that."""
                mine[...] = -plgpu.load(mine, layout=TILE)
                plgpu.commit_smem()

            rows = _Rows(self, b, head, Span(start, self.rows), mine, more, ring)
            state = rows.attend(v.shape[-1], its_bounds)
            parts, m, total = rows.mend(k, v, first, stop, state)
            total = jnp.where(total == 0, 1.0, total)  # a NaN stays
            for i, acc in enumerate(parts):
                part = out_s.at[warpgroup, :, pl.ds(i * acc.shape[1], acc.shape[1])]
                part[...] = (acc * spread_rows(1 / total, acc)).astype(out.dtype)
            row_s.at[warpgroup, 0][...] = m / LOG2E
            row_s.at[warpgroup, 1][...] = jnp.log2(total) / LOG2E
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_s.at[warpgroup], out.at[b, here, head])
            plgpu.copy_smem_to_gmem(row_s.at[warpgroup, 0], peak.at[b, head, here])
            plgpu.copy_smem_to_gmem(row_s.at[warpgroup, 1], log_total.at[b, head, here])
            plgpu.wait_smem_to_gmem(0)


class _Rows:
    """The queries of a warpgroup."""

    def __init__(
        self, call: _Call, b: Any, head: Any, rows: Span, q: Any, more: Any, ring: Ring
    ) -> None:
        self.call, self.head, self.rows, self.q, self.more = call, head, rows, q, more
        self.batch = unflatten_index(b, call.sizes.batch)
        self.ring, self.size = ring, call.plan.block_kv

    def row(self, x: float) -> Array:
        """x for each query."""
        return plgpu.layout_cast(jnp.full((self.rows.size,), x, jnp.float32), ROW)

    def nothing(self, features: int) -> Any:
        """(accumulator, peak · log2 e, total) over no keys."""
        acc = plgpu.layout_cast(jnp.zeros((self.rows.size, features), jnp.float32), TILE)
        return acc, self.row(-jnp.inf), self.row(0.0)

    def attend(self, features: int, bounds: Any) -> Any:
        """The state over all tiles. A NaN or Inf among the values reaches every row."""
        step = partial(self.step, bounds[0])
        return over(self.call.tiles, bounds, step, self.nothing(features))

    def mend(self, k: Any, v: Any, first: Any, stop: Any, state: Any) -> Any:
        """The state, made again key by key where it is not finite: a weight of 0 times NaN is NaN,
        and no row may learn of a value that it may not see."""
        acc, m, total = state
        if self.call.tiles.all_whole:
            return [acc], m, total
        cuts = range(0, acc.shape[1], PART)
        parts = [lax.slice(acc, (0, at), (self.rows.size, at + PART)) for at in cuts]
        wrong = jnp.where(jnp.abs(acc) < jnp.inf, 0.0, 1.0).max(axis=1).max()
        begin = first * self.size
        end = jnp.where(wrong > 0, jnp.minimum(stop * self.size, self.call.sizes.s), begin)
        b, head = lax.axis_index("batch"), lax.div(self.head, INDEX(self.call.group))

        def one(j: Any, state: Any) -> Any:
            parts, m, total = state
            of_key = lambda x, some: plgpu.load(
                x.at[b, j, head, some], layout=COLUMN, optimized=False
            )
            spread = lambda x, like: lax.broadcast_in_dim(x.astype(jnp.float32), like.shape, [1])
            x = self.row(0.0)
            for at in range(0, self.q.shape[1], PART):
                some = pl.ds(at, PART)
                q = plgpu.load(self.q.at[:, some], layout=TILE).astype(jnp.float32)
                x += (q * spread(of_key(k, some), q)).sum(axis=1)
            # As a tile whose columns are all of this key.
            tile = lambda x: lax.broadcast_in_dim(x, (self.rows.size, 8), [0])
            of_row = lambda x: x.max(axis=1)
            is_true = lambda x: jnp.where(x, 1.0, 0.0)
            x, unit, dropout, place, allowed = self.logits(tile(x), Span(j, 1), True)
            is_nan = 1 - of_row(is_true(x == x))  # of which the largest of a row need not tell
            x = of_row(x) * unit
            new = jnp.maximum(m, x)
            safe = jnp.where(new == -jnp.inf, 0.0, new)
            shrink, p = jnp.exp2(m - safe), jnp.exp2(x - safe)
            w = p if dropout is None else of_row(dropout.apply(tile(p), place))
            sees = self.row(1.0) if allowed is None else of_row(is_true(allowed))
            mixed = []
            for at, acc in zip(cuts, parts, strict=True):
                value = spread(of_key(v, pl.ds(at, PART)), acc)
                is_finite = is_true(jnp.abs(value) < jnp.inf)
                value = jnp.where(is_finite > 0, value, 0)
                acc = acc * spread_rows(shrink, acc) + spread_rows(w, acc) * value
                poison = (1 - is_finite) * spread_rows(sees, acc) + spread_rows(is_nan, acc)
                mixed.append(jnp.where(poison > 0, jnp.nan, acc))
            total = jnp.where(is_nan > 0, jnp.nan, total * shrink + p)
            return mixed, new, total

        again = lambda none, x: jnp.where(lax.broadcast_in_dim(wrong, x.shape, []) > 0, none, x)
        parts = [again(0.0, x) for x in parts]
        return lax.fori_loop(begin, end, one, (parts, again(-jnp.inf, m), again(0.0, total)))

    def step(self, first: Any, masked: bool, i: Any, state: Any) -> Any:
        """The state after the i-th tile."""
        acc, m, total = state
        ring, slot = self.ring, self.ring.slot(i)
        plgpu.barrier_wait(ring.a_there.at[slot])
        x = product(self.q, ring.a.at[slot])
        plgpu.barrier_arrive(ring.a_free.at[slot])
        x, unit, dropout, place, _ = self.logits(
            x, Span((first + i) * self.size, self.size), masked
        )
        new = jnp.maximum(m, x.max(axis=1) * unit)
        safe = jnp.where(new == -jnp.inf, 0.0, new)
        shrink = jnp.exp2(m - safe)
        p = jnp.exp2(x * unit - spread_rows(safe, x))
        total = total * shrink + p.sum(axis=1)
        w = p if dropout is None else dropout.apply(p, place)
        acc = acc * spread_rows(shrink, acc)
        plgpu.barrier_wait(ring.b_there.at[slot])
        v = ring.b.at[slot]
        acc = contract(acc, w.astype(v.dtype), v, self.call.interpret)
        plgpu.barrier_arrive(ring.b_free.at[slot])
        return acc, new, total

    def logits(self, x: Array, keys: Span, masked: bool) -> Any:
        """(logits · log2 e of a tile over `unit`, unit, dropout, the place, which pairs are
        allowed): without mask and score the scale goes with log2 e into the one multiply-add of
        exp2."""
        call, place = self.call, TilePlace.of(self.batch, self.head, self.rows, keys)
        place = place._replace(other=x.shape[1])
        rule = call.rule
        values = rule.mask, rule.score, rule.dropout, rule.scale
        mask, score, dropout, scale = pieces(values, iter(self.more), place)
        scale = jnp.abs(scale)  # the queries have its sign
        unit = LOG2E if score else scale * LOG2E
        x = x * scale if score else x
        allowed = mask.allows(place) if masked else None
        if masked and call.sizes.s % self.size and keys.size > 1:
            there = place.k < call.sizes.s
            allowed = there if allowed is None else allowed & there
        x = hide(x, allowed) if score else x
        for item in score:
            x = item.apply(x, place)
        if allowed is not None:  # a unit of 0 times what is hidden is NaN
            x, unit = jnp.where(allowed, x * unit, -jnp.inf), 1.0
        return x, unit, dropout, place, allowed

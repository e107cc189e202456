"""The forward pass for Hopper: a warpgroup loads tiles of keys and values, two compute.

A program has `block_q` queries of one head, half of them in each computing warpgroup, whose scores,
weights and output stay in registers. Keys and values come by TMA into a ring of shared memory.

Source: Dao et al. 2022, algorithm 1; Shah et al. 2024, section 3.1, for the division of work.
"""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn._axes import INDEX
from jaxattn._finite import hide
from jaxattn._problem import Rule
from jaxattn._value import Sizes, Span
from jaxattn.backends.hopper.kernel import Kernel
from jaxattn.backends.hopper.place import COLUMN, ROW, TILE, Here, TilePlace, operands, pieces
from jaxattn.backends.hopper.plan import WARPGROUPS, Plan, Tiles
from jaxattn.backends.hopper.warpgroups import (
    LOG2E,
    Ring,
    contract,
    even,
    multiply,
    product,
    spread_rows,
)

PART = 64  # features that are multiplied outside of the matrix units at a time


def forward(
    plan: Plan, sizes: Sizes, q: Array, k: Array, v: Array, rule: Rule, interpret: Any = None
) -> tuple[Array, Array, Array]:
    """(out, peak, log_total) of every query; out in q's dtype. One batch axis; features of
    `WIDTHS`. interpret: parameters of Pallas's interpreter, which stands in for a device."""
    (b, t, h, _), n, e = q.shape, k.shape[2], v.shape[3]
    tiles = Tiles(plan, sizes, rule.mask)
    rows = tiles.programs * plan.block_q
    more = operands(rule, rows, tiles.across * plan.block_kv)
    q, k, v = map(even, (q, k, v))
    of_rows = jax.ShapeDtypeStruct((b, h, rows), jnp.float32)
    results = [jax.ShapeDtypeStruct((*q.shape[:3], e), q.dtype), of_rows, of_rows]
    kernel = _Forward(tiles, rule, h // n, more, interpret)
    out, peak, log_total = kernel.run(h, [q, k, v], results)
    of_query = lambda x: x[:, :, :t].swapaxes(1, 2)
    return out[:, :t], of_query(peak), of_query(log_total)


class _Forward(Kernel):
    def scratch(self, shared: Callable[..., Any], d: int, e: int) -> list[Any]:
        return [
            plgpu.Barrier(num_arrivals=WARPGROUPS),
            plgpu.Barrier(num_barriers=WARPGROUPS),
            plgpu.SMEM((WARPGROUPS, 2, self.mine), jnp.float32),
            shared(WARPGROUPS, self.mine, d),
            *([] if d == e else [shared(WARPGROUPS, self.mine, e)]),
        ]

    def compute(
        self, here: Here, arrays: Any, ring: Ring, more: Any, results: Any, scratch: Any
    ) -> None:
        (q, k, v), (out, peak, log_total) = arrays, results
        turn, *scratch = scratch
        there, row_s, *q_out = (x.at[here.warpgroup] for x in scratch)
        q_s, out_s = q_out[0], q_out[-1]  # where they are alike the output takes over
        rows = pl.ds(here.mine.start, self.mine)
        plgpu.copy_gmem_to_smem(q.at[rows, here.head], q_s, there)
        plgpu.barrier_wait(there)

        @pl.when(self.scale(here, more) < 0)
        def negate() -> None:
            """A row's peak is found before the scale, which has to be positive for that."""
            q_s[...] = -plgpu.load(q_s, layout=TILE)
            plgpu.commit_smem()

        its = _Rows(self, here, q_s, more, ring, turn)
        parts, m, total = its.mend(k, v, its.attend(v.shape[-1]))
        total = jnp.where(total == 0, 1.0, total)  # a NaN stays
        for i, acc in enumerate(parts):
            part = out_s.at[:, pl.ds(i * acc.shape[1], acc.shape[1])]
            part[...] = (acc * spread_rows(1 / total, acc)).astype(out.dtype)
        row_s.at[0][...] = m / LOG2E
        row_s.at[1][...] = jnp.log2(total) / LOG2E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_s, out.at[rows, here.head])
        plgpu.copy_smem_to_gmem(row_s.at[0], peak.at[here.head, rows])
        plgpu.copy_smem_to_gmem(row_s.at[1], log_total.at[here.head, rows])
        plgpu.wait_smem_to_gmem(0)


class _Rows:
    """The queries of a warpgroup."""

    def __init__(
        self, kernel: _Forward, here: Here, q: Any, more: Any, ring: Ring, turn: Any
    ) -> None:
        self.kernel, self.here, self.q, self.more, self.ring = kernel, here, q, more, ring
        self.turn, self.size = turn, kernel.plan.block_kv

    def row(self, x: float) -> Array:
        """x for each query."""
        return plgpu.layout_cast(jnp.full((self.kernel.mine,), x, jnp.float32), ROW)

    def nothing(self, features: int) -> Any:
        """(accumulator, peak · log2 e, total) over no keys."""
        acc = plgpu.layout_cast(jnp.zeros((self.kernel.mine, features), jnp.float32), TILE)
        return acc, self.row(-jnp.inf), self.row(0.0)

    def attend(self, features: int) -> Any:
        """The state over all tiles. A NaN or Inf among the values reaches every row."""
        nothing, schedule = self.nothing(features), self.kernel.plan.schedule
        if schedule == "overlap":
            return self.overlapped(nothing)
        if schedule == "plain":
            return self.kernel.over(self.here, self.step, nothing)
        pl.when(self.here.warpgroup == 1)(self.take_turns)  # it is half a step behind
        state = self.kernel.over(self.here, self.step, nothing)
        pl.when(self.here.warpgroup == 0)(self.take_turns)
        return state

    def take_turns(self) -> None:
        """Waits until the other warpgroup is here, or there where it did this last."""
        plgpu.barrier_arrive(self.turn)
        plgpu.barrier_wait(self.turn)

    def mend(self, k: Any, v: Any, state: Any) -> Any:
        """The state, made again key by key where it is not finite: a weight of 0 times NaN is NaN,
        and no row may learn of a value that it may not see."""
        acc, m, total = state
        if self.kernel.tiles.all_whole:
            return [acc], m, total
        cuts = range(0, acc.shape[1], PART)
        parts = [lax.slice(acc, (0, at), (self.kernel.mine, at + PART)) for at in cuts]
        wrong = jnp.where(jnp.abs(acc) < jnp.inf, 0.0, 1.0).max(axis=1).max()
        is_listed, s = self.here.numbers is not None, self.kernel.sizes.s
        begin = INDEX(0) if is_listed else self.here.first * self.size
        stop = INDEX(s) if is_listed else jnp.minimum(self.here.stop * self.size, s)
        end = jnp.where(wrong > 0, stop, begin)
        head = lax.div(self.here.head, INDEX(self.kernel.group))

        def one(j: Any, state: Any) -> Any:
            parts, m, total = state
            of_key = lambda x, some: plgpu.load(x.at[j, head, some], layout=COLUMN, optimized=False)
            spread = lambda x, like: lax.broadcast_in_dim(x.astype(jnp.float32), like.shape, [1])
            x = self.row(0.0)
            for at in range(0, self.q.shape[1], PART):
                some = pl.ds(at, PART)
                q = plgpu.load(self.q.at[:, some], layout=TILE).astype(jnp.float32)
                x += (q * spread(of_key(k, some), q)).sum(axis=1)
            # As a tile whose columns are all of this key.
            tile = lambda x: lax.broadcast_in_dim(x, (self.kernel.mine, 8), [0])
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

    def step(self, masked: bool, i: Any, state: Any) -> Any:
        """The state after the i-th tile."""
        acc, m, total = state
        ring, slot = self.ring, self.ring.slot(i)
        in_turn = self.kernel.plan.schedule == "ping-pong"
        plgpu.barrier_wait(ring.a_there.at[slot])
        x = product(self.q, ring.a.at[slot], self.take_turns if in_turn else None)
        plgpu.barrier_arrive(ring.a_free.at[slot])
        w, m, total, shrink = self.weights(masked, self.here.tile(i), x, m, total)
        acc = acc * spread_rows(shrink, acc)
        if in_turn:
            acc, w, m, total = lax.optimization_barrier((acc, w, m, total))
            plgpu.barrier_arrive(self.turn)
        plgpu.barrier_wait(ring.b_there.at[slot])
        if in_turn:
            plgpu.barrier_wait(self.turn)
        acc = contract(acc, w, ring.b.at[slot], self.kernel.interpret)
        plgpu.barrier_arrive(ring.b_free.at[slot])
        return acc, m, total

    def overlapped(self, state: Any) -> Any:
        """The state over all tiles, of which there is one at least. The weights of a tile meet the
        values while the next one's are made.

        Source: Shah et al. 2024, section 3.2.
        """
        (acc, m, total), ring, interpret = state, self.ring, self.kernel.interpret

        def both(masked: bool, i: Any, state: Any) -> Any:
            acc: Any
            acc, w, m, total = state
            tile, slot, before = self.here.tile(i), ring.slot(i), ring.slot(i - 1)
            v = ring.b.at[before]

            def weights(acc: Any, w: Array, m: Array, total: Array) -> Any:
                def run(x: Any) -> Any:
                    plgpu.barrier_wait(ring.a_there.at[slot])
                    multiply(x, self.q, ring.a.at[slot])
                    plgpu.barrier_wait(ring.b_there.at[before])
                    if acc is None:
                        x = x[...]
                    else:
                        plgpu.wgmma(acc, w, v)
                        x = plgpu.wgmma_accumulator_load(x, wait_n=1)
                    plgpu.barrier_arrive(ring.a_free.at[slot])
                    return self.weights(masked, tile, x, m, total)

                return pl.run_scoped(run, plgpu.ACC((self.kernel.mine, self.size), jnp.float32))

            def meanwhile(refs: Any) -> None:
                acc, *of_rows = refs
                new = weights(acc, *(ref[...] for ref in of_rows[:3]))
                for ref, value in zip(of_rows, new, strict=True):
                    ref[...] = value

            if interpret is None:
                given: Any = plgpu.ACC.init(acc), w, m, total, m
                acc, w, m, total, shrink = pl.run_state(meanwhile)(given)
            else:
                (w, m, total, shrink), before_w = weights(None, w, m, total), w
                acc = contract(acc, before_w, v, interpret)
            plgpu.barrier_arrive(ring.b_free.at[before])
            return acc * spread_rows(shrink, acc), w, m, total

        plgpu.barrier_wait(ring.a_there.at[0])
        x = product(self.q, ring.a.at[0])
        plgpu.barrier_arrive(ring.a_free.at[0])
        masked = not self.kernel.tiles.all_whole
        w, m, total, _ = self.weights(masked, self.here.tile(INDEX(0)), x, m, total)
        acc, w, m, total = self.kernel.over(self.here, both, (acc, w, m, total), False, 1)
        last = ring.slot(self.here.count - 1)
        plgpu.barrier_wait(ring.b_there.at[last])
        acc = contract(acc, w, ring.b.at[last], interpret)
        plgpu.barrier_arrive(ring.b_free.at[last])
        return acc, m, total

    def weights(self, masked: bool, tile: Any, x: Array, m: Array, total: Array) -> Any:
        """(weights of a tile in half precision, the peak, the total, by what all before shrinks).
        x: its q kᵀ."""
        keys = Span(tile * self.size, self.size)
        x, unit, dropout, place, _ = self.logits(x, keys, masked)
        new = jnp.maximum(m, x.max(axis=1) * unit)
        safe = jnp.where(new == -jnp.inf, 0.0, new)
        shrink = jnp.exp2(m - safe)
        p = jnp.exp2(x * unit - spread_rows(safe, x))
        total = total * shrink + p.sum(axis=1)
        w = p if dropout is None else dropout.apply(p, place)
        return w.astype(self.ring.b.dtype), new, total, shrink

    def logits(self, x: Array, keys: Span, masked: bool) -> Any:
        """(logits · log2 e of a tile over `unit`, unit, dropout, the place, which pairs are
        allowed): without mask and score the scale goes with log2 e into the one multiply-add of
        exp2."""
        here, sizes = self.here, self.kernel.sizes
        place = TilePlace.of(here, here.head, here.mine, keys)._replace(other=x.shape[1])
        mask, score, dropout, scale = pieces(self.kernel.rule, self.more, place)
        scale = jnp.abs(scale)  # the queries have its sign
        unit = LOG2E if score else scale * LOG2E
        x = x * scale if score else x
        allowed = mask.allows(place) if masked else None
        if masked and sizes.s % self.size and keys.size > 1:
            there = place.k < sizes.s
            allowed = there if allowed is None else allowed & there
        x = hide(x, allowed) if score else x
        for item in score:
            x = item.apply(x, place)
        if allowed is not None:  # a unit of 0 times what is hidden is NaN
            x, unit = jnp.where(allowed, x * unit, -jnp.inf), 1.0
        return x, unit, dropout, place, allowed

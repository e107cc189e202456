"""How a Hopper kernel cuts the score matrix, and which tiles a program of it visits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxattn._axes import INDEX, ceil_div, count_to, smaller
from jaxattn._mask import BoundMask
from jaxattn._value import Sizes, Span, unflatten_index
from jaxattn.backends.blockwise import plan as blockwise
from jaxattn.backends.blockwise.schedule import needed
from jaxattn.backends.blockwise.walk import Walk

WARPGROUPS = 2
ROWS = 64  # of a warpgroup: what one instruction multiplies
SHARED_BYTES = 232_448  # of shared memory, that a program may have
WIDTHS = (64, 128, 256)  # features that a tile may have
BESIDES = 2048 + 256  # bytes of shared memory for sums across warps, and for barriers
SCHEDULES = "plain", "overlap", "ping-pong"
"""How products and softmax take turns in the forward pass. overlap: the logits of a tile are
multiplied while the weights of the one before are made. ping-pong: one warpgroup multiplies while
the other makes weights. Which is fastest nobody has measured yet."""


@dataclass(frozen=True)
class Plan:
    """block_q, block_kv: the queries of a program, and the keys of a tile. stages: tiles of keys,
    and as many of values, that are loaded ahead. schedule: one of `SCHEDULES`."""

    block_q: int
    block_kv: int
    stages: int
    schedule: str = "plain"

    def shared_bytes(self, d: int, e: int) -> int:
        """Of half-precision tiles, queries, the output, keys and values; of two float32 numbers of
        each query; and `BESIDES`."""
        rows = d if d == e else d + e  # where they are alike the output takes over
        tiles = 2 * (self.block_q * rows + self.stages * self.block_kv * (d + e))
        return tiles + 8 * self.block_q + BESIDES


def make_plan(
    d: int, e: int, block_q: int | None, block_kv: int | None, schedule: str | None
) -> Plan:
    """The plan for features d and e of `WIDTHS`; block_q, block_kv and schedule override it."""
    block_kv = block_kv or (64 if max(d, e) > 128 else 128)
    return Plan(block_q or WARPGROUPS * ROWS, block_kv, 2, schedule or "plain")


def width(features: int) -> int:
    """The least of `WIDTHS` that holds so many features."""
    return next(n for n in WIDTHS if n >= features)


class Tiles:
    """The tiles of each program: a range, and in it the range of those that need no mask.

    Of a mask that cannot tell its range exactly: a list, made on the device.
    """

    def __init__(self, plan: Plan, sizes: Sizes, mask: BoundMask) -> None:
        self.plan, self.sizes, self.mask = plan, sizes, mask
        self.is_listed = not mask.exact
        self.programs = ceil_div(sizes.t, plan.block_q)
        self.across = ceil_div(sizes.s, plan.block_kv)
        self.is_known = mask.is_known

    @property
    def size(self) -> int:
        """How many keys, or queries, come at a time."""
        return self.plan.block_kv

    def rows(self, program: Any) -> Span:
        """The queries of a program; the last one may have some of the one before, too."""
        size = min(self.plan.block_q, self.sizes.t)
        return Span(smaller(program * self.plan.block_q, self.sizes.t - size), size)

    @property
    def longest_is_last(self) -> bool:
        """Whether the last program has more tiles than the first: under `Causal` it does."""
        count = lambda bounds: bounds[-1] - bounds[0]
        return self.is_known and count(self._known[-1]) > count(self._known[0])

    @property
    def any_whole(self) -> bool:
        """Whether a tile may go without a mask."""
        return self.is_known and any(whole < end for _, whole, end, _ in self._known)

    @property
    def all_whole(self) -> bool:
        """Whether each tile goes without a mask, and each program has one."""
        return self.is_known and all(a == b < c == d for a, b, c, d in self._known)

    @cached_property
    def _known(self) -> list[tuple[int, int, int, int]]:
        size, found = self.plan.block_kv, []
        for program in range(self.programs):
            rows, s = self.rows(program), self.sizes.s
            first, stop = self.mask.limits(rows, s)
            low, high = first // size, ceil_div(stop, size) if first < stop else first // size
            begin, end = low, high  # a query sees keys in one piece, and so do all of them
            while begin < end and not self._is_whole(rows, begin):
                begin += 1
            while begin < end and not self._is_whole(rows, end - 1):
                end -= 1
            found.append((low, begin, end, high))
        return found

    def _is_whole(self, rows: Span, j: int) -> bool:
        keys = Span(j * self.plan.block_kv, self.plan.block_kv)
        assert isinstance(keys.start, int)
        return keys.start + keys.size <= self.sizes.s and self.mask.covers(rows, keys)

    def arrays(self) -> list[Array]:
        """What a program reads: `bounds`, and where tiles are listed their numbers
        [#b programs across]."""
        if not self.is_listed:
            return [self.bounds()]
        visited = self._visited()
        count = visited.sum(-1, dtype=INDEX)
        numbers = jnp.argsort(~visited, axis=-1, stable=True).astype(INDEX)
        return [jnp.stack([jnp.zeros_like(count), count, count, count], axis=-1), numbers]

    def _visited(self) -> Bool[Array, "b programs across"]:
        """Which tiles hold an allowed pair, in any head."""
        return _coarse(self._fine(), self.plan.block_q, self.size)

    def _fine(self) -> Bool[Array, "b q_blocks k_blocks"]:
        """Which squares of `ROWS` by `ROWS` do."""
        t, s = self.sizes.t, self.sizes.s
        sides = min(ROWS, t), min(ROWS, s)
        plan = blockwise.Plan(1, 1, *sides, ceil_div(t, ROWS), ceil_div(s, ROWS), False, 1)
        return needed(Walk(plan, self.sizes, self.sizes.h), self.mask).any(1)

    def bounds(self) -> Int[Array, "#b programs 4"]:
        """Of each program the first tile, the first whole one, the end of those, the stop."""
        if self.is_known:
            return jnp.asarray(np.array(self._known, INDEX)[None])
        size = self.plan.block_kv
        first, stop = _needs(self.mask, self.sizes, self.programs, self.rows)
        low = first // size
        high = jnp.where(first < stop, (stop + size - 1) // size, low)
        return jnp.stack([low, high, high, high], axis=-1)


class KeyTiles(Tiles):
    """The same the other way: a program has `block_q` keys, and goes through blocks of `block_kv`
    queries."""

    def __init__(self, plan: Plan, sizes: Sizes, mask: BoundMask) -> None:
        super().__init__(plan, sizes, mask)
        self.programs, self.across = ceil_div(sizes.s, plan.block_q), ceil_div(sizes.t, self.size)

    def rows(self, program: Any) -> Span:
        """The queries of a block."""
        size = min(self.size, self.sizes.t)
        return Span(smaller(program * self.size, self.sizes.t - size), size)

    def _visited(self) -> Bool[Array, "b programs across"]:
        return _coarse(self._fine().swapaxes(1, 2), self.plan.block_q, self.size)

    @cached_property
    def _known(self) -> list[tuple[int, int, int, int]]:
        s, found = self.sizes.s, []
        limits = np.array([self.mask.limits(self.rows(i), s) for i in range(self.across)])
        for program in range(self.programs):
            keys = Span(program * self.plan.block_q, self.plan.block_q)
            low, high = _reach(np, limits[:, 0], limits[:, 1], keys.start, keys.size)
            begin, end = int(low), int(high)
            while begin < end and not self.mask.covers(self.rows(begin), keys):
                begin += 1
            while begin < end and not self.mask.covers(self.rows(end - 1), keys):
                end -= 1
            found.append((int(low), begin, end, int(high)))
        return found

    def bounds(self) -> Int[Array, "#b programs 4"]:
        if self.is_known:
            return super().bounds()
        first, stop = _needs(self.mask, self.sizes, self.across, self.rows)
        starts = count_to(self.programs) * self.plan.block_q
        reach = lambda first, stop, start: _reach(jnp, first, stop, start, self.plan.block_q)
        over_keys = jax.vmap(reach, (None, None, 0))
        low, high = jax.vmap(over_keys, (0, 0, None))(first, stop, starts)
        return jnp.stack([low, high, high, high], axis=-1)


def _coarse(
    fine: Bool[Array, "b m n"], rows: int, columns: int
) -> Bool[Array, "b programs across"]:
    """Which tiles of so many rows and columns hold one of the squares of `ROWS`."""
    _, m, n = fine.shape
    down, across = rows // ROWS, columns // ROWS
    fine = jnp.pad(fine, ((0, 0), (0, -m % down), (0, -n % across)))
    return fine.reshape(len(fine), -1, down, fine.shape[2] // across, across).any((2, 4))


def _needs(
    mask: BoundMask, sizes: Sizes, blocks: int, rows: Callable[[Any], Span]
) -> tuple[Int[Array, "b blocks"], Int[Array, "b blocks"]]:
    """The range of keys that each block of queries needs."""
    total = math.prod(sizes.batch)

    def one(index: Array) -> tuple[Array, Array]:
        b, block = unflatten_index(index, (total, blocks))
        first, stop = mask.element(unflatten_index(b, sizes.batch)).needs(rows(block), sizes.s)
        return jnp.asarray(first, INDEX), jnp.asarray(stop, INDEX)

    first, stop = jax.vmap(one)(count_to(total * blocks))
    return first.reshape(total, blocks), stop.reshape(total, blocks)


def _reach(xp: Any, first: Any, stop: Any, start: Any, size: int) -> tuple[Any, Any]:
    """The range of blocks of queries that need one of the keys from `start` on."""
    needs = (first < start + size) & (stop > start) & (first < stop)
    low = xp.argmax(needs)
    high = needs.shape[0] - xp.argmax(needs[::-1])
    some = needs.any()
    return xp.where(some, low, 0).astype(INDEX), xp.where(some, high, 0).astype(INDEX)

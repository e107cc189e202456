"""How a Hopper kernel cuts the score matrix, and which tiles a program of it visits."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxattn._axes import INDEX, ceil_div, count_to, smaller
from jaxattn._mask import BoundMask
from jaxattn._value import Sizes, Span, unflatten_index

WARPGROUPS = 2
ROWS = 64  # of a warpgroup: what one instruction multiplies
SHARED_BYTES = 232_448  # of shared memory, that a program may have
WIDTHS = (64, 128, 256)  # features that a tile may have


@dataclass(frozen=True)
class Plan:
    """block_q, block_kv: the queries of a program, and the keys of a tile. stages: tiles of keys,
    and as many of values, that are loaded ahead."""

    block_q: int
    block_kv: int
    stages: int

    def shared_bytes(self, d: int, e: int) -> int:
        """Of half-precision tiles: queries, the output, keys and values."""
        rows = d if d == e else d + e  # where they are alike the output takes over
        return 2 * (self.block_q * rows + self.stages * self.block_kv * (d + e))


def make_plan(d: int, e: int, block_q: int | None, block_kv: int | None) -> Plan:
    """The plan for features d and e of `WIDTHS`; block_q and block_kv override it."""
    return Plan(block_q or WARPGROUPS * ROWS, block_kv or (64 if max(d, e) > 128 else 128), 2)


def width(features: int) -> int:
    """The least of `WIDTHS` that holds so many features."""
    return next(n for n in WIDTHS if n >= features)


class Tiles:
    """The tiles of each program: a range, and in it the range of those that need no mask."""

    def __init__(self, plan: Plan, sizes: Sizes, mask: BoundMask) -> None:
        self.plan, self.sizes, self.mask = plan, sizes, mask
        self.programs = ceil_div(sizes.t, plan.block_q)
        self.across = ceil_div(sizes.s, plan.block_kv)
        self.is_known = mask.exact and not jax.tree.leaves(mask)

    def rows(self, program: Any) -> Span:
        """The queries of a program; the last one may have some of the one before, too."""
        size = min(self.plan.block_q, self.sizes.t)
        return Span(smaller(program * self.plan.block_q, self.sizes.t - size), size)

    @property
    def any_whole(self) -> bool:
        """Whether a tile may go without a mask."""
        return self.is_known and any(whole < end for _, whole, end, _ in self._known)

    @property
    def all_whole(self) -> bool:
        """Whether each tile goes without a mask."""
        return self.is_known and all((a, d) == (b, c) for a, b, c, d in self._known)

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

    def bounds(self) -> Int[Array, "#b programs 4"]:
        """Of each program the first tile, the first whole one, the end of those, the stop."""
        if self.is_known:
            return jnp.asarray(np.array(self._known, INDEX)[None])
        size, s, batch = self.plan.block_kv, self.sizes.s, self.sizes.batch
        total = math.prod(batch)

        def one(index: Array) -> Array:
            b, program = unflatten_index(index, (total, self.programs))
            element = self.mask.element(unflatten_index(b, batch))
            first, stop = element.needs(self.rows(program), s)
            low = jnp.asarray(first, INDEX) // size
            high = jnp.where(first < stop, (jnp.asarray(stop, INDEX) + size - 1) // size, low)
            return jnp.stack([low, high, high, high])

        found = jax.vmap(one)(count_to(total * self.programs))
        return found.reshape(total, self.programs, 4)

"""How the score matrix is cut: the size of a tile, and how many heads are taken at a time.

The numbers for a CPU were found by timing; the README's performance section shows what they give.
Those for accelerators go by memory and by what compiled programs hold.
"""

import math
from dataclasses import dataclass

import jax

from jaxattn._axes import ceil_div
from jaxattn._lowering import devices
from jaxattn._mask import BoundMask
from jaxattn._value import Sizes, Span

UNROLL = 4  # blocks of queries
ROW = 2**14  # keys of a row that a CPU may take at once

TILE = 2**23
"""Scores in a tile on an accelerator: of float32 logits 32 MiB."""
SIDES = 256, 1024
"""The least and the most queries of such a tile, if there are so many."""


@dataclass(frozen=True)
class Budget:
    """What suits a platform. Scores are counted over all heads taken at a time.

    tile: scores in a tile, of q_block queries at most. small: a head with no more scores than this
    is one block of queries, or four where the mask leaves keys out, and several such heads go at a
    time: as many as have `whole` scores. A tile has `keys` keys at most, over all key heads.
    widths: the most widths that the last tile of a row can take. A choice of one waits for the host
    on an accelerator.
    """

    tile: int
    q_block: int
    small: int
    whole: int
    keys: int
    widths: int


CPU = Budget(tile=2**20, q_block=512, small=2**19, whole=2**21, keys=2**13, widths=16)
PART_OF_CPU = Budget(tile=2**17, q_block=256, small=2**16, whole=2**17, keys=2**13, widths=16)
"""For medium problems where several devices are one CPU: they share its cores and its cache."""
ACCELERATOR = Budget(tile=TILE, q_block=512, small=2**16, whole=TILE, keys=2**22, widths=1)
"""Where tiles are not listed (schedule.py): in tangents, and for observations."""


@dataclass(frozen=True)
class Plan:
    """batch, heads: batch elements and query heads taken at a time (vmapped).

    q_block, k_block: the sides of a tile. q_blocks: how many blocks cover the queries.
    k_tiles: the most tiles that a block of queries can need. unrolled: whether the blocks are few
    and what each needs is known, so that each gets code of its own and no branches. most_widths: as
    `widths` of a `Budget`.
    """

    batch: int
    heads: int
    q_block: int
    k_block: int
    q_blocks: int
    k_tiles: int
    unrolled: bool
    most_widths: int

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that the last tile of a row can take, ascending; the last is k_block.

        The more, the less a mask's edge wastes, but each is compiled: 4, up to 8 where they are
        over 512 keys apart, up to 16 where they are over 1,024.
        """
        steps = max(4, min(8, self.k_block // 512), min(16, self.k_block // 1024))
        steps = min(steps, self.most_widths)
        step = ceil_div(self.k_block, steps)
        return tuple(sorted({min(step * i, self.k_block) for i in range(1, steps + 1)}))

    @property
    def held_widths(self) -> tuple[int, ...]:
        """`widths` where all keys of a row are read at once: few queries save little by less."""
        one_block_of_many = self.q_blocks == 1 and self.k_tiles > 1
        return (self.k_block,) if one_block_of_many else self.widths


def plan_for_accelerator(
    mask: BoundMask,
    sizes: Sizes,
    kv_heads: int,
    q_block: int | None = None,
    k_block: int | None = None,
) -> Plan:
    """Tiles of about `TILE` scores over all heads taken at a time, as square as may be.

    A run has all the queries of its key heads, and has several batch elements only where all need
    the same tiles.
    """
    t, s, h = sizes.t, sizes.s, sizes.h
    fewest, longest = SIDES
    asked, group, total = q_block or k_block, h // kv_heads, math.prod(sizes.batch)
    is_small = t <= fewest or mask.limits(Span(0, ceil_div(t, 2)), s) == (0, s)
    if asked is None and is_small and h * t * s <= TILE:
        return Plan(_share(total, TILE // (h * t * s)), h, t, s, 1, 1, False, 1)
    square = min(max(_power_of_2(t // 8), fewest), longest) ** 2
    most = TILE // square
    heads = max(run_of_heads(h, group, most), group)
    batch = _share(total, most // h) if heads == h and mask.is_known else 1
    share = max(TILE // (heads * batch), 1)
    side = min(max(_power_of_2(math.isqrt(share)), fewest), longest)
    q_block = min(q_block or side, t)
    if k_block is None:
        k_block = max(_power_of_2(share // q_block), fewest)
        if mask.limits(Span(0, q_block), s) != (0, s):  # more of a long tile would be hidden
            k_block = min(k_block, max(side, _power_of_2(s // 8)))
    k_block = min(k_block, s)
    across = ceil_div(s, k_block)
    return Plan(batch, heads, q_block, k_block, ceil_div(t, q_block), across, False, 1)


def _share(total: int, most: int) -> int:
    """The largest number, up to `most`, that divides `total`; 1 where that is not known."""
    if not isinstance(total, int):  # it may be open in an exported function
        return 1
    return max((n for n in range(1, min(total, most) + 1) if total % n == 0), default=1)


def _power_of_2(n: int) -> int:
    """The largest that is no more than n."""
    return 1 << max(n, 1).bit_length() - 1


def _of_cpu(sizes: Sizes) -> Budget:
    medium = PART_OF_CPU.small <= sizes.t * sizes.s <= CPU.small
    return PART_OF_CPU if devices().part and medium else CPU


def even_block(length: int, most: int, multiple: int) -> int:
    """The block that cuts `length` into equal parts of at most `most`, rounded up to `multiple`."""
    block = ceil_div(length, ceil_div(length, most))
    return min(ceil_div(block, multiple) * multiple, length)


def run_of_heads(h: int, group: int, most: int) -> int:
    """The most heads, up to `most`, that divide h and share their keys evenly."""
    fits = (i for i in range(1, h + 1) if h % i == 0 and (i % group == 0 or group % i == 0))
    return max((i for i in fits if i <= most), default=1)


def make_plan(
    mask: BoundMask,
    sizes: Sizes,
    kv_heads: int,
    platform: str | None,
    q_block: int | None = None,
    k_block: int | None = None,
) -> Plan:
    """The plan for a mask and sizes on a platform; q_block and k_block override it."""
    budget = _of_cpu(sizes) if platform == "cpu" else ACCELERATOR
    t, s, h = sizes.t, sizes.s, sizes.h
    small = t * s <= budget.small
    if q_block is None:
        strips = not small or (t >= 256 and mask.limits(Span(0, ceil_div(t, 4)), s) != (0, s))
        most = ceil_div(t, 4) if small and strips else budget.q_block if strips else t
        q_block = even_block(t, most, 8)
    q_block = min(q_block, t)
    q_blocks = ceil_div(t, q_block)

    spans = [mask.limits(Span(min(i * q_block, t - q_block), q_block), s) for i in range(q_blocks)]
    span = max(1, *(stop - first for first, stop in spans))
    group = h // kv_heads
    heads = run_of_heads(h, group, budget.whole // (t * s)) if small else 1
    if k_block is None and small and span <= max(budget.keys // ceil_div(heads, group), 256):
        k_block = span
    else:  # long tiles of few heads: the keys of one head are read as a plain matrix
        if k_block is None:  # shorter where each width of the last tile needs code of its own
            short = q_blocks == 1 and jax.tree.leaves(mask)
            keys = budget.keys // 4 if short else budget.keys
            k_block = even_block(span, min(max(budget.tile // q_block, 16), keys), 16)
        k_block = min(k_block, s)
        most = min(budget.tile // (q_block * k_block), max(budget.keys // span, 1) * group)
        heads = run_of_heads(h, group, most)
    k_block = min(k_block, s)

    one_tile = q_blocks == 1 and k_block == s
    batch = 1
    total = math.prod(sizes.batch)
    is_known = isinstance(total, int)  # it may be open in an exported function
    if one_tile and heads == h and is_known:  # then there is room for several batch elements
        batch = min(max(budget.whole // (h * t * s), 1), total)
    known = not jax.tree.leaves(mask) and any(limits != (0, s) for limits in spans)
    unrolled = known and q_blocks <= UNROLL
    k_tiles = ceil_div(span, k_block)
    return Plan(batch, heads, q_block, k_block, q_blocks, k_tiles, unrolled, budget.widths)


def whole_rows(plan: Plan, mask: BoundMask, sizes: Sizes, kv_heads: int) -> Plan:
    """`plan` for the forward pass on a CPU: all keys of a row in one tile, where that is as fast.

    Then the final lse is at hand in the tile. Not where a mask may leave out tiles in between, and
    not for the few queries of a decoding step, whose mask tells how many of the keys are held.
    """
    span = plan.k_tiles * plan.k_block
    budget = _of_cpu(sizes)
    few = sizes.t * sizes.s <= budget.small or (plan.q_blocks == 1 and jax.tree.leaves(mask))
    if plan.k_tiles == 1 or few or span > ROW or not mask.exact:
        return plan
    q_block = min(max(budget.whole // span // 8 * 8, 8), budget.q_block)
    return make_plan(mask, sizes, kv_heads, "cpu", q_block, min(span, sizes.s))

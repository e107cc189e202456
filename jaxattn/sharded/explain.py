"""What a shared sequence costs: bytes on the wire, the work of each device, and its memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._axes import accumulator
from jaxattn._lowering import Devices, host_platform, lowered_for
from jaxattn._mask import EVERYTHING, BoundMask, Mask, check_mask
from jaxattn._problem import Problem, check
from jaxattn._value import Shift
from jaxattn.backends.protocol import Backend, Call, Cost
from jaxattn.backends.select import AUTO
from jaxattn.positions import Given, frame_of
from jaxattn.sharded.cases import Cases
from jaxattn.sharded.heads import check_heads
from jaxattn.sharded.parts import Layout, layout_of
from jaxattn.sharded.ways import Axes, Way


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What a call costs each device.

    visits: from how many devices keys come, itself among them.
    forward_bytes, gradient_bytes: that a device sends for the results, and for a gradient in q, k
      and v, for which keys and values go round again and their gradients with them.
    overlapped: the share of the bytes of a gradient that is sent while something is computed that
      does not wait for it.
    tiles: that the mask needs, of each device of the ring and all heads it has; None where arrays
      tell that, or where chunks differ too much to look at them all.
    flops: of the products q kᵀ and p v in what is computed of them, likewise.
    array_bytes: of what a device has of q, k, v, out and lse.
    visiting_bytes: of the pieces of keys and values that visit and that arrive meanwhile; a
      gradient has theirs beside them. What the backend needs for a tile is not counted.
    """

    way: Way
    devices: int
    visits: int
    forward_bytes: int
    gradient_bytes: int
    overlapped: float
    tiles: tuple[int, ...] | None
    flops: tuple[int, ...] | None
    array_bytes: int
    visiting_bytes: int

    @property
    def balance(self) -> float | None:
        """The tiles of the slowest device by those of the mean."""
        if self.tiles is None:
            return None
        return max(self.tiles) / max(sum(self.tiles) / len(self.tiles), 1)

    def __str__(self) -> str:
        mib = lambda n: f"{n / 2**20:,.2f} MiB"
        tiles = "known when it runs"
        if self.tiles is not None and self.flops is not None:
            least, most = min(self.tiles), max(self.tiles)
            tiles = f"{least:,} to {most:,} a device, the most {self.balance:.2f} of the mean, "
            tiles += f"{max(self.flops) / 1e9:,.3f} GFLOP"
        lines = [
            f"way        {self.way!r} over {self.devices} devices, {self.visits} visits each",
            f"sent       {mib(self.forward_bytes)} for results, "
            f"{mib(self.gradient_bytes)} for a gradient",
            f"overlap    {100 * self.overlapped:.0f} % of what a gradient sends",
            f"tiles      {tiles}",
            f"memory     {mib(self.array_bytes)} of arrays on each device, "
            f"{mib(self.visiting_bytes)} visiting and arriving",
        ]
        return "\n".join(lines)


def explain(
    q: Any,
    k: Any,
    v: Any,
    way: Way,
    mesh: Mapping[str, int],
    *,
    mask: Mask = EVERYTHING,
    positions: Given = None,
    backend: Backend = AUTO,
) -> Sharing:
    """What `attend` of whole arrays would cost each device. Compiles and runs nothing.

    Args:
      q, k, v: arrays or `jax.ShapeDtypeStruct`, of which the axes of tokens are shared out over the
        way's axes alone; give the heads and batch elements that one device has.
      mesh: how many devices each axis has, as `dict(mesh.shape)`.
    Raises:
      ValueError: heads or keys cannot be shared out as the way says.
    """
    axes = Axes(way, lambda name: mesh[name])
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    q, k, v = map(like, (q, k, v))
    plain = EVERYTHING, None, None, None, None, None
    problem = jax.eval_shape(lambda q, k, v: check(q, k, v, *plain)[0], q, k, v)
    sizes, acc = problem.sizes, accumulator(q.dtype)
    h, n = sizes.h, problem.kv_heads
    exchanged = 0
    if axes.heads is not None:
        n *= check_heads(h, n, axes.groups)
        kept = (axes.groups - 1) / axes.groups
        of_query = (q.shape[-1] + v.shape[-1]) * h * sizes.t
        of_key = (q.shape[-1] + v.shape[-1]) * n * sizes.s
        count = math.prod(sizes.batch) * (of_query + of_key) // axes.count
        exchanged = int(kept * count * q.dtype.itemsize)
        h, n = h // axes.groups, n // axes.groups
    frame = frame_of(positions, sizes)
    bound = check_mask(mask).resolve(frame)
    t, s, order = sizes.t // axes.rings, sizes.s // axes.rings, axes.order
    axes.check_pieces(s)
    with lowered_for(host_platform(), Devices(part=True)):
        layout = layout_of("", axes.rings, order, t, s, axes.pieces)
    cases = Cases(bound, layout)
    visits = len(cases.shifts(layout))
    shard = math.prod(sizes.batch) * layout.s * n * (q.shape[-1] + v.shape[-1])
    visiting, gradients = shard * q.dtype.itemsize, shard * jnp.dtype(acc).itemsize
    forward = (visits - 1) * visiting
    gradient = forward + (visits - 1) * (visiting + gradients)
    hidden = gradient - (gradients if visits > 1 else 0)
    total = gradient + 3 * exchanged
    work = _work(problem, bound, cases, layout, (h, n), backend)
    wide = q.shape[-1] + v.shape[-1]
    held = (sizes.h * sizes.t + problem.kv_heads * sizes.s) * wide * q.dtype.itemsize
    held += sizes.h * sizes.t * jnp.dtype(acc).itemsize
    return Sharing(
        way=way,
        devices=axes.count,
        visits=visits,
        forward_bytes=forward + exchanged,
        gradient_bytes=total,
        overlapped=hidden / total if total else 1.0,
        tiles=None if work is None else tuple(x for x, _ in work),
        flops=None if work is None else tuple(x for _, x in work),
        array_bytes=math.prod(sizes.batch) * held // axes.count,
        visiting_bytes=min(visits - 1, 2) * visiting // layout.pieces,
    )


FEW, MOST = 32, 256  # chunks whose pairs are looked at, each or by how far apart they are


def _work(
    problem: Problem,
    mask: BoundMask,
    cases: Cases,
    layout: Layout,
    heads: tuple[int, int],
    backend: Backend,
) -> list[tuple[int, int]] | None:
    """(tiles, FLOP) of each device of the ring."""
    if jax.tree.leaves(mask) or layout.chunks > (MOST if cases.by_distance else FEW):
        return None
    h, n = heads
    cut = lambda x, size, many: jax.ShapeDtypeStruct(
        (*x.shape[:-3], size, many, x.shape[-1]), x.dtype
    )
    part = problem._replace(
        q=cut(problem.q, layout.rows, h),
        k=cut(problem.k, layout.keys, n),
        v=cut(problem.v, layout.keys, n),
    )

    @cache
    def cost(kind: int, q: int, k: int) -> Cost:
        """Of the pair whose first query and key these are."""
        here = EVERYTHING if cases.kinds[kind] is EVERYTHING else mask.moved(Shift(q, k))
        chosen = backend.choose(Call(part, (), platform=host_platform()))
        with lowered_for(host_platform(), Devices(part=True)):
            return chosen.cost(part, here, ())

    work = []
    is_whole = np.array([kind is EVERYTHING for kind in cases.kinds])
    for kinds, q, k in cases.needed(layout):
        whole = is_whole[kinds]
        start = (q - k, 0 * k) if cases.by_distance else (q, k)
        pairs = np.stack([kinds, *(np.where(whole, 0, x) for x in start)])
        different, counts = np.unique(pairs, axis=1, return_counts=True)
        tiles = flops = 0
        for pair, count in zip(different.T.tolist(), counts.tolist(), strict=True):
            its = cost(*pair)
            if its.visited is None or its.flops is None:
                return None
            tiles, flops = tiles + count * its.visited, flops + count * its.flops
        work.append((tiles, flops))
    return work

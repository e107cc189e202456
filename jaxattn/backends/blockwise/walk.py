"""The walk over runs of heads, blocks of queries and tiles of keys: which parts, in which order.

Every block has its full size: the last one is moved back to end with its axis, so that lengths need
not be multiples of anything. A query met twice is computed twice and kept once; a key met twice is
left out of the second tile.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxattn._axes import Index, ceil_div, count_to, cut, cut_axis, larger, smaller
from jaxattn._finite import finite, nan_unless_finite
from jaxattn._lowering import platform
from jaxattn._mask import BoundMask
from jaxattn._value import Block, Place, Sizes, Span, Value, unflatten_index
from jaxattn.backends.blockwise.plan import Plan


class Run(NamedTuple):
    """Heads taken at a time: `group` queries of each of `kv` key heads of `batches` elements."""

    batch: Index
    q_head: Index
    kv_head: Index
    batches: int
    kv: int
    group: int


class Walk(NamedTuple):
    """What is fixed while compiling. n: key/value heads."""

    plan: Plan
    sizes: Sizes
    n: int

    @property
    def batches(self) -> int:
        return math.prod(self.sizes.batch)

    @property
    def runs_per_batch(self) -> int:
        return self.sizes.h // self.plan.heads

    @property
    def runs(self) -> int:
        return ceil_div(self.batches, self.plan.batch) * self.runs_per_batch

    def run(self, index: Index) -> Run:
        """The index-th run of heads."""
        plan, group = self.plan, self.sizes.h // self.n
        batch = index // self.runs_per_batch
        if plan.batch > 1:
            batch = _moved_back(batch * plan.batch, plan.batch, self.batches)
        q_head = index % self.runs_per_batch * plan.heads
        kv, share = max(plan.heads // group, 1), min(plan.heads, group)
        return Run(batch, q_head, q_head // group, plan.batch, kv, share)

    def rows(self, index: Index) -> Span:
        """The index-th block of queries."""
        size, t = self.plan.q_block, self.sizes.t
        return Span(_moved_back(index * size, size, t), size, math.gcd(size, t))

    def new_rows(self, index: Index) -> Bool[Array, " r"] | None:
        """Which rows of the index-th block are in none before it; None for all."""
        if self.plan.q_blocks * self.plan.q_block == self.sizes.t:
            return None
        return self.rows(index).indices() >= index * self.plan.q_block

    def keys(self, start: Index, width: int) -> Span:
        """`width` keys from `start` on, or the last ones."""
        return Span(_moved_back(start, width, self.sizes.s), width)

    def block(self, run: Run, rows: Span, keys: Span) -> Block:
        heads = (run.kv, run.group)
        return Block(self.sizes, run.batch, run.batches, run.q_head, heads, rows, keys)

    def read(self, value: Any, run: Run, rows: Span, keys: Span) -> Any:
        """The part of a value, or of several in a tree, that a block of a run of heads needs."""
        block = self.block(run, rows, keys)
        is_value = lambda x: isinstance(x, Value)
        return jax.tree.map(
            lambda x: x.read(block) if is_value(x) else x[None, None, None], value, is_leaf=is_value
        )

    def place(self, batch: Index, head: Index, rows: Span, keys: Span) -> Place:
        return Place(unflatten_index(batch, self.sizes.batch), head, rows, keys)

    def reach(
        self, mask: BoundMask, hits: Array | None, run_index: Index, i: Index, held: bool = False
    ) -> "Reach":
        """What the i-th block of queries of a run of heads needs.

        Tiles are laid from the first key that it needs on. With `held` they are laid so that all
        that it could need is one slice of a known size; the first tile may then begin earlier.
        """
        run, plan, s = self.run(run_index), self.plan, self.sizes.s
        if run.batches > 1:  # they are one tile, whatever each of them needs
            return Reach(plan, s, 0, s, 0, None)
        element = mask.element(unflatten_index(run.batch, self.sizes.batch))
        first, stop = element.needs(self.rows(i), s)
        base = _moved_back(first, min(plan.k_tiles * plan.k_block, s), s) if held else first
        if hits is None:
            return Reach(plan, s, first, stop, base, None)
        here = (run.batch, run_index % self.runs_per_batch if mask.by_head else 0, i, 0)
        row = cut(hits, here, (1, 1, 1, plan.k_tiles))
        return Reach(plan, s, first, stop, base, row.reshape(plan.k_tiles))

    def narrow(self, mask: BoundMask) -> tuple["Walk | None", Array | None]:
        """A walk in which no block needs more than one tile of keys, and whether that holds.

        None where there is little to gain, or where `needs` is known while tracing.
        """
        plan = self.plan
        if plan.k_tiles < 3 or plan.q_blocks == 1:
            return None, None

        def span(index: Array) -> Index:
            batch, i = unflatten_index(index, (self.batches, plan.q_blocks))
            reach = self.reach(mask, None, batch * self.runs_per_batch, i)
            return reach.stop - reach.first

        if isinstance(self.reach(mask, None, 0, 0).stop, int):
            return None, None
        spans = jax.lax.map(span, count_to(self.batches * plan.q_blocks))
        return self._replace(plan=replace(plan, k_tiles=1)), (spans <= plan.k_block).all()

    def find_hits(
        self, mask: BoundMask, held: bool = False
    ) -> Bool[Array, "b runs q_blocks k_tiles"] | None:
        """Which tiles hold a pair that the mask allows; None where the range of `needs` tells.

        runs: of a batch element; 1 if heads do not differ. held: as in `reach`.
        """
        plan = self.plan
        if mask.exact or plan.q_blocks * plan.k_tiles == 1:
            return None
        runs = self.runs_per_batch if mask.by_head else 1
        shape = (self.batches, runs, plan.q_blocks, plan.k_tiles)

        def one(index: Array) -> Array:
            batch, which, i, j = unflatten_index(index, shape)
            run_index = batch * self.runs_per_batch + which
            run, rows = self.run(run_index), self.rows(i)
            if not mask.by_head:
                run = run._replace(kv=1, group=1)
            reach = self.reach(mask, None, run_index, i, held)
            keys, begin = reach.span(j)

            look = lambda: self.any_allowed(mask, run, rows, keys, begin)
            return jax.lax.cond(reach.width(j) > 0, look, lambda: jnp.zeros((), bool))

        return jax.lax.map(one, count_to(math.prod(shape))).reshape(shape)

    def any_allowed(
        self, mask: BoundMask, run: Run, rows: Span, keys: Span, begin: Index
    ) -> Bool[Array, ""]:
        """Whether the mask allows a pair of a tile, of keys from `begin` on."""

        def allowed(mask: BoundMask, place: Place) -> Array:
            seen = mask.allows(place)
            fresh = keys.indices() >= begin
            return (fresh if seen is None else seen & fresh[None, :]).any()

        part = self.read(mask, run, rows, keys)
        return self.over_heads(run, allowed, (), (), part, rows, keys).any()

    def over_heads(
        self, run: Run, f: Callable[..., Any], x: Any, kv: Any, part: Any, rows: Span, keys: Span
    ) -> Any:
        """f(*x, *kv, part, place) for every query head of a run.

        x: arrays with leading axes [batches kv group]; kv: arrays with leading axes [batches kv];
        part: what `read` gave.
        """
        sizes = (run.batches, run.kv, run.group)
        batch = run.batch + count_to(run.batches) if run.batches > 1 else run.batch
        head = run.q_head
        if run.kv * run.group > 1:
            head = head + count_to(run.kv * run.group).reshape([n for n in sizes[1:] if n > 1])
        leaves, structure = jax.tree.flatten(part)
        split = [[n > 1 for n in leaf.shape[:3]] for leaf in leaves]

        def one(x: Any, kv: Any, batch: Index, head: Index, *leaves: Array) -> Any:
            part = jax.tree.unflatten(structure, leaves)
            return f(*x, *kv, part, self.place(batch, head, rows, keys))

        # Axes of one are dropped, not mapped: XLA then sees plain matrix products.
        once = tuple(axis for axis, n in enumerate(sizes) if n == 1)
        drop = lambda tree, axes: jax.tree.map(lambda a: jax.lax.squeeze(a, axes), tree)
        x, kv = drop(x, once), drop(kv, tuple(axis for axis in once if axis < 2))
        leaves = [
            jax.lax.squeeze(leaf, [axis for axis in range(3) if not own[axis]])
            for leaf, own in zip(leaves, split, strict=True)
        ]
        mapped = ((0, None, None, 0), (0, 0, None, 0), (0, 0, 0, None))
        for axis, axes in zip((2, 1, 0), mapped, strict=True):
            if sizes[axis] > 1:
                each = [0 if own[axis] else None for own in split]
                one = jax.vmap(one, (*axes, *each))
        return jax.tree.map(
            lambda a: jax.lax.expand_dims(a, once), one(x, kv, batch, head, *leaves)
        )

    def join(self, x: Shaped[Array, "blocks batches kv group r *e"]) -> Shaped[Array, "b t h *e"]:
        """The blocks of every run, stacked in the order of the walk, as one array."""
        batches, rest = x.shape[1], x.shape[5:]
        blocks = self.plan.q_blocks, batches, self.plan.heads, self.plan.q_block
        x = x.reshape(self.runs // self.runs_per_batch, self.runs_per_batch, *blocks, *rest)
        x = jnp.moveaxis(x, (0, 3, 2, 5, 1, 4), range(6))
        x = _join_blocks(x.reshape(*x.shape[:4], self.sizes.h, *rest), self.batches)
        return jax.vmap(lambda one: _join_blocks(one, self.sizes.t))(x)


class Reach(NamedTuple):
    """The tiles that a block of queries needs, of those laid from key `base` on.

    first, stop: the range of keys that it needs. hits: which tiles hold an allowed pair; None where
    each tile of the range does.
    """

    plan: Plan
    s: int
    first: Index
    stop: Index
    base: Index
    hits: Bool[Array, " k_tiles"] | None

    def begin(self, j: Index) -> Index:
        """The first key of the j-th tile that is in no tile before it."""
        return self.base + j * self.plan.k_block

    def span(self, j: Index) -> tuple[Span, Index]:
        """The keys of the j-th tile, moved back to end with the axis, and the first new one."""
        size = self.plan.k_block
        return Span(_moved_back(self.begin(j), size, self.s), size), self.begin(j)

    @property
    def all_needed(self) -> bool:
        """Whether every tile is known to hold keys that are needed."""
        known = all(isinstance(x, int) for x in (self.first, self.stop, self.base))
        if not known or self.hits is not None:
            return False
        last = self.base + (self.plan.k_tiles - 1) * self.plan.k_block
        return bool(self.first < self.base + self.plan.k_block and last < self.stop)

    @property
    def overlaps(self) -> bool:
        """Whether the last tile may be moved back over the one before it."""
        if not isinstance(self.base, int):
            return True
        return self.base + self.plan.k_tiles * self.plan.k_block > self.s

    def width(self, j: Index) -> Index:
        """How many keys from the begin of the j-th tile on are needed; 0 or less for none."""
        begin = self.begin(j)
        width = self.stop - begin
        end = smaller(begin + self.plan.k_block, self.stop)
        if not all(isinstance(x, int) for x in (begin, self.first, self.stop)):
            width = jnp.where(end > self.first, width, 0)
        elif end <= self.first:
            return 0
        return width if self.hits is None else jnp.where(self.hits[j], width, 0)

    def tiles(self) -> tuple[Index, Index]:
        """The first and the last tile of the range; the range may still be empty."""
        first = (self.first - self.base) // self.plan.k_block
        return first, larger(self.stop - 1 - self.base, 0) // self.plan.k_block


class Keys(NamedTuple):
    """The keys and values of a run of heads, to be read in the accumulator's dtype.

    Keys are read with NaN in place of Inf, values with 0 in place of both, or as they are if
    `trusting`. kept: k and v are the run's own already, [batches kv s d] and [batches kv s e].
    """

    k: Array
    v: Array
    run: Run
    dtype: Any
    trusting: bool
    kept: bool

    @staticmethod
    def of(k: Array, v: Array, run: Run, dtype: Any, trusting: bool, keep: bool) -> "Keys":
        """`keep` copies the run's keys and values once, where they will be read many times."""
        keys = Keys(k, v, run, dtype, trusting, kept=False)
        if not keep:
            return keys
        return Keys(*keys.read(Span(0, k.shape[1])), run, dtype, trusting, kept=True)

    def read(
        self, span: Span
    ) -> tuple[Float[Array, "batches kv c d"], Float[Array, "batches kv c e"]]:
        if self.kept:
            part = lambda x: cut_axis(x, span.start, span.size, axis=2)
            return part(self.k), part(self.v)
        k, v = (read_keys(x, self.run, span).astype(self.dtype) for x in (self.k, self.v))
        return nan_unless_finite(k), v if self.trusting else finite(v)


def read_rows(
    x: Any, run: Run, rows: Span, packed: bool = False
) -> Float[Array, "batches kv group r *d"]:
    """The rows of a run of heads from an array [b t h *d]. packed: as in `read_keys`."""
    starts, sizes = (run.batch, rows.start, run.q_head), (rows.size, run.kv * run.group)
    part = _read(x, starts, (run.batches, *sizes), packed)
    part = part.reshape(*part.shape[:2], run.kv, run.group, *part.shape[3:])
    return jnp.moveaxis(part, 1, 3)


def to_rows(x: Shaped[Array, "batches kv group r *e"]) -> Shaped[Array, "batches r h *e"]:
    """The inverse of `read_rows`."""
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])


def read_keys(x: Any, run: Run, keys: Span, packed: bool = False) -> Float[Array, "batches kv c d"]:
    """The keys of a run of heads from an array [b s n d].

    packed: heads and features as one axis until the tile is read. Else XLA for GPUs, whose products
    want heads first, copies all of x into that order before a loop.
    """
    part = _read(x, (run.batch, keys.start, run.kv_head), (run.batches, keys.size, run.kv), packed)
    return jnp.moveaxis(part, 1, 2)


def _read(x: Any, starts: tuple[Index, ...], sizes: tuple[int, ...], packed: bool) -> Array:
    rest = x.shape[len(sizes) :]
    if packed:
        b, n, h, d = x.shape
        starts = *starts[:2], starts[2] * d
        part = cut(x.reshape(b, n, h * d), starts, (*sizes[:2], sizes[2] * d))
        return part.reshape(*sizes, d)
    starts, sizes = (*starts, *(0,) * len(rest)), (*sizes, *rest)
    if x.dtype == jnp.bfloat16 and platform() == "cpu":
        return _read_here(sizes, x, starts)
    return cut(x, starts, sizes)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _read_here(sizes: tuple[int, ...], x: Array, starts: tuple[Index, ...]) -> Array:
    """A slice of the bits, which stays in the loop around it.

    XLA for CPUs has no slice of bfloat16: it converts the array first, and would do so before the
    loop, with all of it. So it would with the bits, were it not for the barrier.
    """
    x, starts = jax.lax.optimization_barrier((x, starts))
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(cut(bits, starts, sizes), x.dtype)


@_read_here.defjvp
def _read_here_jvp(sizes: tuple[int, ...], primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, starts = primals
    return _read_here(sizes, x, starts), cut(tangents[0], starts, sizes)


def _moved_back(start: Index, size: int, stop: int) -> Index:
    """`start`, or the last place from which `size` positions fit before `stop`."""
    return 0 if size == stop else smaller(start, stop - size)


def _join_blocks(x: Array, total: int) -> Array:
    """[blocks size ...] as [total ...], where the last block was moved back to end at `total`."""
    blocks, size = x.shape[:2]
    again = blocks * size - total
    flat = x.reshape(blocks * size, *x.shape[2:])
    if not again:
        return flat
    kept = (blocks - 1) * size
    return jnp.concatenate([flat[:kept], flat[kept + again :]])

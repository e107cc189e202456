"""The walk over runs of heads, blocks of queries and tiles of keys: which parts, in which order.

Every block has its full size: the last one is moved back to end with its axis, so that lengths need
not be multiples of anything. A query met twice is computed twice and kept once; a key met twice is
left out of the second tile.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import Index, smaller
from jaxattn._mask import Mask, Sizes, Span
from jaxattn.kernels import tile
from jaxattn.kernels.plan import Plan, ceil_div


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
        batch = _moved_back(index // self.runs_per_batch * plan.batch, plan.batch, self.batches)
        q_head = index % self.runs_per_batch * plan.heads
        kv, share = max(plan.heads // group, 1), min(plan.heads, group)
        return Run(batch, q_head, q_head // group, plan.batch, kv, share)

    def rows(self, index: Index) -> Span:
        """The index-th block of queries."""
        size = self.plan.q_block
        return Span(_moved_back(index * size, size, self.sizes.t), size)

    def keys(self, start: Index, width: int) -> Span:
        """`width` keys from `start` on, or the last ones."""
        return Span(_moved_back(start, width, self.sizes.s), width)

    def needs(self, mask: Mask, run: Run, rows: Span) -> tuple[Index, Index]:
        """The range of keys that these rows can need."""
        if run.batches > 1:  # they are one tile, whatever each of them needs
            return 0, self.sizes.s
        return mask.head(self.batch_index(run.batch), run.q_head).needs(rows, self.sizes.s)

    def allows(
        self,
        mask: Mask,
        batch: Index,
        head: Index,
        rows: Span,
        keys: Span,
        counts: Bool[Array, " c"] | None,
    ) -> Bool[Array, "#r #c"] | None:
        """Which pairs of a tile count: allowed by the mask, and of a key that `counts`."""
        allowed = mask.head(self.batch_index(batch), head).allows(rows, keys)
        if counts is None:
            return allowed
        return counts[None, :] if allowed is None else allowed & counts[None, :]

    def batch_index(self, flat: Index) -> tuple[Index, ...]:
        index = []
        for size in reversed(self.sizes.batch):
            index.append(flat % size)
            flat = flat // size
        return tuple(reversed(index))

    def join(self, x: Float[Array, "blocks batches kv group r *e"]) -> Float[Array, "b t h *e"]:
        """The blocks of every run, stacked in the order of the walk, as one array."""
        batches, rest = x.shape[1], x.shape[5:]
        blocks = self.plan.q_blocks, batches, self.plan.heads, self.plan.q_block
        x = x.reshape(self.runs // self.runs_per_batch, self.runs_per_batch, *blocks, *rest)
        x = jnp.moveaxis(x, (0, 3, 2, 5, 1, 4), range(6))
        x = _join_blocks(x.reshape(*x.shape[:4], self.sizes.h, *rest), self.batches)
        return jax.vmap(lambda one: _join_blocks(one, self.sizes.t))(x)


class Keys(NamedTuple):
    """The keys and values of a run of heads, to be read in the accumulator's dtype.

    Keys are read with NaN in place of Inf, values with 0 in place of both.
    kept: k and v are the run's own already, [batches kv s d] and [batches kv s e].
    """

    k: Array
    v: Array
    run: Run
    dtype: Any
    kept: bool

    @staticmethod
    def of(k: Array, v: Array, run: Run, dtype: Any, keep: bool) -> "Keys":
        """`keep` copies the run's keys and values once, where they will be read many times."""
        keys = Keys(k, v, run, dtype, kept=False)
        return Keys(*keys.read(Span(0, k.shape[1])), run, dtype, kept=True) if keep else keys

    def read(
        self, span: Span
    ) -> tuple[Float[Array, "batches kv c d"], Float[Array, "batches kv c e"]]:
        if self.kept:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, span.start, span.size, axis=2)
            return cut(self.k), cut(self.v)
        k, v = (read_keys(x, self.run, span).astype(self.dtype) for x in (self.k, self.v))
        return tile.nan_unless_finite(k), tile.finite(v)


def read_rows(x: Any, run: Run, rows: Span) -> Float[Array, "batches kv group r *d"]:
    """The rows of a run of heads from an array [b t h *d]."""
    part = _read(
        x, (run.batch, rows.start, run.q_head), (run.batches, rows.size, run.kv * run.group)
    )
    part = part.reshape(*part.shape[:2], run.kv, run.group, *part.shape[3:])
    return jnp.moveaxis(part, 1, 3)


def to_rows(x: Float[Array, "batches kv group r *e"]) -> Float[Array, "batches r h *e"]:
    """The inverse of `read_rows`."""
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])


def read_keys(x: Any, run: Run, keys: Span) -> Float[Array, "batches kv c d"]:
    """The keys of a run of heads from an array [b s n d]."""
    part = _read(x, (run.batch, keys.start, run.kv_head), (run.batches, keys.size, run.kv))
    return jnp.moveaxis(part, 1, 2)


def over_heads(run: Run, f: Callable[..., Any], x: Any, kv: Any) -> Any:
    """f(x, kv, batch, head) for every query head of a run.

    x: arrays with leading axes [batches kv group]; kv: arrays with leading axes [batches kv].
    """
    sizes = (run.batches, run.kv, run.group)
    batch = run.batch + jnp.arange(run.batches) if run.batches > 1 else run.batch
    head = run.q_head
    if run.kv * run.group > 1:
        head = head + jnp.arange(run.kv * run.group).reshape([n for n in sizes[1:] if n > 1])

    # Axes of one are dropped, not mapped: XLA then sees plain matrix products.
    one = tuple(axis for axis, n in enumerate(sizes) if n == 1)
    drop = lambda tree, axes: jax.tree.map(lambda a: jax.lax.squeeze(a, axes), tree)
    x, kv = drop(x, one), drop(kv, tuple(axis for axis in one if axis < 2))
    mapped = ((0, None, None, 0), (0, 0, None, 0), (0, 0, 0, None))
    for n, axes in zip(reversed(sizes), mapped, strict=True):
        f = jax.vmap(f, axes) if n > 1 else f
    return jax.tree.map(lambda a: jax.lax.expand_dims(a, one), f(x, kv, batch, head))


def _read(x: Any, starts: tuple[Index, ...], sizes: tuple[int, ...]) -> Array:
    rest = x.shape[len(sizes) :]
    return jax.lax.dynamic_slice(x, (*starts, *(0,) * len(rest)), (*sizes, *rest))


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

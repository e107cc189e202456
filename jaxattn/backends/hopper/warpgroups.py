"""What the warpgroups of a kernel share: a ring of tiles, and products of what is in registers."""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxattn._axes import INDEX
from jaxattn.backends.hopper.plan import WARPGROUPS

LOG2E = math.log2(math.e)


def shared_tile(dtype: Any, *shape: int) -> Any:
    """Shared memory in the order that copies write and products read."""
    tiling = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=tiling)


def ring_barriers(stages: int, tiles: int) -> list[Any]:
    """The barriers of a `Ring` of so many tiles at a time, in its order."""
    ring = partial(plgpu.Barrier, num_barriers=stages)
    return [ring()] * tiles + [ring(num_arrivals=WARPGROUPS)] * tiles


class Ring:
    """Tiles `a`, or pairs of them and `b`, of `size` rows each, in shared memory, and who may touch
    them."""

    def __init__(self, size: int, stages: int, *refs: Any) -> None:
        self.size, self.stages, tiles = size, stages, len(refs) // 3
        self.parts = [refs[i::tiles] for i in range(tiles)]
        self.a, self.a_there, self.a_free = self.parts[0]
        self.b, self.b_there, self.b_free = self.parts[-1]

    def slot(self, i: Any) -> Any:
        return lax.rem(i, INDEX(self.stages))

    def load(self, sources: list[Any], count: Any, which: Callable[[Any], tuple[Any, Any]]) -> None:
        """So many tiles of each source, which(i) = (tile, head)."""

        def one(i: Any, _: Any) -> None:
            slot, (tile, head) = self.slot(i), which(i)
            at = pl.ds(tile * self.size, self.size), head
            for source, (tiles, there, free) in zip(sources, self.parts, strict=True):
                pl.when(i >= self.stages)(partial(plgpu.barrier_wait, free.at[slot]))
                plgpu.copy_gmem_to_smem(source.at[at], tiles.at[slot], there.at[slot])

        lax.fori_loop(0, count, one, None)

    def drain(self, count: Any) -> None:
        """Waits until nobody reads any of `count` tiles any more."""

        def one(i: Any, _: Any) -> None:
            for *_, free in self.parts:
                plgpu.barrier_wait(free.at[self.slot(i)])

        lax.fori_loop(jnp.maximum(count - self.stages, 0), count, one, None)


def multiply(acc: Any, a: Any, b: Any) -> None:
    """Adds a bᵀ to an accumulator, both in shared memory.

    So many features at a time that what tells an instruction where its operands are, two registers
    each, does not crowd out what is computed.
    """
    size = min(a.shape[1], 128)

    def part(i: Any, _: Any) -> None:
        at = pl.ds(i * size, size)
        plgpu.wgmma(acc, a.at[:, at], b.at[:, at].transpose((1, 0)))

    lax.fori_loop(0, a.shape[1] // size, part, None)


def product(a: Any, b: Any, then: Callable[[], None] | None = None) -> Array:
    """a bᵀ, both in shared memory. then: is done while it runs."""

    def run(ref: Any) -> Array:
        multiply(ref, a, b)
        if then is not None:
            then()
        return ref[...]

    return pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[0]), jnp.float32))


def contract(acc: Array, x: Array, b: Any, interpret: Any) -> Array:
    """acc + x b, x in registers, for which the interpreter has no instruction."""
    if interpret is None:
        return pl.run_state(lambda ref: plgpu.wgmma(ref, x, b))(plgpu.ACC.init(acc))
    acc += jnp.dot(x.astype(jnp.float32), b[...].astype(jnp.float32))
    plgpu.commit_smem()
    return acc


def spread_rows(x: Array, like: Array) -> Array:
    """One number of each row, all along it."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def even(x: Array) -> Array:
    """x with a length that the copies take, a multiple of 8."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, 0))) if x.shape[1] % 8 else x


def by_heads(length: int, x: Float[Array, "b t h"], beyond: float) -> Float[Array, "b h length"]:
    """x of each head, with `beyond` after the last query."""
    more = (0, 0), (0, 0), (0, length - x.shape[1])
    return jnp.pad(x.swapaxes(1, 2), more, constant_values=beyond)

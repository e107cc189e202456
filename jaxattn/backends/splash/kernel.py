"""jax's splash attention: a mask told tile by tile, and a call of its kernel."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float

from jaxattn._mask import BoundMask
from jaxattn._value import Place, Span

BLIND = -1e38  # the logits of hidden pairs are below, and those of seen ones far above


class Known(Place):
    """A place whose indices NumPy makes, so that a mask without arrays answers while tracing."""

    q = property(lambda self: self.each_q(np.arange(self.rows.start, sum(self.rows[:2]))))
    k = property(lambda self: self.each_k(np.arange(self.keys.start, sum(self.keys[:2]))))


@dataclass(frozen=True)
class Tiles(splash.Mask):
    """Which pairs of a tile are seen, of a mask without arrays; of no key from s on.

    padded: the shape that is asked about. Queries beyond those of the call may see anything.
    blocks: queries and keys of a tile.
    """

    mask: BoundMask
    s: int
    padded: tuple[int, ...]
    blocks: tuple[int, ...]
    shape = property(lambda self: self.padded)

    def __getitem__(self, idx: Any) -> np.ndarray:
        ends = (x.indices(n) for x, n in zip(idx, self.padded, strict=True))
        rows, keys = (Span(start, stop - start) for start, stop, _ in ends)
        (first, stop), end = self.mask.limits(rows, self.s), keys.start + keys.size
        if end <= first or min(stop, self.s) <= keys.start:
            return np.broadcast_to(False, (rows.size, keys.size))
        if end <= self.s and self.mask.covers(rows, keys):
            return np.broadcast_to(True, (rows.size, keys.size))
        place: Any = Known((), 0, rows, keys)
        with jax.ensure_compile_time_eval():
            allowed = self.mask.allows(place)
        seen = True if allowed is None else np.asarray(allowed)
        return np.broadcast_to(seen & (place.k < self.s), (rows.size, keys.size))

    def visible(self) -> list[bool]:
        """Whether each tile holds a pair that is seen."""
        side = lambda i, n: slice(i * n, (i + 1) * n)
        tiles = np.ndindex(*(n // block for n, block in zip(self.padded, self.blocks, strict=True)))
        return [bool(self[tuple(map(side, tile, self.blocks))].any()) for tile in tiles]


def forward(
    tiles: Tiles,
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n e"],
    ids: tuple[Array, Array] | None,
    cap: float | None,
    interpret: bool,
) -> tuple[Float[Array, "b t h e"], Float[Array, "b t h"]]:
    """(out, lse) in float32. q: scaled. ids: of queries and keys; pairs with other ids are hidden.

    Half precision is multiplied as it comes, which is exact; float32 as float32.
    """
    (t, s), (block_q, block_kv) = tiles.padded, tiles.blocks
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([tiles] * q.shape[2]),
        block_sizes=splash.BlockSizes(block_q=block_q, block_kv=block_kv),
        save_residuals=True,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )
    given = ids and splash.SegmentIds(_longer(ids[0], t), _longer(ids[1], s))
    arrays = (jnp.swapaxes(_longer(x, n), 1, 2) for x, n in ((q, t), (k, s), (v, s)))
    precision = "highest" if q.dtype == jnp.float32 else "default"
    with jax.enable_x64(False), jax.default_matmul_precision(precision):
        out, (lse,) = jax.vmap(kernel, (0, 0, 0, ids and 0))(*arrays, given)
    out, lse = (jnp.swapaxes(x, 1, 2)[:, : q.shape[1]].astype(jnp.float32) for x in (out, lse))
    blind = lse < BLIND
    return jnp.where(blind[..., None], 0, out), jnp.where(blind, -jnp.inf, lse)


def _longer(x: Array, length: int) -> Array:
    """x [b n ...] with more of the axis n, of 0."""
    return jnp.pad(x, [(0, (length - n) * (i == 1)) for i, n in enumerate(x.shape)])

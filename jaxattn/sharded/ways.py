"""How a sequence is shared out over devices, and how these work together: small frozen values."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxattn._axes import AnyArray, Index, count_to
from jaxattn._content import is_whole

__all__ = ["CONTIGUOUS", "ZIGZAG", "AllToAll", "Order", "Product", "Ring", "Striped", "Way"]


@dataclass(frozen=True)
class Order:
    """Which parts of a sequence a device has. The sequence is cut into `parts` times as many chunks
    as there are devices, all of one size."""

    parts: int = 1

    def chunk(self, device: Index, part: Index, devices: int) -> Any:
        """The chunk of the sequence that is the device's part-th."""
        raise NotImplementedError(f"{type(self).__name__}.chunk")

    def table(self, devices: int) -> np.ndarray:
        """The chunks [device part]."""
        parts = range(self.parts)
        rows = [[self.chunk(d, i, devices) for i in parts] for d in range(devices)]
        return np.array(rows, np.int32)

    def put(self, x: AnyArray, devices: int, axis: int = -3) -> Array:
        """A whole array, in sequence along `axis`, in the order in which the devices have it.

        Raises:
          ValueError: the axis is no multiple of the number of chunks.
        """
        return self._take(x, self.table(devices).reshape(-1), axis)

    def back(self, x: AnyArray, devices: int, axis: int = -3) -> Array:
        """The inverse of `put`."""
        return self._take(x, np.argsort(self.table(devices).reshape(-1)), axis)

    def tokens(self, device: Index, devices: int, held: int) -> Int[Array, " held"]:
        """Which tokens of the sequence a device has, `held` of them."""
        size = held // self.parts
        starts = [self.chunk(device, i, devices) * size for i in range(self.parts)]
        return jnp.concatenate([start + count_to(size) for start in starts])

    def _take(self, x: AnyArray, chunks: np.ndarray, axis: int) -> Array:
        x = jnp.asarray(x)
        axis %= x.ndim
        size, rest = divmod(x.shape[axis], len(chunks))
        if rest:
            raise ValueError(
                f"{self!r} cuts a sequence into {len(chunks)} equal chunks, got {x.shape[axis]} "
                f"tokens on axis {axis} of {x.shape}; pad the sequence to a multiple"
            )
        shape = *x.shape[:axis], len(chunks), size, *x.shape[axis + 1 :]
        x, whole = x.reshape(shape), x.shape
        typed = jax.typeof(x).sharding
        if typed.mesh.explicit_axes:  # which want to be told how the result is sharded
            at = *(slice(None),) * axis, jnp.asarray(chunks)
            return x.at[at].get(out_sharding=typed).reshape(whole)
        return jnp.take(x, chunks, axis=axis).reshape(whole)


@dataclass(frozen=True)
class Contiguous(Order):
    """The d-th device has the d-th part: the order of an array that is sharded along its axis."""

    def __repr__(self) -> str:
        return "CONTIGUOUS"

    def chunk(self, device: Index, part: Index, devices: int) -> Any:
        return device


@dataclass(frozen=True)
class Zigzag(Order):
    """The d-th device of n has the d-th of 2n chunks from the front and the d-th from the back, so
    that under a causal mask all have the same work.

    Source: Brandon et al. 2023, "Striped attention"; in this order, the ring of Llama 3 (Llama team
    2024, section 3.3.2).
    """

    parts: int = 2

    def __repr__(self) -> str:
        return "ZIGZAG"

    def chunk(self, device: Index, part: Index, devices: int) -> Any:
        first, second = device, 2 * devices - 1 - device
        if isinstance(part, int):
            return second if part else first
        return jnp.where(part == 0, first, second)


CONTIGUOUS, ZIGZAG = Contiguous(), Zigzag()


@dataclass(frozen=True)
class Striped(Order):
    """The d-th device of n has the chunks d, d + n, d + 2n and so on, `parts` of them.

    Source: Brandon et al. 2023, whose stripes are one token wide.
    """

    parts: int = 4

    def __post_init__(self) -> None:
        if not is_whole(self.parts) or self.parts < 1:
            raise ValueError(
                f"each device has a whole number of stripes, at least 1, got parts={self.parts!r}"
            )

    def chunk(self, device: Index, part: Index, devices: int) -> Any:
        return device + part * devices


@dataclass(frozen=True)
class Ring:
    """Keys and values go round the devices of a mesh axis, and each attends to them from its own
    queries.

    order: which tokens each device has: `CONTIGUOUS`, `ZIGZAG` or `Striped(...)`. Under a causal
      mask the first leaves half of the devices waiting. `order.put` brings a sequence into it.
    pieces: how many the keys of a device go round in, one after another: the more, the less memory
      what visits takes, and the more transfers there are, each smaller. None: up to 8, of as many
      keys as keep a device busy.
    Source: Liu et al. 2023, "Ring attention".
    """

    axis: str
    order: Order = CONTIGUOUS
    pieces: int | None = None

    def __post_init__(self) -> None:
        _check_axis("Ring", self.axis)
        if self.pieces is not None and (not is_whole(self.pieces) or self.pieces < 1):
            raise ValueError(
                f"keys go round in a whole number of pieces, at least 1, or None for the ring's "
                f"choice; got pieces={self.pieces!r}"
            )
        if not isinstance(self.order, Order):
            raise TypeError(
                f"a Ring's order is CONTIGUOUS, ZIGZAG or Striped(parts), got {self.order!r}"
            )


@dataclass(frozen=True)
class AllToAll:
    """Each device of a mesh axis gets some of the heads for the whole sequence, and gives their
    results back. The sequence is shared out contiguously.

    Source: Jacobs et al. 2023, "DeepSpeed Ulysses".
    """

    axis: str

    def __post_init__(self) -> None:
        _check_axis("AllToAll", self.axis)


@dataclass(frozen=True)
class Product:
    """Heads for sequence over the axis `heads`, and a ring over `ring`. The sequence is shared out
    over both, `ring` first: jax.P((ring, heads)).

    order, pieces: as in `Ring`, of what the devices of `heads` have together.
    Source: Fang and Zhao 2024, "USP".
    """

    heads: str
    ring: str
    order: Order = CONTIGUOUS
    pieces: int | None = None

    def __post_init__(self) -> None:
        _check_axis("Product", self.heads)
        Ring(self.ring, self.order, self.pieces)
        if self.heads == self.ring:
            raise ValueError(f"a Product is over two axes of the mesh, got {self.heads!r} twice")


Way: TypeAlias = Ring | AllToAll | Product
"""How a sequence over several devices is attended to."""


class Axes:
    """The two axes that a way may have, and how many devices each has here."""

    def __init__(self, way: Any, size_of: Any) -> None:
        if not isinstance(way, Ring | AllToAll | Product):
            raise TypeError(
                f"a way to share a sequence out is a value: Ring('x'), AllToAll('x') or "
                f"Product('x', 'y'); got {way!r}"
            )
        self.ring = way.axis if isinstance(way, Ring) else getattr(way, "ring", None)
        self.heads = way.axis if isinstance(way, AllToAll) else getattr(way, "heads", None)
        self.order: Order = getattr(way, "order", CONTIGUOUS)
        self.pieces: int | None = getattr(way, "pieces", None)
        self.rings = 1 if self.ring is None else size_of(self.ring)
        self.groups = 1 if self.heads is None else size_of(self.heads)

    @property
    def names(self) -> tuple[str, ...]:
        """The axes of the mesh over which the sequence is shared out, in the order of a spec."""
        return tuple(name for name in (self.ring, self.heads) if name is not None)

    @property
    def count(self) -> int:
        return self.rings * self.groups

    def tokens(self, held: int) -> Int[Array, " held"]:
        """Which tokens this device has. Asked inside `jax.shard_map`."""
        ring = 0 if self.ring is None else jax.lax.axis_index(self.ring)
        of_ring = self.order.tokens(ring, self.rings, held * self.groups)
        if self.heads is None:
            return of_ring
        start = jax.lax.axis_index(self.heads) * held
        return jax.lax.dynamic_slice_in_dim(of_ring, start, held)

    def check(self, what: str, length: int, parts: int) -> None:
        """
        Raises:
          ValueError: what devices have of a sequence cannot be cut into equal chunks.
        """
        if length * self.groups % parts:
            raise ValueError(
                f"{self.order!r} gives each device {parts} chunks of the {what}, all of one size, "
                f"got {length * self.groups} tokens on a device; pad the sequence"
            )

    def check_pieces(self, s: int) -> None:
        """
        Raises:
          ValueError: the s keys of a device of the ring cannot be cut into equal pieces.
        """
        chunk = s // self.order.parts
        if chunk % (self.pieces or 1):
            raise ValueError(
                f"keys go round in pieces of one size, got pieces={self.pieces} of the {chunk} "
                f"keys of a chunk; take a number that divides them, or None"
            )


def names_of(axis: Any) -> tuple[str, ...]:
    """The axes of the mesh in an entry of a spec."""
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)


def _check_axis(name: str, axis: object) -> None:
    if not isinstance(axis, str) or not axis:
        raise TypeError(f"{name} takes the name of an axis of the mesh, as 'x', got {axis!r}")

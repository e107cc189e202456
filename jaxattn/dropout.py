"""Dropout of attention weights, addressed by position.

Whether a pair is dropped is a function of the key and of the pair's batch element, head and
positions, and of nothing else: not of the size of a tile, the backend, the length of the sequence
or the direction of differentiation. It is computed in the tile; no array of random bits is held.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real, UInt32

from jaxattn._axes import AnyArray, AnyNumber, count_to
from jaxattn._batched import fit
from jaxattn._content import as_array, is_array, is_plain, is_real, show
from jaxattn._value import Place, Value
from jaxattn.positions import BoundPositions, Frame, Unplaced


@dataclass(frozen=True, eq=False, repr=False)
class Dropout(Value):
    """Drops each weight with probability `rate`, and divides the others by 1 - rate.

    It applies to the weights after the softmax: lse does not change.

    rate: from 0 to 1. 0 changes nothing, bit for bit. May be traced: one below 0 then counts as 0,
      one above 1 as 1, and NaN gives NaN.
    key: of `jax.random`.
    shared: whether the same pairs are dropped in every batch element and head.
    Source: Srivastava et al. 2014; of attention weights, Vaswani et al. 2017, section 5.4.
    """

    rate: Real[AnyNumber, ""]
    key: Key[Array, ""] | UInt32[AnyArray, " words"]
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self.rate)
        if not isinstance(self.shared, bool):
            raise TypeError(
                f"shared is True or False, got {self.shared!r}; the arguments are "
                f"Dropout(rate, key, shared)"
            )

    def resolve(self, frame: Frame) -> "Drop | None":
        """What tiles need of it; None for a rate that is known to be 0.

        Where the call does not tell positions, those in the arrays do: which pairs are dropped is
        a matter of chance either way.
        """
        if is_no_rate(self.rate):
            return None
        rate = jnp.clip(jnp.asarray(self.rate, jnp.result_type(float)), 0, 1)
        key = _as_key(self.key)
        if key.ndim:
            raise ValueError(
                f"Dropout takes one key, got {key.shape} keys; it gives every batch element and "
                f"head bits of its own"
            )
        words = lambda stream, at: _words(jax.random.fold_in(key, stream), at)
        lead = (1,) if self.shared else (*frame.batch, frame.h)
        heads = words(0, count_to(math.prod(lead))).reshape(*lead, 2)
        positions = BoundPositions() if isinstance(frame.positions, Unplaced) else frame.positions
        queries, keys = words(1, positions.every_q(frame.t)), words(2, positions.every_k(frame.s))
        word = lambda x, i, axes: fit(x[..., i], "Dropout", frame.sizes, axes)
        return Drop(
            jax.lax.stop_gradient(rate),
            head=word(heads, 0, "h"),
            head_2=word(heads, 1, "h"),
            row=word(queries, 0, "t"),
            row_2=word(queries, 1, "t"),
            column=word(keys, 0, "s"),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Drop(Value):
    """A resolved `Dropout`: random words of heads, queries and keys, which a pair's hash mixes."""

    rate: Float[Array, ""]
    head: UInt32[Array, "*#b h"]
    head_2: UInt32[Array, "*#b h"]
    row: UInt32[Array, "*#b t"]
    row_2: UInt32[Array, "*#b t"]
    column: UInt32[Array, "*#b s"]

    def keeps(self, place: Place) -> Bool[Array, "a b"]:
        """Which pairs of a tile are kept, as the tile lies. Asked of its part."""
        bits = _mix(place.each_q(self.row ^ self.head) + place.each_k(self.column))
        bits = _mix(bits + place.each_q(self.row_2 ^ self.head_2))
        return (bits >> 8).astype(jnp.float32) * 2**-24 >= self.rate.astype(jnp.float32)

    def apply(self, weights: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        """The weights of a tile, dropped or grown. Asked of its part."""
        none_left = self.rate == 1
        grown = jnp.where(none_left, 0, 1 / (1 - jnp.where(none_left, 0, self.rate)))
        dropped = 0 * self.rate  # 0, or the rate's NaN
        return jnp.where(
            self.keeps(place), weights * grown.astype(weights.dtype), dropped.astype(weights.dtype)
        )


def check_rate(rate: Any) -> None:
    """Raises:
    ValueError: not from 0 to 1, where that is known; not one number. TypeError: no number.
    """
    if is_array(rate) and rate.shape:
        raise ValueError(
            f"a dropout rate is one number, got shape {rate.shape}; heads and batch elements have "
            f"the same"
        )
    of_numbers = is_array(rate) and is_real(rate.dtype)
    if isinstance(rate, bool) or not (isinstance(rate, int | float) or of_numbers):
        raise TypeError(
            f"a dropout rate is a probability, a number from 0 to 1, got {rate!r}; for no dropout "
            f"pass 0"
        )
    if is_plain(rate) and not 0 <= np.asarray(rate) <= 1:  # by NumPy, also while tracing
        raise ValueError(
            f"a dropout rate is a probability, from 0 to 1, got {rate!r}; for a share to "
            f"keep, pass 1 minus it"
        )


def is_no_rate(rate: Any) -> bool:
    """Whether nothing is dropped, as far as that is known while tracing."""
    return is_plain(rate) and bool(np.asarray(rate) == 0)


def _as_key(key: Any) -> Array:
    key = key if is_array(key) else as_array(key, "the key of Dropout")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.dtype == jnp.uint32 and key.ndim >= 1:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"Dropout takes a key of jax.random, got {show(key)}; try jax.random.key(0)")


@jax.jit
def _words(key: Array, at: Int[Array, "*a"]) -> UInt32[Array, "*a 2"]:
    """Two random words for each position."""
    one = lambda i: jax.random.bits(jax.random.fold_in(key, i), (2,), jnp.uint32)
    return jax.vmap(one)(at.reshape(-1).astype(jnp.uint32)).reshape(*at.shape, 2)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of words in which every bit depends on every bit.

    Source of the multipliers: Chris Wellons, "Prospecting for Hash Functions", 2018 (lowbias32).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

"""Scores: what is done to the logits between the scale and the mask. Gradients reach every array.

Items apply from left to right: `score=(ALiBi(), SoftCap(30.0))` adds the bias and then caps. All
but `Bias` are computed in the tile and never held whole.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, accumulator, count_to, cut
from jaxattn._batched import fit
from jaxattn._content import as_array, as_int, is_plain, is_real, is_whole, show
from jaxattn._score import BoundScore, Score
from jaxattn._value import Place, Value
from jaxattn.positions import BoundPositions, Frame

__all__ = ["ALiBi", "Bias", "BoundScore", "RelativeBias", "Score", "SoftCap", "alibi_slopes"]


@dataclass(frozen=True, eq=False, repr=False)
class Bias(Score):
    """Adds an array to the logits.

    array: real numbers that broadcast to [*b h t s]. -inf hides a pair from the softmax; a mask
      also skips it, and keeps a NaN in the key or value from the query. Its gradient has its own
      shape.
    """

    array: Real[AnyArray, "..."]

    def resolve(self, frame: Frame, dtype: Any) -> "BoundBias":
        array = fit(_real(self.array, "Bias"), "Bias", frame.sizes, "hts")
        whole = array.shape == (*frame.batch, frame.h, frame.t, frame.s)
        # The gradient of a broadcast array is a sum over tiles, to be taken in the wider dtype.
        return BoundBias(array if whole else array.astype(accumulator(dtype)))


@dataclass(frozen=True, eq=False, repr=False)
class BoundBias(BoundScore):
    """A `Bias` with all of its axes."""

    array: Real[Array, "*#b #h #t #s"]

    moved = Value.moved

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        return logits + place.pairs(self.array).astype(logits.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class ALiBi(Score):
    """Subtracts slope · |p - r| from the logit of a query at position p and a key at r.

    slopes: one for each query head; `alibi_slopes(h)` if none are given.
    Source: Press et al. 2022, section 3.
    """

    slopes: Real[AnyArray, " h"] | None = None

    def resolve(self, frame: Frame, dtype: Any) -> "BoundALiBi":
        slopes = _real(
            alibi_slopes(frame.h) if self.slopes is None else self.slopes, "ALiBi.slopes"
        )
        if slopes.shape != (frame.h,):
            raise ValueError(
                f"ALiBi takes one slope for each query head, {frame.h} of them, got shape "
                f"{slopes.shape}; pass [h], or None for the standard ones"
            )
        slopes = fit(slopes.astype(dtype), "ALiBi.slopes", frame.sizes, "h")
        return BoundALiBi(slopes, frame.where("ALiBi"))


@dataclass(frozen=True, eq=False, repr=False)
class BoundALiBi(BoundScore):
    """An `ALiBi` with its slopes and positions."""

    slopes: Float[Array, "*#b h"]
    positions: BoundPositions

    moved = Value.moved

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        return logits - self.slopes * jnp.abs(self.positions.gap(place)).astype(logits.dtype)


def alibi_slopes(h: int) -> np.ndarray:
    """The slopes of ALiBi for h heads, in float32: 2^(-8i/h) for i = 1..h where h is a power of 2.

    For other h: those of the power of 2 below, then every other one of those of twice as many.
    Source: Press et al. 2022, section 3, and the code published with it.
    """
    h = as_int(h)
    if not is_whole(h) or h < 0:
        raise ValueError(f"alibi_slopes takes a number of heads, at least 0, got {h!r}")
    if h < 1:
        return np.zeros(0, np.float32)
    power = 2 ** int(math.log2(h))
    first = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-4 * i / power) for i in range(1, 2 * power + 1, 2)]
    return np.array(first + between[: h - power], np.float32)


@dataclass(frozen=True, eq=False, repr=False)
class RelativeBias(Score):
    """Adds table[bucket(r - p), head] to the logit of a query at position p and a key at r: T5's
    bias.

    Half of the buckets hold one distance each, the rest grow with the logarithm of the distance up
    to `max_distance`; the last one holds all beyond.

    table: [buckets h].
    bidirectional: keys before and after the query have half of the buckets each; if not, all
      buckets are for keys before it, and those after share bucket 0.
    max_distance: in positions.
    Source: Raffel et al. 2020, section 2.1, and the code published with it.
    """

    WHOLE: ClassVar = ("max_distance",)

    table: Real[AnyArray, "buckets h"]
    bidirectional: bool = True
    max_distance: int = 128

    def resolve(self, frame: Frame, dtype: Any) -> "BoundRelativeBias":
        table = _real(self.table, "RelativeBias.table")
        if table.ndim != 2 or table.shape[1] != frame.h or table.shape[0] < 2:
            raise ValueError(
                f"RelativeBias takes a table [buckets h], at least 2 buckets for each of "
                f"{frame.h} query heads, got shape {table.shape}; transpose or widen it"
            )
        relative_buckets(table.shape[0], self.bidirectional, self.max_distance)  # or an error
        by_head = fit(table.astype(dtype).T, "RelativeBias.table", frame.sizes, "h.")
        positions = frame.where("RelativeBias")
        return BoundRelativeBias(by_head, positions, self.bidirectional, self.max_distance)


@dataclass(frozen=True, eq=False, repr=False)
class BoundRelativeBias(BoundScore):
    """A `RelativeBias` with its table by heads, and positions."""

    table: Float[Array, "*#b h buckets"]
    positions: BoundPositions
    bidirectional: bool
    max_distance: int

    moved = Value.moved

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        """Where positions count up, every line of a tile is the one before, moved by one: the tile
        is made of slices of one vector."""
        lines, length = logits.shape
        most = self.max_distance
        buckets = relative_buckets(self.table.shape[-1], self.bidirectional, most)
        look_up = lambda away: self.table[jnp.asarray(buckets)[jnp.clip(away, -most, most) + most]]
        # Lengths may be open in an exported function.
        if not (self.positions.in_order and isinstance(lines, int) and isinstance(length, int)):
            return logits + look_up(-self.positions.gap(place))
        lines += -lines % LINES
        along = count_to(lines + length - 1) - (lines - 1)
        away = place.keys.start - place.rows.start - self.positions.ahead
        bias = look_up(away - along if place.keys_first else away + along)
        return logits + _moving_lines(bias, lines, length)[: logits.shape[0]]


LINES = 16  # cut in one go: many short slices cost more than they save


def _moving_lines(x: Float[Array, " n"], lines: int, length: int) -> Float[Array, "lines length"]:
    """x[lines - 1 - i :][:length] as the i-th line, for a multiple of `LINES`."""
    few = lines + length - LINES
    first = jnp.stack([x[LINES - 1 - i :][:few] for i in range(LINES)])
    block = lambda i: cut(first, (0, lines - LINES * (i + 1)), (LINES, length))
    return jax.vmap(block)(count_to(lines // LINES)).reshape(lines, length)


def relative_buckets(buckets: int, bidirectional: bool, max_distance: int) -> np.ndarray:
    """The bucket of a key at -max_distance, ..., max_distance positions from the query.

    In float32, as the published code, whose bucket edges depend on it.

    Raises:
      ValueError: too few buckets, or a max_distance within those that hold one distance each.
    """
    if not is_whole(max_distance) or not isinstance(bidirectional, bool):
        raise TypeError(
            f"a RelativeBias has bidirectional=True or False and a whole number as max_distance, "
            f"got {bidirectional!r} and {max_distance!r}"
        )
    away = np.arange(-max_distance, max_distance + 1)
    side = buckets // 2 if bidirectional else buckets
    single = side // 2
    if single < 1 or max_distance <= single:
        raise ValueError(
            f"a RelativeBias needs at least {4 if bidirectional else 2} buckets and a max_distance "
            f"above {single}, got {buckets} buckets and max_distance={max_distance}; change either"
        )
    far = np.abs(away) if bidirectional else np.maximum(-away, 0)
    growth = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single))
    growth = growth / np.float32(math.log(max_distance / single)) * np.float32(side - single)
    wide = np.minimum(single + np.trunc(growth).astype(np.int32), side - 1)
    after = np.where(away > 0, side, 0) if bidirectional else 0
    return (after + np.where(far < single, far, wide)).astype(np.int32)


@dataclass(frozen=True, eq=False, repr=False)
class SoftCap(Score):
    """cap · tanh(logit / cap): keeps logits between -cap and cap.

    cap: above 0; one number for all heads. May be traced; inf is no cap. A Python integer is known
      while tracing, as `Splash` wants it; a new one compiles anew.
    Source: Gemma Team 2024, "Gemma 2", section 2.
    """

    cap: Real[AnyNumber, "..."]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_plain(self.cap) or np.ndim(self.cap) != 0:
            return  # told at the call, with the shape that it has to have
        # By NumPy, also while tracing.
        if isinstance(self.cap, bool) or not np.asarray(self.cap) > 0:
            raise ValueError(
                f"a soft cap is above 0, got {self.cap!r}; leave SoftCap out for no cap"
            )

    def resolve(self, frame: Frame, dtype: Any) -> "BoundSoftCap":
        cap = _real(self.cap, "SoftCap")
        if cap.ndim:
            raise ValueError(
                f"a soft cap is one number for all heads, got shape {cap.shape}; for one of each "
                f"head write a function: lambda logit, at: cap[at.head] * ..."
            )
        cap = jnp.minimum(cap.astype(dtype), NO_CAP)
        known = self.cap if isinstance(self.cap, int) and self.cap <= NO_CAP else None
        return BoundSoftCap(fit(cap, "SoftCap", frame.sizes, ""), known)


@dataclass(frozen=True, eq=False, repr=False)
class BoundSoftCap(BoundScore):
    """A `SoftCap` that is finite. known: the cap, where it is a Python integer."""

    cap: Float[Array, "*#b"]
    known: int | None = None

    moved = Value.moved

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        return self.cap * jnp.tanh(logits / self.cap)


# Logits of any use are far below, where tanh(x) is x; and logit / cap is not so small that it is 0,
# as it would be with inf. A power of 2 divides and multiplies without rounding.
NO_CAP = 2.0**80


def _real(array: Any, name: str) -> Array:
    array = as_array(array, name)
    if not is_real(array.dtype):
        raise TypeError(f"{name} holds real numbers, got {show(array)}; cast it first")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.float32)
    return array

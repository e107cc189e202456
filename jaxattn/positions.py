"""Positions: where the queries and keys of a call are.

All that speaks of order or distance goes by them: masks, scores, observations, dropout and users'
functions. Where they count up from a start, masks tell the keys that a block of queries needs from
the two starts alone; where every token has a position of its own, from the arrays.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from jaxattn._axes import INDEX, AnyInteger, count_to
from jaxattn._batched import as_indices, broadcasts, fit, integers
from jaxattn._content import is_whole, show
from jaxattn._value import Fixed, Place, Shift, Sizes, Value

__all__ = ["END", "Positions"]


class Align(Enum):
    """Where queries are that have no start of their own."""

    END = "the last query is at the position of the last key"

    def __repr__(self) -> str:
        return self.name


END = Align.END

FARTHEST = 2**29  # sums and differences of positions are indices
TOO_FAR = 3 * FARTHEST  # apart: no tokens are, for those that begin that far count on


@dataclass(frozen=True, eq=False, repr=False)
class Positions(Value):
    """Where the queries and keys of a call are: `attend(..., positions=Positions(q=..., k=...))`.

    What speaks of order or distance goes by these: `Causal`, `Window`, `PrefixLM`, `ALiBi`,
    `RelativeBias`, `Diagonal`, `Distance`, dropout, and users' functions by `at.q` and `at.k`.
    Positions are integers up to 2**29 either way; traced ones beyond count as that far. A Python
    number is static: a new one compiles anew. Where it changes, as in decoding, pass an array.

    q, k: a start, from which the tokens count up: a number, or one for each sequence, [*b] or
      [*b 1]. Or a position for every token, in any order: [t] or [*b t] for q, [s] or [*b s] for k.
      q may also be `END`: the queries are the last of the keys.
    """

    WHOLE: ClassVar = ("q", "k")

    q: Integer[AnyInteger, "..."] | Align = 0
    k: Integer[AnyInteger, "..."] = 0


@dataclass(frozen=True, eq=False, repr=False)
class BoundPositions(Value):
    """`Positions` bound to a call: a start of queries and of keys, from which they count up; or, if
    there are `q_each` and `k_each`, a position for every one."""

    q_start: int | Int[Array, "*#b"] = 0
    k_start: int | Int[Array, "*#b"] = 0
    q_each: Int[Array, "*#b t"] | None = None
    k_each: Int[Array, "*#b s"] | None = None

    def moved(self, by: Shift) -> "BoundPositions":
        if not self.in_order:
            return self
        return BoundPositions(self.q_start + by.q, self.k_start + by.k)

    @property
    def in_order(self) -> bool:
        return self.q_each is None

    @property
    def ahead(self) -> Any:
        """How far the first query is ahead of the first key, where both count up."""
        return self.q_start - self.k_start

    def q(self, place: Place) -> Int[Array, " r"]:
        """The positions of the queries of a tile. Asked of its part."""
        return place.rows.indices() + self.q_start if self.q_each is None else self.q_each

    def k(self, place: Place) -> Int[Array, " c"]:
        """The positions of the keys of a tile. Asked of its part."""
        return place.keys.indices() + self.k_start if self.k_each is None else self.k_each

    def gap(self, place: Place) -> Int[Array, "#a #b"]:
        """How far each query of a tile is ahead of each key, as the tile lies."""
        if self.in_order:
            return place.q + self.ahead - place.k
        return place.each_q(self.q(place)) - place.each_k(self.k(place))

    def every_q(self, t: int) -> Int[Array, "*#b t"]:
        """The positions of all queries. Asked of the whole."""
        return _every(self.q_start, t) if self.q_each is None else self.q_each

    def every_k(self, s: int) -> Int[Array, "*#b s"]:
        """The positions of all keys. Asked of the whole."""
        return _every(self.k_start, s) if self.k_each is None else self.k_each


class Counts(Fixed):
    """How many queries and keys there are; they may be open in an exported function."""

    def __init__(self, sizes: Sizes) -> None:
        self.t, self.s = sizes.t, sizes.s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and (self.t, self.s) == (other.t, other.s)

    def __hash__(self) -> int:
        return hash((self.t, self.s))


@dataclass(frozen=True, eq=False, repr=False)
class Unplaced(Value):
    """Stands for positions that a call of t != s does not tell."""

    of: Counts

    def refuse(self, name: str) -> ValueError:
        return ValueError(
            f"{name} goes by positions, which have to be told when t != s, got t={self.of.t} "
            f"queries and s={self.of.s} keys; pass positions=Positions(0, 0), where the first "
            f"query is at the first key, or positions=END, where the last query is at the last key"
        )


class Frame(NamedTuple):
    """What a mask, score or observation is bound to: the axes of a call, and where its tokens
    are."""

    sizes: Sizes
    positions: BoundPositions | Unplaced

    @property
    def batch(self) -> tuple[int, ...]:
        return self.sizes.batch

    @property
    def h(self) -> int:
        return self.sizes.h

    @property
    def t(self) -> int:
        return self.sizes.t

    @property
    def s(self) -> int:
        return self.sizes.s

    def where(self, name: str) -> BoundPositions:
        """The positions, which `name` goes by.

        Raises:
          ValueError: the call does not tell them.
        """
        if isinstance(self.positions, Unplaced):
            raise self.positions.refuse(name)
        return self.positions


Given: TypeAlias = Positions | Align | None
"""What `positions=` takes."""


def frame_of(given: Any, sizes: Sizes) -> Frame:
    """The frame of a call. given: `Positions`, END, None, or what a cache has bound already.

    Raises:
      TypeError: none of these; positions that are not integers.
      ValueError: they do not fit the axes, or fit in two ways.
    """
    if isinstance(given, BoundPositions):
        return Frame(sizes, given)
    if given is None:
        return Frame(sizes, BoundPositions() if sizes.t == sizes.s else Unplaced(Counts(sizes)))
    if given is not END and not isinstance(given, Positions):
        raise TypeError(
            f"positions are Positions(q=..., k=...) or END, got {show(given)}; for arrays pass "
            f"Positions(array_of_queries, array_of_keys)"
        )
    given = Positions(END) if given is END else given
    k_start, k_each = _side(given.k, "k", sizes, "s")
    if given.q is END:
        return Frame(sizes, _at_end(k_start, k_each, sizes))
    q_start, q_each = _side(given.q, "q", sizes, "t")
    if q_each is None and k_each is None:
        return Frame(sizes, BoundPositions(q_start, k_start))
    q_each = fit(_every(q_start, sizes.t), "q", sizes, "t") if q_each is None else q_each
    k_each = fit(_every(k_start, sizes.s), "k", sizes, "s") if k_each is None else k_each
    return Frame(sizes, BoundPositions(0, 0, q_each, k_each))


def _at_end(k_start: Any, k_each: Any, sizes: Sizes) -> BoundPositions:
    if k_each is None:
        ahead: Any = sizes.s - sizes.t
        if not isinstance(ahead, int):  # of lengths that are open in an exported function
            ahead = fit(jnp.asarray(ahead, INDEX), "END", sizes, "")
        return BoundPositions(k_start + ahead, k_start)
    if sizes.t > sizes.s:
        raise ValueError(
            f"END puts queries at the positions of the last keys, got t={sizes.t} queries and only "
            f"s={sizes.s} keys with a position each; give the queries' positions too"
        )
    return BoundPositions(0, 0, k_each[..., sizes.s - sizes.t :], k_each)


def _every(start: Any, size: int) -> Int[Array, "*#b size"]:
    return jnp.asarray(start, INDEX)[..., None] + count_to(size)


def _side(value: Any, name: str, sizes: Sizes, axis: str) -> tuple[Any, Any]:
    """(the start, None), or (0, a position for every token)."""
    what = f"positions {name}"
    if is_whole(value):
        return _near(int(value), what), None
    array = integers(value, what)
    size = sizes.along(axis, array.shape[-1] if array.ndim else 1)
    shape, batch = array.shape, sizes.batch
    starts = shape[:-1] if len(shape) > len(batch) and shape[-1] == 1 else shape
    is_start = broadcasts(starts, batch)
    is_each = bool(shape) and shape[-1] == size and broadcasts(shape[:-1], batch)
    if is_start and is_each and len(starts) == len(shape) and shape != (1,):
        raise ValueError(
            f"{what} are a start for each sequence, or a position for each of {size} tokens, got "
            f"shape {shape}: both fit; pass {name}[..., None] for starts, {name}[None] for tokens"
        )
    if not (is_start or is_each):
        raise ValueError(
            f"{what} are one start, a start for each sequence [*b] = {list(batch)}, or a position "
            f"for each token, [{axis}] or [*b {axis}] = {[*batch, size]}, got shape {shape}; give "
            f"each axis its full size or 1"
        )
    array = as_indices(_near(array, what), -FARTHEST, FARTHEST)
    if is_start:
        return fit(array.reshape(starts), what, sizes, ""), None
    return 0, fit(array, what, sizes, axis)


def _near(value: Any, what: str) -> Any:
    """`value`, if it is not known to be too far."""
    if isinstance(value, int | np.ndarray) and np.size(value):
        least, most = int(np.min(value)), int(np.max(value))
        if least < -FARTHEST or most > FARTHEST:
            raise ValueError(
                f"{what} are up to {FARTHEST:,} either way, got {least} to {most}; subtract what q "
                f"and k have in common"
            )
    return value

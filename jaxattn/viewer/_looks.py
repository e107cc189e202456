"""Observations that the page needs beside the public ones."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn._axes import AnyArray
from jaxattn._batched import fit
from jaxattn._observation import QUERY, Observation, Seen, Sum, known_lengths
from jaxattn._serial import serial_tuple
from jaxattn._value import Sizes
from jaxattn.observe.map import SUM, BoundMap
from jaxattn.positions import Frame


@serial_tuple
class Looks(NamedTuple):
    """What every query looks at. All but `keys` are under its weights.

    first: the weight of the first key. itself, previous, next: of the key at its own position, one
      before, one after. induction: of the keys that come right after a token like the query's,
      itself or one before it. distance: the mean of |p - r| in positions.
    keys: how many keys it sees.
    """

    first: Float[AnyArray, "*b t h"]
    itself: Float[AnyArray, "*b t h"]
    previous: Float[AnyArray, "*b t h"]
    next: Float[AnyArray, "*b t h"]
    induction: Float[AnyArray, "*b t h"]
    distance: Float[AnyArray, "*b t h"]
    keys: Int[AnyArray, "*b t h"]


def only_first(first: Any, keys: Any) -> Looks:
    """`Looks` of queries that share no positions with the keys: 0 for all that goes by those."""
    zero = first * 0
    return Looks(first, zero, zero, zero, zero, zero, keys)


@dataclass(frozen=True, eq=False, repr=False)
class LooksAt(Observation):
    """`Looks`. ids: of the queries' tokens. before: of the token before each key, -1 for none.

    placed: whether queries and keys share positions; if not, only `first` and `keys` are counted.
    """

    ids: Int[Any, " t"]
    before: Int[Any, " s"]
    placed: bool = True

    def resolve(self, frame: Frame, dtype: Any) -> "BoundLooksAt":
        if self.placed:
            frame.where("LooksAt")  # or an error
        ids = fit(jnp.asarray(self.ids), "LooksAt.ids", frame.sizes, "t")
        before = fit(jnp.asarray(self.before), "LooksAt.before", frame.sizes, "s")
        return BoundLooksAt(ids, before, self.placed)


@dataclass(frozen=True, eq=False, repr=False)
class BoundLooksAt(Sum):
    """A `LooksAt` with all of its axes."""

    PER = QUERY
    ids: Int[Array, "*#b #t"]
    before: Int[Array, "*#b #s"]
    placed: bool

    def start(self, sizes: Sizes, dtype: Any) -> Looks:
        zero = jnp.zeros((), dtype)
        return only_first(zero, jnp.zeros((), jnp.int32))

    def absorb(self, seen: Seen) -> Looks:
        on = lambda which: jnp.where(which, seen.p, 0).sum(axis=1) * seen.norm
        first = on(seen.place.keys.indices()[None, :] == 0)
        keys = (seen.logits > -jnp.inf).sum(axis=1, dtype=jnp.int32)
        if not self.placed:
            return only_first(first, keys)
        back = seen.q[:, None] - seen.k[None, :]
        after_same = (self.ids[:, None] == self.before[None, :]) & (back >= 0)
        distance = (seen.p * jnp.abs(back).astype(seen.p.dtype)).sum(axis=1) * seen.norm
        beside = on(back == 0), on(back == 1), on(back == -1)
        return Looks(first, beside[0], beside[1], beside[2], on(after_same), distance, keys)


@dataclass(frozen=True, repr=False)
class Cells(Observation):
    """The cells of `Map(cells)`, of something else, summed: [*b h rows columns].

    logits: of what the softmax gets, 0 where a pair is hidden; else the number of pairs that are
    not hidden.
    """

    cells: int
    logits: bool = False

    def resolve(self, frame: Frame, dtype: Any) -> "BoundCells":
        known_lengths(self, frame)
        return BoundCells(self.cells, SUM, frame.t, frame.s, self.logits)


@dataclass(frozen=True, repr=False)
class BoundCells(BoundMap):
    """`Cells` of t queries and s keys."""

    logits: bool = False

    @property
    def statistic(self) -> None:
        return None

    def absorb(self, seen: Seen) -> Float[Array, "rows columns"]:
        open_ts = seen.logits > -jnp.inf
        what = jnp.where(open_ts, seen.logits, 0) if self.logits else open_ts.astype(seen.p.dtype)
        return super().absorb(seen._replace(p=what, norm=jnp.ones_like(seen.norm)))

"""What an observation is: a fold over the tiles of the weights, one that never holds them whole."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn._axes import Index
from jaxattn._value import Place, Shift, Sizes, Value
from jaxattn.positions import BoundPositions, Frame, Unplaced


class Per(Enum):
    """What an observation has one of: the axes that its state begins with."""

    QUERY = "query"
    KEY = "key"
    HEAD = "head"

    def __repr__(self) -> str:
        return self.name


QUERY, KEY, HEAD = Per.QUERY, Per.KEY, Per.HEAD


class Statistic(Enum):
    """States that a kernel may know how to make without `absorb`."""

    ENTROPY = "-Σ p log p of each query"
    PEAK = "the largest logit of each head"
    PEAK_BEFORE_SCORES = "the largest q kᵀ · scale of each head, of pairs with a logit above -inf"
    RECEIVED = "Σ p of each key, and how many queries may see it"


class Grid(NamedTuple):
    """The same: p in `rows` by `columns` cells of `down` queries and `across` keys, of each head,
    summed or the largest."""

    rows: int
    columns: int
    down: int
    across: int
    largest: bool


class Seen(NamedTuple):
    """A tile of one head's weights, as an observation sees it. No pair is in two tiles.

    weights: the softmax, before dropout; 0 where a query may not see a key. They are p · norm, with
      one norm for each row, so that a sum over keys may multiply by it last.
    logits: after scores and mask; -inf where a query may not see a key.
    scaled: q kᵀ · scale, before scores and mask.
    allowed: which pairs the mask allows.
    queries: how many rows may see each key.
    peak: the largest logit of each row in this tile.
    lse: of the rows, over all keys and the sink.
    live: which rows see any key, here or in another tile.
    place: where the tile is.
    positions: of its queries and keys.
    scored: whether scores came between `scaled` and `logits`.
    """

    p: Float[Array, "t s"]
    norm: Float[Array, " t"]
    logits: Float[Array, "t s"]
    scaled: Float[Array, "t s"]
    allowed: Bool[Array, "t s"]
    queries: Int[Array, " s"]
    peak: Float[Array, " t"]
    lse: Float[Array, " t"]
    live: Bool[Array, " t"]
    place: Place
    positions: BoundPositions | Unplaced
    scored: bool = True

    @property
    def weights(self) -> Float[Array, "t s"]:
        return self.p * self.norm[:, None]

    @property
    def q(self) -> Int[Array, " t"]:
        """The positions of the queries."""
        return self.at.q(self.place)

    @property
    def k(self) -> Int[Array, " s"]:
        """The positions of the keys."""
        return self.at.k(self.place)

    @property
    def at(self) -> BoundPositions:
        """The positions, if the call tells them.

        Raises:
          ValueError: it does not.
        """
        if isinstance(self.positions, Unplaced):
            raise self.positions.refuse("an observation that reads `q` or `k`")
        return self.positions

    @property
    def batch(self) -> tuple[Index, ...]:
        """The index along each batch axis."""
        return self.place.batch

    @property
    def head(self) -> Index:
        """The query head."""
        return self.place.head


class Observation(Value):
    """An observation as it is given: `attend(..., observe={name: observation})`."""

    def resolve(self, frame: Frame, dtype: Any) -> "BoundObservation":
        """This observation with every default made explicit, for weights of `dtype`."""
        raise NotImplementedError(f"{type(self).__name__}.resolve")

    def merge_results(self, results: Sequence[Any], shares: "Shares") -> Any:
        """What is shown of all keys, from what was shown of disjoint sets of them.

        NotImplemented where that does not follow from it.
        """
        del results, shares
        return NotImplemented


class BoundObservation(Observation):
    """An observation bound to a call: a fold over its tiles. One that needs no call for that may be
    given.

    PER says what it has one of. The state of a tile is a tree of arrays whose first axis is t for
    QUERY, s for KEY, and that have no such axis for HEAD.
    """

    PER: ClassVar[Per]

    @property
    def per(self) -> Per:
        return self.PER

    @property
    def statistic(self) -> Statistic | Grid | None:
        """What its states are, where that has a name. One that absorbs something else has none."""
        return None

    def resolve(self, frame: Frame, dtype: Any) -> "BoundObservation":
        del frame, dtype
        return self

    def start(self, sizes: Sizes, dtype: Any) -> Any:
        """The state of no pairs: of one query or key (without an axis for it), or of the head."""
        raise NotImplementedError(f"{type(self).__name__}.start")

    def absorb(self, seen: Seen) -> Any:
        """The state of the pairs of a tile. Asked of the tile's part."""
        raise NotImplementedError(f"{type(self).__name__}.absorb")

    def merge(self, a: Any, b: Any) -> Any:
        """The state of the pairs of both, elementwise in the first axis."""
        raise NotImplementedError(f"{type(self).__name__}.merge")

    def finish(self, state: Any, live: Bool[Array, "*b t h"]) -> Any:
        """What is shown for a state with leading axes [*b t h], [*b s h] or [*b h].

        live: which queries see any key.
        """
        del live
        return state

    @property
    def adds_up(self) -> bool:
        """Whether `merge` adds, and the state of no pairs is zeros."""
        return False

    def finish_part(self, state: Any, live: Bool[Array, "*b t h"], share: "Share") -> Any:
        """`finish`, where a device has some of the queries and keys.

        state: of its queries, or of its keys; or of the head, of all pairs. live: of its queries.
        """
        del share
        return self.finish(state, live)

    def moved(self, by: Shift) -> "BoundObservation":
        """As `Value.moved`: it sees the places and positions of the whole."""
        return Moved(Value.moved(self, by), *by)


class Share(NamedTuple):
    """What a device has of a sequence. rows: which of its queries. total: sums over devices."""

    rows: Int[Array, " t"]
    total: Callable[[Any], Any]


@dataclass(frozen=True, eq=False, repr=False)
class Moved(BoundObservation):
    """An observation of a part, so far from the first of the whole: its states are parts of those
    of the whole."""

    of: BoundObservation
    q: int | Int[Array, "*#b"]
    k: int | Int[Array, "*#b"]
    head: int | Int[Array, "*#b"]
    batch: tuple[int | Int[Array, ""], ...]

    @property
    def per(self) -> Per:
        return self.of.per

    @property
    def statistic(self) -> Statistic | Grid | None:
        known = self.of.statistic
        return known if isinstance(known, Statistic) else None

    def start(self, sizes: Sizes, dtype: Any) -> Any:
        return self.of.start(sizes, dtype)

    def absorb(self, seen: Seen) -> Any:
        place = seen.place.moved(Shift(self.q, self.k, self.head, self.batch))
        positions = seen.positions
        if isinstance(positions, BoundPositions):
            positions = positions.moved(Shift(-self.q, -self.k))
        return self.of.absorb(seen._replace(place=place, positions=positions))

    def merge(self, a: Any, b: Any) -> Any:
        return self.of.merge(a, b)

    moved = Value.moved


Watch: TypeAlias = tuple[BoundObservation, ...]
"""The observations of a call."""


class Shares(NamedTuple):
    """What sets of keys have of the weights of all.

    share: for each set, the sum of its weights, with its sink if it has one. log: of that; 0 where
    no key of the set is seen. lse: of all keys.
    """

    share: tuple[Float[Array, "*b t h"], ...]
    log: tuple[Float[Array, "*b t h"], ...]
    lse: Float[Array, "*b t h"]

    def mix(self, results: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
        """Σ share · result."""
        grow = lambda share, x: share.reshape(*share.shape, *(1,) * (x.ndim - share.ndim))
        terms = [grow(share, x) * x for share, x in zip(self.share, results, strict=True)]
        return functools.reduce(jnp.add, terms)


def known_lengths(observation: object, frame: Frame) -> None:
    """For an observation whose shape follows from the lengths.

    Raises:
      ValueError: they are open, in a function that is exported.
    """
    if not (isinstance(frame.t, int) and isinstance(frame.s, int)):
        raise ValueError(
            f"what {observation!r} shows is laid out by the lengths, which must be known, got "
            f"t={frame.t} and s={frame.s}; export one function for each length, or leave it out"
        )


def by_rows(f: Callable[..., Any], many: int, *each: Array) -> Any:
    """f(*each), for an f that makes one thing of each row, from `many` rows at a time.

    So what f makes on the way is never as large as the tile; nor is it in the derivatives.
    """
    count, rest = divmod(len(each[0]), many)
    if count + (rest > 0) < 2:
        return f(*each)
    groups = [x[: count * many].reshape(count, many, *x.shape[1:]) for x in each]
    again = jax.checkpoint(lambda group: f(*group), prevent_cse=False)
    made = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(again, groups))
    if not rest:
        return made
    last = f(*(x[-rest:] for x in each))
    return jax.tree.map(lambda *x: jnp.concatenate(x), made, last)


class Sum(BoundObservation):
    """An observation whose states add up; the state of no pairs is zeros."""

    @property
    def adds_up(self) -> bool:
        return True

    def merge(self, a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)


class Largest(BoundObservation):
    """An observation that keeps the largest."""

    def merge(self, a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.maximum, a, b)


def check_observations(observe: Any, frame: Frame, dtype: Any) -> dict[str, BoundObservation]:
    """The observations of a call, resolved.

    Raises:
      TypeError: not a dict of observations.
    """
    return {name: each.resolve(frame, dtype) for name, each in by_name(observe).items()}


def by_name(observe: Any) -> Mapping[str, Observation]:
    """The observations that are asked for; none for None.

    Raises:
      TypeError: not a dict of observations.
    """
    if observe is None:
        return {}
    if not isinstance(observe, Mapping):
        raise TypeError(
            f"observe is a dict of observations by name, got {observe!r}; pass "
            f'observe={{"entropy": Entropy()}}'
        )
    for name, observation in observe.items():
        if not isinstance(observation, Observation):
            hint = (
                f"; make one: {observation.__name__}(...)" if isinstance(observation, type) else ""
            )
            raise TypeError(
                f"an observation is a value such as Entropy() or Map(cells=256), got "
                f"{observation!r} for {name!r}{hint}"
            )
    return observe


def states_of_no_pairs(sizes: Sizes, watched: Watch, dtype: Any) -> tuple[Any, ...]:
    """The states before any pair is seen, with leading axes [*b t h], [*b s h] or [*b h]."""
    lead = {QUERY: (sizes.t, sizes.h), KEY: (sizes.s, sizes.h)}

    def one(observation: BoundObservation) -> Any:
        shape = *sizes.batch, *lead.get(observation.per, (sizes.h,))
        grow = lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x)))
        return jax.tree.map(grow, observation.start(sizes, dtype))

    return tuple(map(one, watched))


def finish(
    observations: Mapping[str, BoundObservation],
    states: tuple[Any, ...],
    live: Bool[Array, "*b t h"],
) -> dict[str, Any]:
    """What each observation shows, by name. live: which queries see any key."""
    pairs = zip(observations.items(), states, strict=True)
    return {name: each.finish(state, live) for (name, each), state in pairs}

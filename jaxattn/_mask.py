"""The mask algebra: what a mask has to answer, and how masks combine."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import INDEX, Index, larger, smaller
from jaxattn._content import show
from jaxattn._value import Place, Shift, Span, Value
from jaxattn.positions import Frame


class Mask(Value):
    """Which keys each query may see, as it is given. Masks combine with `&`, `|` and `~`."""

    def __and__(self, other: "Mask") -> "Mask":
        return And(_parts(And, self) + _parts(And, check_mask(other)))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(_parts(Or, self) + _parts(Or, check_mask(other)))

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"masks combine with & | and ~, got one where Python asks whether it is true: {self!r} "
            f"in `and`, `or`, `not` or `if`; write a & b, a | b or ~a, or `mask is None`"
        )

    def resolve(self, frame: Frame) -> "BoundMask":
        """This mask with every default made explicit, checked against the axes it has to fit."""
        raise NotImplementedError(f"{type(self).__name__}.resolve")


class BoundMask(Mask):
    """A mask bound to a call, as backends ask it. One that needs no call for that may be given."""

    def resolve(self, frame: Frame) -> "BoundMask":
        del frame
        return self

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        """Which pairs of a tile are allowed, as the tile lies; None for all. Asked of its part."""
        raise NotImplementedError(f"{type(self).__name__}.allows")

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        """A range [first, stop) of keys, known while tracing, outside which `rows` see nothing."""
        del rows
        return 0, s

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """The range [first, stop) of keys that `rows` can need; may be traced.

        Asked of one element of the batch.
        """
        return self.limits(rows, s)

    def covers(self, rows: Span, keys: Span) -> bool:
        """Whether every pair of a tile is known, while tracing, to be allowed."""
        del rows, keys
        return False

    def count(self, place: Place) -> Int[Array, " s"] | None:
        """How many queries of a tile see each of its keys; None where only `allows` can tell."""
        del place
        return None

    def met(self, other: "BoundMask") -> "BoundMask | None":
        """What both allow, where that is one mask; else None, and `BoundAnd` asks each."""
        del other
        return None

    def moved(self, by: Shift) -> "BoundMask":
        """As `Value.moved`, whatever indices `allows` asks for; then nothing is known of the range
        that is needed."""
        return MovedMask(Value.moved(self, by), *by)

    @property
    def exact(self) -> bool:
        """Whether the rows of a block, together, see every key of the range that `needs` gives."""
        return False

    @property
    def is_known(self) -> bool:
        """Whether it is known, while tracing, which tiles are needed."""
        return self.exact and not jax.tree.leaves(self)

    @property
    def same_for_rows(self) -> bool:
        """Whether every query sees the same keys."""
        return False

    @property
    def by_head(self) -> bool:
        """Whether heads may differ."""
        return False


@dataclass(frozen=True, eq=False, repr=False)
class MovedMask(BoundMask):
    """A mask of which this is a part, so far from the first of the whole."""

    mask: BoundMask
    q: int | Int[Array, "*#b"]
    k: int | Int[Array, "*#b"]
    head: int | Int[Array, "*#b"]
    batch: tuple[int | Int[Array, ""], ...]

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        return self.mask.allows(place.moved(Shift(self.q, self.k, self.head, self.batch)))

    moved = Value.moved

    @property
    def by_head(self) -> bool:
        return self.mask.by_head


def _parts(cls: Any, mask: Any) -> tuple[Any, ...]:
    return mask.masks if isinstance(mask, cls) else (mask,)


def _met(masks: tuple[BoundMask, ...], mask: BoundMask) -> tuple[BoundMask, ...]:
    """`masks`, and `mask` as a part of one of them if it can be."""
    if isinstance(mask, Everything):
        return masks
    for i, other in enumerate(masks):
        if (both := other.met(mask)) is not None:
            return (*masks[:i], both, *masks[i + 1 :])
    return (*masks, mask)


@dataclass(frozen=True, eq=False, repr=False)
class And(Mask):
    """What every one of `masks` allows. Written `a & b`."""

    masks: tuple[Mask, ...]

    def __repr__(self) -> str:
        return " & ".join(
            f"({mask!r})" if isinstance(mask, Or) else repr(mask) for mask in self.masks
        )

    def resolve(self, frame: Frame) -> BoundMask:
        """Flat, with what can be one mask as one, as bands can."""
        resolved = [part for mask in self.masks for part in _parts(BoundAnd, mask.resolve(frame))]
        masks = functools.reduce(_met, resolved, ())
        return BoundAnd(masks) if len(masks) > 1 else masks[0] if masks else EVERYTHING


@dataclass(frozen=True, eq=False, repr=False)
class BoundAnd(BoundMask):
    """An `And` of several."""

    masks: tuple[BoundMask, ...]

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        every = None
        for mask in self.masks:
            allowed = mask.allows(place)
            if allowed is not None:
                every = allowed if every is None else every & allowed
        return every

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        firsts, stops = zip(*(mask.limits(rows, s) for mask in self.masks), strict=True)
        return min(max(firsts), min(stops)), min(stops)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first, stop = 0, s
        for mask in self.masks:
            its_first, its_stop = mask.needs(rows, s)
            first, stop = larger(first, its_first), smaller(stop, its_stop)
        return smaller(first, stop), stop

    def covers(self, rows: Span, keys: Span) -> bool:
        return all(mask.covers(rows, keys) for mask in self.masks)

    @property
    def by_head(self) -> bool:
        return any(mask.by_head for mask in self.masks)

    @property
    def exact(self) -> bool:
        """A band cut at one key for all rows is one; two other rules may pass by each other."""
        return sum(not mask.same_for_rows for mask in self.masks) <= 1 and all(
            mask.exact for mask in self.masks
        )


@dataclass(frozen=True, eq=False, repr=False)
class Or(Mask):
    """What any one of `masks` allows. Written `a | b`."""

    masks: tuple[Mask, ...]

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.masks))

    def resolve(self, frame: Frame) -> BoundMask:
        masks = [part for mask in self.masks for part in _parts(BoundOr, mask.resolve(frame))]
        some = any(isinstance(mask, Everything) for mask in masks)
        return EVERYTHING if some else BoundOr(tuple(masks))


@dataclass(frozen=True, eq=False, repr=False)
class BoundOr(BoundMask):
    """An `Or` in which no mask allows everything."""

    masks: tuple[BoundMask, ...]

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        some = None
        for mask in self.masks:
            allowed = mask.allows(place)
            if allowed is None:
                return None
            some = allowed if some is None else some | allowed
        return some

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        ranges = [mask.limits(rows, s) for mask in self.masks]
        ranges = [(first, stop) for first, stop in ranges if first < stop] or [(0, 0)]
        return min(first for first, _ in ranges), max(stop for _, stop in ranges)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first, stop = s, 0
        for mask in self.masks:
            its_first, its_stop = mask.needs(rows, s)
            is_known = isinstance(its_first, int) and isinstance(its_stop, int)
            if is_known and its_first >= its_stop:
                continue
            if not is_known:  # an empty range has no place
                its_first = jnp.where(its_first < its_stop, its_first, s)
            first, stop = smaller(first, its_first), larger(stop, its_stop)
        return smaller(first, stop), stop

    def covers(self, rows: Span, keys: Span) -> bool:
        return any(mask.covers(rows, keys) for mask in self.masks)

    @property
    def by_head(self) -> bool:
        return any(mask.by_head for mask in self.masks)


@dataclass(frozen=True, eq=False, repr=False)
class Not(Mask):
    """What `mask` does not allow. Written `~a`."""

    mask: Mask

    def __repr__(self) -> str:
        return f"~({self.mask!r})" if isinstance(self.mask, And | Or) else f"~{self.mask!r}"

    def resolve(self, frame: Frame) -> BoundMask:
        mask = self.mask.resolve(frame)
        return mask.mask if isinstance(mask, BoundNot) else BoundNot(mask)


@dataclass(frozen=True, eq=False, repr=False)
class BoundNot(BoundMask):
    """A `Not` of what is none."""

    mask: BoundMask

    moved = Value.moved

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        allowed = self.mask.allows(place)
        # Mosaic's `not` knows no booleans.
        return jnp.zeros((1, 1), bool) if allowed is None else allowed ^ True

    @property
    def by_head(self) -> bool:
        return self.mask.by_head


@dataclass(frozen=True, repr=False)
class Everything(BoundMask):
    """Every query sees every key."""

    def __repr__(self) -> str:
        return "EVERYTHING"

    moved = Value.moved

    def allows(self, place: Place) -> None:
        return None

    def covers(self, rows: Span, keys: Span) -> bool:
        return True

    def count(self, place: Place) -> Int[Array, " s"]:
        return jnp.full(place.keys.size, place.rows.size, INDEX)

    @property
    def exact(self) -> bool:
        return True


EVERYTHING = Everything()


def check_mask(mask: object) -> Mask:
    if isinstance(mask, Mask):
        return mask
    if hasattr(mask, "shape"):
        raise TypeError(
            f"a mask is a value such as Causal() or Window(left=128), got {show(mask)}; wrap the "
            f"array: Dense(array), with booleans that are True where a query may see a key"
        )
    if callable(mask):
        raise TypeError(
            f"a mask is a value such as Causal() or Window(left=128), got the function {mask!r}; "
            f"wrap it: Where(function), which is True where a query may see a key"
        )
    raise TypeError(
        f"a mask is a value such as Causal(), Window(left=128), Segments(ids) or EVERYTHING, got "
        f"{mask!r}"
    )

"""The mask algebra: what a mask has to answer, and how masks combine."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import INDEX, Index, larger, smaller
from jaxattn._value import Place, Sizes, Span, Value, show


class Mask(Value):
    """Which keys each query may see. Masks combine with `&`, `|` and `~`."""

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

    def resolve(self, sizes: Sizes) -> "Mask":
        """This mask with every default made explicit, checked against the sizes it has to fit."""
        del sizes
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

    def count(self, place: Place) -> Int[Array, " s"] | None:
        """How many queries of a tile see each of its keys; None where only `allows` can tell."""
        del place
        return None

    @property
    def exact(self) -> bool:
        """Whether the rows of a block, together, see every key of the range that `needs` gives."""
        return False

    @property
    def same_for_rows(self) -> bool:
        """Whether every query sees the same keys."""
        return False

    @property
    def by_head(self) -> bool:
        """Whether heads may differ."""
        return False


def _parts(cls: Any, mask: Any) -> tuple[Mask, ...]:
    return mask.masks if isinstance(mask, cls) else (mask,)


@dataclass(frozen=True, eq=False, repr=False)
class And(Mask):
    """What every one of `masks` allows. Written `a & b`."""

    masks: tuple[Mask, ...]

    def __repr__(self) -> str:
        return " & ".join(
            f"({mask!r})" if isinstance(mask, Or) else repr(mask) for mask in self.masks
        )

    def resolve(self, sizes: Sizes) -> Mask:
        """Flat, with all its bands as one."""
        resolved = [part for mask in self.masks for part in _parts(And, mask.resolve(sizes))]
        band, rest = None, []
        for mask in resolved:
            if not isinstance(mask, Band):
                rest.append(mask)
            else:
                band = mask if band is None else band.meet(mask)
        masks = [mask for mask in rest if not isinstance(mask, Everything)]
        masks = masks if band is None else [band, *masks]
        return And(tuple(masks)) if len(masks) > 1 else masks[0] if masks else EVERYTHING

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

    def resolve(self, sizes: Sizes) -> Mask:
        masks = [part for mask in self.masks for part in _parts(Or, mask.resolve(sizes))]
        return EVERYTHING if any(isinstance(m, Everything) for m in masks) else Or(tuple(masks))

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

    @property
    def by_head(self) -> bool:
        return any(mask.by_head for mask in self.masks)


@dataclass(frozen=True, eq=False, repr=False)
class Not(Mask):
    """What `mask` does not allow. Written `~a`."""

    mask: Mask

    def __repr__(self) -> str:
        return f"~({self.mask!r})" if isinstance(self.mask, And | Or) else f"~{self.mask!r}"

    def resolve(self, sizes: Sizes) -> Mask:
        mask = self.mask.resolve(sizes)
        return mask.mask if isinstance(mask, Not) else Not(mask)

    def allows(self, place: Place) -> Bool[Array, "#a #b"]:
        allowed = self.mask.allows(place)
        return jnp.zeros((1, 1), bool) if allowed is None else ~allowed

    @property
    def by_head(self) -> bool:
        return self.mask.by_head


@dataclass(frozen=True, repr=False)
class Everything(Mask):
    """Every query sees every key."""

    def __repr__(self) -> str:
        return "EVERYTHING"

    def allows(self, place: Place) -> None:
        return None

    def count(self, place: Place) -> Int[Array, " s"]:
        return jnp.full(place.keys.size, place.rows.size, INDEX)

    @property
    def exact(self) -> bool:
        return True


EVERYTHING = Everything()


@dataclass(frozen=True, eq=False, repr=False)
class Band(Mask):
    """Query i sees keys i + low to i + high, both inclusive; None for no bound on that side.

    What `Causal` and `Window` resolve to.
    """

    AXES: ClassVar = {"low": "", "high": ""}

    low: Any
    high: Any

    def meet(self, other: "Band") -> "Band":
        both = lambda choose, a, b: b if a is None else a if b is None else choose(a, b)
        return Band(both(larger, self.low, other.low), both(smaller, self.high, other.high))

    def allows(self, place: Place) -> Bool[Array, "#a #b"] | None:
        ahead = place.k - place.q
        high = None if self.high is None else ahead <= self.high
        low = None if self.low is None else self.low <= ahead
        return low if high is None else high if low is None else low & high

    def count(self, place: Place) -> Int[Array, " s"]:
        keys, first, last = place.keys.positions(), place.rows.start, place.rows.start
        last = last + place.rows.size - 1
        from_, to = first, last
        if self.high is not None:
            from_ = jnp.maximum(keys - self.high, first)
        if self.low is not None:
            to = jnp.minimum(keys - self.low, last)
        return jnp.broadcast_to(jnp.maximum(to - from_ + 1, 0), keys.shape)

    def limits(self, rows: Span, s: int) -> Any:
        known = all(bound is None or isinstance(bound, int) for bound in (self.low, self.high))
        return self.needs(rows, s) if known else (0, s)

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        first = 0 if self.low is None else clip(rows.start + self.low, s)
        stop = s if self.high is None else clip(rows.start + rows.size + self.high, s)
        if self.low is not None and self.high is not None:
            if isinstance(self.low, int) and isinstance(self.high, int):
                stop = stop if self.low <= self.high else first
            else:
                stop = jnp.where(self.low <= self.high, stop, first)
        return smaller(first, stop), stop

    @property
    def exact(self) -> bool:
        return True


def clip(value: Any, s: int) -> Index:
    return smaller(larger(value, 0), s)


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

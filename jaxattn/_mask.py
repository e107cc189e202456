"""The mask algebra: what a mask has to answer, how masks combine, how they become pytrees.

A mask is a pytree. Python numbers in it belong to its structure: a new number compiles anew. Arrays
in it are leaves: they may be traced, mapped and changed at no cost.
"""

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxattn._axes import Index, larger, smaller


class Align(Enum):
    """Where a diagonal ends when there are more keys than queries, or fewer."""

    END = "the last query sees the last key"

    def __repr__(self) -> str:
        return self.name


END = Align.END


class Span(NamedTuple):
    """`size` consecutive positions from `start`."""

    start: Index
    size: int

    def positions(self) -> Int[Array, " size"]:
        return self.start + jnp.arange(self.size)


class Sizes(NamedTuple):
    """The axes that a mask has to fit."""

    batch: tuple[int, ...]
    h: int
    t: int
    s: int


def _names(mask: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(mask)]


def _values(mask: Any) -> list[Any]:
    return [getattr(mask, name) for name in _names(mask)]


def _flatten(mask: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Numbers and None are structure, all else is a leaf, marked by None in the structure."""
    values = _values(mask)
    fixed = [value is None or isinstance(value, int | Align) for value in values]
    leaves = tuple(value for value, is_fixed in zip(values, fixed, strict=True) if not is_fixed)
    return leaves, tuple(
        (x,) if is_fixed else None for x, is_fixed in zip(values, fixed, strict=True)
    )


def _unflatten(cls: Any, structure: tuple[Any, ...], leaves: Any) -> Any:
    """The inverse of `_flatten`. Checks nothing: JAX puts objects of its own in a leaf's place."""
    rest = iter(leaves)
    mask = object.__new__(cls)
    for name, fixed in zip(_names(cls), structure, strict=True):
        object.__setattr__(mask, name, next(rest) if fixed is None else fixed[0])
    return mask


def _show(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


class Mask:
    """Which keys each query may see. Masks combine with `&`."""

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(
            cls, _flatten, lambda aux, leaves: _unflatten(cls, aux, leaves)
        )

    def __and__(self, other: "Mask") -> "Mask":
        mine = self.masks if isinstance(self, And) else (self,)
        theirs = other.masks if isinstance(other, And) else (check_mask(other),)
        return And(mine + theirs)

    def __repr__(self) -> str:
        """As it would be written, with arrays by dtype and shape."""
        fields = zip(_names(self), _values(self), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={_show(x)}' for name, x in fields)})"

    def resolve(self, sizes: Sizes) -> "Mask":
        """This mask with every default made explicit, checked against the sizes it has to fit."""
        del sizes
        return self

    def head(self, batch: tuple[Index, ...], head: Index) -> "Mask":
        """The mask of one head of one batch element."""
        del batch, head
        return self

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "#t #s"] | None:
        """Which pairs of one head's tile are allowed; None for all."""
        raise NotImplementedError(f"{type(self).__name__}.allows")

    def limits(self, rows: Span, s: int) -> tuple[int, int]:
        """A range [first, stop) of keys, known while tracing, outside which `rows` see nothing."""
        del rows
        return 0, s

    def needs(self, rows: Span, s: int) -> tuple[Index, Index]:
        """The range [first, stop) of keys that `rows` of one head can need; may be traced."""
        return self.limits(rows, s)


@dataclass(frozen=True, eq=False, repr=False)
class And(Mask):
    """What every one of `masks` allows. Written `a & b`."""

    masks: tuple[Mask, ...]

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.masks))

    def resolve(self, sizes: Sizes) -> "And":
        return And(tuple(mask.resolve(sizes) for mask in self.masks))

    def head(self, batch: tuple[Index, ...], head: Index) -> "And":
        return And(tuple(mask.head(batch, head) for mask in self.masks))

    def allows(self, rows: Span, keys: Span) -> Bool[Array, "#t #s"] | None:
        every = None
        for mask in self.masks:
            allowed = mask.allows(rows, keys)
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


def check_mask(mask: object) -> Mask:
    if isinstance(mask, Mask):
        return mask
    if hasattr(mask, "shape"):
        raise TypeError(
            f"a mask is a value such as Causal() or Window(left=128), got {_show(mask)}; wrap the "
            f"array: Dense(array), with booleans that are True where a query may see a key"
        )
    raise TypeError(
        f"a mask is a value such as Causal(), Window(left=128), Segments(ids) or EVERYTHING, got "
        f"{mask!r}"
    )

"""Offsets: where the queries are among the keys."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxattn._batched import add_clipped, check_numbers
from jaxattn._value import Sizes, Value, change_fields


class Align(Enum):
    """Where a diagonal ends when there are more keys than queries, or fewer."""

    END = "the last query sees the last key"

    def __repr__(self) -> str:
        return self.name


END = Align.END

Offset: TypeAlias = Any  # a number, END, integers [*b], or None

FARTHEST = 2**30


def resolve_offset(name: str, offset: Offset, sizes: Sizes) -> Any:
    """An int, or indices that broadcast to [*b]."""
    if offset is END:
        ahead = sizes.s - sizes.t
        if isinstance(ahead, int):
            return ahead
        offset = jnp.asarray(ahead)  # of lengths that are open in an exported function
    if offset is None and sizes.t != sizes.s:
        raise ValueError(
            f"{name} needs an offset when t != s, got t={sizes.t} queries and s={sizes.s} keys; "
            f"choose offset=0, where the first query meets the first key, or offset=END, where the "
            f"last query meets the last key"
        )
    return check_numbers(0 if offset is None else offset, f"{name}.offset", sizes)


def resolve_distance(name: str, offset: Offset, sizes: Sizes) -> Any:
    """An offset that is added to positions: within a range in which sums of them are indices.

    Raises:
      ValueError: it is known not to be.
    """
    resolved = resolve_offset(name, offset, sizes)
    known = np.asarray(offset) if isinstance(offset, int | np.ndarray | np.generic) else np.zeros(1)
    if known.size and not -FARTHEST <= known.min() <= known.max() <= FARTHEST:
        raise ValueError(
            f"{name}.offset is a number of positions up to {FARTHEST:,} either way, got {offset}; "
            f"leave out what queries and keys have in common"
        )
    return add_clipped(resolved, 0, -FARTHEST, FARTHEST)


def fill_offsets(
    value: Any, fill: Callable[[Any], Any], wrap: Callable[[Any], Any] = lambda function: function
) -> Any:
    """`value` with fill(part) for every part of it whose offset is left out, or END.

    value: a mask, score or observation, or a sequence or mapping of them; all else stays as it is.
    wrap: what is done to functions of a pair.
    """
    again = lambda x: fill_offsets(x, fill, wrap)
    if isinstance(value, Mapping):
        return {name: again(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(again, value))
    if isinstance(value, Value):
        offset = getattr(value, "offset", 0)
        left_out = offset is None or offset is END
        return fill(value) if left_out else change_fields(value, again)
    return wrap(value) if callable(value) and not isinstance(value, type) else value

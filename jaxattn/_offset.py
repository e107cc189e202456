"""Offsets: where the queries are among the keys."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxattn._batched import check_integers
from jaxattn._value import Sizes, Value, change_fields


class Align(Enum):
    """Where a diagonal ends when there are more keys than queries, or fewer."""

    END = "the last query sees the last key"

    def __repr__(self) -> str:
        return self.name


END = Align.END

Offset: TypeAlias = Any  # a number, END, integers [*b], or None


def resolve_offset(name: str, offset: Offset, sizes: Sizes) -> Any:
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
    return check_integers(0 if offset is None else offset, f"{name}.offset", sizes)


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

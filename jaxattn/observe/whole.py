"""Whole numbers that observations are given: positions, and how many."""

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


def is_whole(x: Any) -> bool:
    """Whether x is an integer of Python or NumPy; a boolean is none."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def whole(x: Any) -> Any:
    """A Python integer for one of NumPy; all else as it is."""
    return int(x) if is_whole(x) else x


def positions(x: Any, name: str, length: int) -> Int[Array, " n"]:
    """Positions as int32, with -1 for one that is not among the first `length`.

    Raises:
      TypeError: they are not integers.
      ValueError: they have more than one axis.
    """
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.size == 0 and not isinstance(x, jax.Array):
        array = array.astype(np.int32)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{name} takes positions, integers [n], got {array.dtype} {array.shape}; for booleans "
            f"pass np.flatnonzero of them"
        )
    if array.ndim > 1:
        raise ValueError(f"{name} takes positions along one axis, got shape {array.shape}")
    if array.dtype.itemsize < 4:  # `length` may be more than it holds
        array = array.astype(np.int32)
    where = jnp.where if isinstance(array, jax.Array) else np.where
    inside = (array >= 0) & (array < length)
    return jnp.atleast_1d(jnp.asarray(where(inside, array, -1).astype(np.int32)))

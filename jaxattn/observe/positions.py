"""Positions that observations are given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


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

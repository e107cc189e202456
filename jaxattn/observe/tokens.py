"""Tokens that observations are given: by their place in the array of queries or keys."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxattn._axes import INDEX
from jaxattn._batched import MOST, as_indices, uncut


def tokens(x: Any, name: str, length: int) -> Int[Array, " n"]:
    """Tokens as indices; one that is not among the first `length` stays outside them.

    Raises:
      TypeError: they are not integers.
      ValueError: they have more than one axis.
    """
    array = np.asarray(x) if isinstance(x, int | np.generic) else uncut(x, name)
    if array.size == 0 and isinstance(array, np.ndarray):
        array = array.astype(INDEX)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{name} takes tokens, integers [n], got {array.dtype} {array.shape}; for booleans "
            f"pass np.flatnonzero of them"
        )
    if array.ndim > 1:
        raise ValueError(f"{name} takes tokens along one axis, got shape {array.shape}")
    high = length if isinstance(length, int) else MOST  # open in an exported function
    return jnp.atleast_1d(as_indices(array, -1, high))

"""Arrays that belong to a batch: checked against it, and given all of its axes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._value import Sizes, as_array


def check_integers(value: Any, name: str, sizes: Sizes, axes: str = "") -> Any:
    """`value` as integers [*b axes]; None and a Python number pass as they are.

    The batch axes broadcast, those of `axes` ("t", "s") have to be there.
    """
    if not axes and (value is None or isinstance(value, int)):
        return value
    array = as_array(value, name)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} holds integers, got {array.dtype} {array.shape}; cast it first")
    core = tuple(getattr(sizes, axis) for axis in axes)
    if core and array.shape[-1:] != core:
        raise ValueError(
            f"{name} must have one number for each position, {core[0]} of them, on its last axis, "
            f"got shape {array.shape}; pass [*b {core[0]}]"
        )
    return fit(array, name, sizes, axes)


def fit(array: Array, name: str, sizes: Sizes, axes: str) -> Array:
    """`array` with the batch axes and `axes`, those that it lacks of size 1. "." is any length.

    Raises:
      ValueError: an axis has neither its full size nor 1.
    """
    own = dict(zip(reversed(axes), reversed(array.shape), strict=False))
    core = (own["."] if axis == "." else getattr(sizes, axis) for axis in axes)
    full = (*sizes.batch, *core)
    extra = len(full) - array.ndim
    if extra < 0 or any(a not in (1, b) for a, b in zip(array.shape, full[extra:], strict=True)):
        raise ValueError(
            f"{name} must broadcast to [{' '.join(('*b', *axes))}] = {list(full)}, got shape "
            f"{array.shape}; give each axis its full size or 1"
        )
    return array.reshape((1,) * extra + array.shape)

"""Arrays that belong to a batch: checked against it, and given all of its axes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxattn._axes import INDEX, AnyArray
from jaxattn._content import as_array
from jaxattn._value import Sizes

LEAST, MOST = int(np.iinfo(INDEX).min), int(np.iinfo(INDEX).max)


def check_numbers(
    value: Any, name: str, sizes: Sizes, low: int | None = None, high: int | None = None
) -> Any:
    """A number for each element of the batch: an int where it is one for all and known while
    tracing, else indices that broadcast to [*b]; None passes as it is.

    low, high: what the numbers are clipped to, where those beyond mean the same.
    """
    if value is None:
        return None
    high = high if isinstance(high, int) else None  # open in an exported function
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        value = int(value) if low is None else max(int(value), low)
        return value if high is None else min(value, high)
    array = integers(value, name)
    low, high = LEAST if low is None else low, MOST if high is None else high
    return fit(as_indices(array, low, high), name, sizes, "")


def check_each(value: Any, name: str, sizes: Sizes, axis: str) -> Any:
    """Integers [*b axis] of any dtype, for axis "t" or "s"; the batch axes broadcast."""
    array = integers(value, name)
    size = sizes.along(axis, array.shape[-1] if array.ndim else 1)
    if array.shape[-1:] != (size,):
        raise ValueError(
            f"{name} must have one number for each position, {size} of them, on its last axis, "
            f"got shape {array.shape}; pass [*b {size}]"
        )
    return fit(array, name, sizes, axis)


def uncut(value: Any, name: str) -> Any:
    """`value` as an array: one of NumPy as it is, for JAX would cut off integers beyond its own."""
    if isinstance(value, list | tuple) and all(isinstance(x, int) for x in value):
        value = np.asarray(value)
    return value if isinstance(value, np.ndarray) else as_array(value, name)


def integers(value: Any, name: str) -> Any:
    """
    Raises:
      TypeError: they are none.
    """
    array = uncut(value, name)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} holds integers, got {array.dtype} {array.shape}; cast it first")
    return array


def are_indices(array: Any) -> bool:
    """Whether all of an array of integers fits into indices, as far as that is known."""
    own = jnp.iinfo(array.dtype)
    if own.min >= LEAST and own.max <= MOST:
        return True
    if not isinstance(array, np.ndarray):
        return False
    return not array.size or (int(array.min()) >= LEAST and int(array.max()) <= MOST)


def as_indices(array: Any, low: int = LEAST, high: int = MOST) -> Array:
    """An array of any integer dtype clipped to `low` and `high`, before it becomes indices."""
    xp: Any = np if isinstance(array, np.ndarray | np.generic) else jnp
    own = jnp.iinfo(array.dtype)
    if low > own.min or high < own.max:  # nothing to do is nothing to compile
        array = xp.clip(array, xp.array(max(low, own.min), array.dtype), min(high, own.max))
    return jnp.asarray(array.astype(INDEX))


def add_clipped(value: Any, shift: int, low: int, high: int) -> Any:
    """value + shift, clipped to `low` and `high`, where value + shift itself may not fit an index.

    value: an int or indices. shift: any int at all. A bound that is open in an exported function
    is none.
    """
    low, high = low if isinstance(low, int) else LEAST, high if isinstance(high, int) else MOST
    if isinstance(value, int):
        return min(max(value + shift, low), high)
    least, most = (min(max(bound - shift, LEAST), MOST) for bound in (low, high))
    clipped = jnp.clip(value, least, most)
    # One of the two bounds may not have fitted; the other one then says how far it is from `value`.
    return clipped - least + low if shift <= 0 else clipped - most + high


def fit(array: AnyArray, name: str, sizes: Sizes, axes: str) -> Any:
    """`array` with the batch axes and `axes`, those that it lacks of size 1. "." is any length.

    Raises:
      ValueError: an axis has neither its full size nor 1.
    """
    own = dict(zip(reversed(axes), reversed(array.shape), strict=False))
    along = lambda axis: sizes.along(axis, own.get(axis, 1), own.get("t", 1))
    core = (own["."] if axis == "." else along(axis) for axis in axes)
    full = (*sizes.batch, *core)
    if not broadcasts(array.shape, full):
        raise ValueError(
            f"{name} must broadcast to [{' '.join(('*b', *axes))}] = {list(full)}, got shape "
            f"{array.shape}; give each axis its full size or 1"
        )
    return array.reshape((1,) * (len(full) - array.ndim) + array.shape)


def broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `full`: each of its last axes is full or 1."""
    extra = len(full) - len(shape)
    return extra >= 0 and all(a in (1, b) for a, b in zip(shape, full[extra:], strict=True))

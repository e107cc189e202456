"""Settings of any kind: whether two have the same content, and what is a number or an array."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def show(value: Any) -> str:
    """Arrays by dtype and shape, all else as it is written."""
    if is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def same(a: Any, b: Any) -> bool:
    """Whether two settings have the same content.

    Arrays have if their dtype, shape and bytes are the same (so NaN is NaN), traced ones only if
    they are one; functions if they are one; all else if its own equality and hash say so.
    """
    if a is b:
        return True
    if is_array(a) or is_array(b):
        return is_known(a) and is_known(b) and _kind(a) == _kind(b) and _bytes(a) == _bytes(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float):
        return a.hex() == b.hex()
    try:
        return hash(a) == hash(b) and bool(a == b)
    except (TypeError, ValueError):  # without a hash, or with arrays inside
        return False


def hash_of(x: Any) -> int:
    """A hash that agrees with `same`. Reads no array, so that it waits for no device."""
    if is_array(x):
        return hash((x.dtype, tuple(x.shape)))
    if isinstance(x, list | tuple):
        return hash(tuple(map(hash_of, x)))
    if isinstance(x, Mapping):
        return hash(frozenset(x))
    if isinstance(x, float):
        return hash(x.hex())  # that of NaN is another one for each object
    try:
        return hash(x)
    except TypeError:
        return hash(type(x))


def as_array(x: Any, name: str) -> Array:
    """x as an array of JAX's.

    Raises:
      TypeError: there is none of it.
    """
    if not isinstance(x, str | bytes):  # of which JAX tries to make numbers
        with suppress(TypeError, ValueError, OverflowError):
            return jnp.asarray(x)
    raise TypeError(
        f"{name} is an array of numbers, got {x!r}, a {type(x).__name__}; pass an array of JAX or "
        f"NumPy"
    )


def as_int(x: Any) -> Any:
    """A Python integer in place of a NumPy one; all else as it is."""
    return int(x) if isinstance(x, np.integer) else x


def is_whole(x: Any) -> bool:
    """Whether x is an integer of Python or NumPy; a boolean is none."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def is_real(dtype: Any) -> bool:
    """Whether numbers of `dtype` are real: neither booleans, nor complex, nor keys."""
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_plain(x: Any) -> bool:
    """Whether x is a number, or an array of them, that can be read now."""
    return isinstance(x, int | float) or is_known(x)


def is_known(x: Any) -> bool:
    """Whether x is an array whose numbers can be read now."""
    if isinstance(x, Tracer) or not isinstance(x, np.ndarray | np.generic | jax.Array):
        return False
    if isinstance(x, jax.Array):
        return x.is_fully_addressable and not x.is_deleted()
    return x.dtype != object


def _kind(x: Any) -> Any:
    return x.dtype, x.shape, getattr(x, "weak_type", False)


def _bytes(x: Any) -> bytes:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():  # also while tracing
            x = jax.random.key_data(x)
    return np.asarray(x).tobytes()

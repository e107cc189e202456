"""Arrays that belong to a batch: checked against it, and read one part at a time."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._axes import Index


def check_integers(
    value: Any, name: str, batch: tuple[int, ...], core: tuple[int, ...] = ()
) -> Any:
    """`value` as integers that broadcast over the batch, with axes `core` last.

    None and a Python number, which holds for the whole batch, pass as they are.
    """
    if value is None or (isinstance(value, int) and not core):
        return value
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} holds integers, got {array.dtype} {array.shape}; cast it first")
    if core and array.shape[-1:] != core:
        raise ValueError(
            f"{name} must have one id for each position, {core[0]} of them, on its last axis, got "
            f"shape {array.shape}; pass [*b {core[0]}]"
        )
    check_broadcast(array.shape[: array.ndim - len(core)], name, batch, "the batch [*b]")
    return array


def check_broadcast(shape: tuple[int, ...], name: str, full: tuple[int, ...], axes: str) -> None:
    extra = len(shape) - len(full)
    if extra > 0 or any(a not in (1, b) for a, b in zip(shape, full[-extra:], strict=True)):
        raise ValueError(
            f"{name} must broadcast to {axes} = {list(full)}, got shape {shape}; give each axis "
            f"its full size or 1"
        )


def pick(array: Any, core: int, index: tuple[Index, ...]) -> Any:
    """The part of `array` at `index` of all but its last `core` axes; an axis of 1 broadcasts."""
    if array is None or isinstance(array, int) or array.ndim == core:
        return array
    lead = array.ndim - core
    kept = array.shape[lead:]
    index = index[len(index) - lead :]
    starts = [0 if size == 1 else i for size, i in zip(array.shape[:lead], index, strict=True)]
    part = jax.lax.dynamic_slice(array, (*starts, *(0,) * core), (*(1,) * lead, *kept))
    return part.reshape(kept)

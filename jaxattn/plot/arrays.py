"""What is given, as NumPy reads it, and the errors of its shape."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np

Numbers: TypeAlias = jax.Array | np.ndarray


def numbers(given: Numbers) -> np.ndarray:
    """As floats that matplotlib knows: float32 and float64 as they are."""
    array = np.asarray(given)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(float if array.dtype.kind in "biu" else np.float32)


def shaped(given: Numbers, name: str, axes: str, remedy: str) -> np.ndarray:
    """`numbers(given)`, which must have as many axes as `axes` names, none of them empty.

    Raises:
      ValueError: it has not; it says the rule, the shape that came, and the remedy.
    """
    array = numbers(given)
    if array.ndim != len(axes.split()) or 0 in array.shape:
        raise ValueError(
            f"{name} must be [{axes}], none of them 0, got shape {array.shape}; {remedy}"
        )
    return array


Tokens: TypeAlias = Sequence[str] | int
"""Tokens, or how many there are."""


COUNT = (int, np.integer)
"""The types that say how many there are."""


def counted(names: Tokens) -> int:
    """How many tokens there are."""
    return int(names) if isinstance(names, COUNT) else len(names)

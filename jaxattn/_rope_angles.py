"""Angles that do not lose precision as positions grow.

A frequency is held as a number of steps of 2⁻³² turns: whole ones, and the rest. The position
times the whole steps is a product of integers, whose overflow drops full turns and nothing else.
Times the rest, which is below 1, it is small enough for float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

STEPS = 2.0**32
"""In a turn."""


def angles_of(positions: Integer[Array, "*#b t"], frequencies: Any) -> Float[Array, "... t f"]:
    """Position times frequency in radians, modulo a turn: from -π to π, in float32.

    Args:
      positions: from -2³¹ to 2³¹ - 1.
      frequencies: in radians per position, NumPy's or JAX's, broadcast to [*b t f].
    """
    whole, rest = _steps(frequencies)
    p = positions[..., None]
    part = (p.astype(jnp.float32) * rest).astype(jnp.int32)
    steps = p.astype(jnp.uint32) * whole + part.astype(jnp.uint32)
    signed = jax.lax.bitcast_convert_type(steps, jnp.int32)
    return signed.astype(jnp.float32) * np.float32(2 * math.pi / STEPS)


def _steps(frequencies: Any) -> tuple[Any, Any]:
    xp = np if isinstance(frequencies, np.ndarray) else jnp
    steps = (frequencies / (2 * math.pi)) % 1 * STEPS
    whole = xp.floor(steps)
    return whole.astype(xp.uint32), (steps - whole).astype(xp.float32)

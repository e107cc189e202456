"""NaN, Inf and huge numbers reach no query that may not see them: with what that is done.

A weight of 0 does not stop them: 0 · NaN and 0 · Inf are NaN, in results and in derivatives. So
products run on finite numbers, a hidden pair counts as 0 wherever it could have overflowed, and NaN
is put in where it is seen.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def finite(x: Array) -> Array:
    """x with 0 in place of NaN and Inf."""
    return jnp.where(jnp.isfinite(x), x, 0)


def nan_unless_finite(x: Array) -> Array:
    """x with NaN in place of Inf, so that one rule holds for both."""
    return jnp.where(jnp.isfinite(x), x, jnp.nan)


def hide(x: Array, allowed: Bool[Array, "..."] | None) -> Array:
    """0 for a hidden pair, whose logit may have overflowed: 0 times its derivative is NaN."""
    return x if allowed is None else jnp.where(allowed, x, 0)


def rows_not_finite(x: Array) -> Bool[Array, " r"]:
    """Whether there is a NaN or Inf in each row of x [r d]."""
    return ~jnp.isfinite(x).all(axis=1)


# Products and sums of numbers up to here are far from overflowing: a weight of 0 makes 0 of them.
USUAL = 2.0**50


def all_usual(*arrays: Array) -> Bool[Array, ""]:
    """Whether there is nothing but usual numbers in arrays; under `jax.vmap`, in any element of
    them, so that what branches on it remains a branch."""
    return _everywhere(jnp.stack([(jnp.abs(x) <= USUAL).all() for x in arrays]).all())


@jax.custom_batching.custom_vmap
def _everywhere(x: Bool[Array, ""]) -> Bool[Array, ""]:
    return x


@_everywhere.def_vmap
def _(axis_size: int, in_batched: list[bool], x: Bool[Array, " n"]) -> tuple[Bool[Array, ""], bool]:
    del axis_size, in_batched
    return _everywhere(x.all(axis=0)), False

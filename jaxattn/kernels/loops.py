"""Loops over blocks and tiles that cost nothing where there is one of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._axes import Index

NOTHING = jax.checkpoint_policies.nothing_saveable


def by_width(
    widths: tuple[int, ...], needed: Index, nothing: Callable[[], Any], visit: Callable[[int], Any]
) -> Any:
    """`visit` at the least width that holds the next `needed` keys; `nothing` if there are none.

    widths: multiples of the first, or less for the last.
    """
    if isinstance(needed, int):
        fits = [width for width in widths if width >= needed]
        return visit(fits[0] if fits else widths[-1]) if needed > 0 else nothing()
    index = jnp.clip((needed + widths[0] - 1) // widths[0], 0, len(widths))
    return jax.lax.switch(index, [nothing, *(partial(visit, width) for width in widths)])


def repeat(n: int, step: Callable[[Index, Any], Any], carry: Any, unrolled: bool = False) -> Any:
    if n > 1 and not unrolled:
        return jax.lax.fori_loop(0, n, step, carry)
    for i in range(n):
        carry = step(i, carry)
    return carry


def stack(n: int, step: Callable[[Index], Any]) -> Any:
    """step(0), ..., step(n - 1) on a new leading axis."""
    if n == 1:
        return jax.tree.map(lambda x: x[None], step(0))
    return jax.lax.scan(lambda _, i: (None, step(i)), None, jnp.arange(n))[1]


def sum_over(step: Callable[[Index, Any], Any], xs: Any) -> Any:
    """Σ step(i, xs[i]) over the leading axis."""
    n = len(jax.tree.leaves(xs)[0])
    if n == 1:
        return step(0, jax.tree.map(lambda x: x[0], xs))
    add = lambda total, x: (jax.tree.map(jnp.add, total, step(*x)), None)
    shapes = jax.eval_shape(lambda: step(0, jax.tree.map(lambda x: x[0], xs)))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, (jnp.arange(n), xs))[0]

"""Loops over blocks and tiles that cost nothing where there is one of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._axes import INDEX, Index, count_to

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


def loop(first: Index, stop: Index, step: Callable[[Index, Any], Any], carry: Any) -> Any:
    """`jax.lax.fori_loop` over indices."""
    bound = lambda i: INDEX(i) if isinstance(i, int) else jnp.asarray(i, INDEX)
    return jax.lax.fori_loop(bound(first), bound(stop), step, carry)


def after(x: Array, others: Any) -> Array:
    """x, made once all arrays of `others` are there, so that what it takes to make the two is not
    in memory at one time.

    XLA has dropped its barriers by the time at which it puts the work in order; so x depends on a
    comparison that is never true.
    """
    real = lambda y: y.size and jnp.issubdtype(y.dtype, jnp.floating)
    firsts = [y[(0,) * y.ndim].astype(x.dtype) for y in jax.tree.leaves(others) if real(y)]
    return jnp.where(sum(firsts) < -jnp.inf, 0, x) if firsts else x


def repeat(n: Index, step: Callable[[Index, Any], Any], carry: Any, unrolled: bool = False) -> Any:
    if not unrolled and (not isinstance(n, int) or n > 1):
        return loop(0, n, step, carry)
    for i in range(n):
        carry = step(i, carry)
    return carry


def stack(n: int, step: Callable[[Index], Any]) -> Any:
    """step(0), ..., step(n - 1) on a new leading axis."""
    if n == 1:
        return jax.tree.map(lambda x: x[None], step(0))
    return jax.lax.scan(lambda _, i: (None, step(i)), None, count_to(n))[1]


def sum_over(step: Callable[[Index, Any], Any], xs: Any) -> Any:
    """Σ step(i, xs[i]) over the leading axis."""
    n = len(jax.tree.leaves(xs)[0])
    if n == 1:
        return step(0, jax.tree.map(lambda x: x[0], xs))
    add = lambda total, x: (jax.tree.map(jnp.add, total, step(*x)), None)
    shapes = jax.eval_shape(lambda: step(0, jax.tree.map(lambda x: x[0], xs)))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, (count_to(n), xs))[0]

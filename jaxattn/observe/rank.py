"""The largest of every row, without sorting it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GROUPS = 64  # of a row, that are compared at a time, or four times as many as are wanted
FEW = 16  # are found one after the other, more by XLA's own top_k
LAST = 2**31 - 1


def largest(x: Float[Array, "r n"], count: int) -> tuple[Float[Array, "r k"], Int[Array, "r k"]]:
    """The `count` largest of every row, from the largest down, and where they are; of equal ones
    the first. A place may be beyond n where a number is -inf. Not differentiable.

    They are in the `count` groups of neighbours with the largest maxima, and so on within those.
    """
    wanted = 1 << (count - 1).bit_length()
    groups, size = max(GROUPS, 4 * wanted), 1
    while groups * size < x.shape[1]:
        size *= 2
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)), constant_values=-jnp.inf)
    peaks = x.reshape(len(x), -1, size).max(axis=2)
    places = jnp.broadcast_to(jnp.arange(peaks.shape[1]) * size, peaks.shape)
    best, places = _rank(peaks, places, min(count, peaks.shape[1]))
    while size > 1:
        step = max(size * wanted // groups, 1)
        peaks = _cut(x, places, size).reshape(len(x), -1, step).max(axis=2)
        places = (places[:, :, None] + jnp.arange(0, size, step)).reshape(len(x), -1)
        best, places = _rank(peaks, places, count)
        size = step
    return best, places


def _cut(x: Float[Array, "r n"], firsts: Int[Array, "r k"], size: int) -> Float[Array, "r k size"]:
    """`size` numbers from each of the `firsts` on."""
    one = lambda row, first: jax.lax.dynamic_slice(row, (first,), (size,))
    return jax.vmap(jax.vmap(one, (None, 0)))(x, firsts)


def _rank(
    x: Float[Array, "r n"], places: Int[Array, "r n"], count: int
) -> tuple[Float[Array, "r k"], Int[Array, "r k"]]:
    """The largest and their places, from the largest down; of equal ones the first place."""
    if count > FEW:
        in_order = jnp.argsort(places, axis=1)
        x, places = (jnp.take_along_axis(a, in_order, axis=1) for a in (x, places))
        best, at = jax.lax.top_k(jnp.where(x == 0, 0, x), count)  # which puts 0 before -0
        return best, jnp.take_along_axis(places, at, axis=1)
    places = places.T  # rows last, so that the loops go along them

    def next_one(rest: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = rest.max(axis=0)
        place = jnp.where(rest == best, places, LAST).min(axis=0)
        return jnp.where(places == place, -jnp.inf, rest), (best, place)

    best, found = jax.lax.scan(next_one, x.T, None, length=count)[1]
    return best.T, found.T

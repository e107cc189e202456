"""The axis key, the array types written with it, and what `attend` returns.

    *b batch (any rank)      t query positions      s key positions
    h query heads            n key/value heads      g = h // n, queries per key/value head
    d query/key features     e value features

Arrays without a shape annotation carry their axes in their name: `logits_ts`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxattn._lowering import platform
from jaxattn._serial import serial_tuple

AnyArray: TypeAlias = Array | np.ndarray
"""What a caller may pass as an array. It is one of JAX's as soon as it is checked."""

AnyInteger: TypeAlias = int | np.integer | AnyArray
AnyNumber: TypeAlias = float | np.floating | AnyInteger

Index: TypeAlias = int | Array
"""A position: a Python int where it is known while tracing, else a traced integer scalar."""

INDEX = np.int32
"""The dtype of every index, position, length and id, whatever dtype it came in."""


@serial_tuple
class Attended(NamedTuple):
    """What `attend` returns. All of it is differentiable.

    out: the mixed values, in q's dtype; 0 for a query that may see no key.
    lse: log-sum-exp of the logits of every query, in nats, in the accumulator's dtype (float64
      for float64 inputs, else float32); -inf for a query that may see no key.
    observed: what was asked for with `observe`, by name; empty if nothing was.
    """

    out: Float[Array, "*b t h e"]
    lse: Float[Array, "*b t h"]
    observed: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default is never written to


def accumulator(dtype: Any) -> Any:
    """The dtype of logits, softmax and sums for inputs of `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(a: AnyArray, b: AnyArray) -> Array:
    """`a @ b` in the operands' own precision on every platform (no TF32 for float32).

    Half precision is multiplied as it is and summed in float32, as tensor cores do. A CPU
    multiplies float32 in its own precision anyway, and asking for it costs time in small products.
    """
    acc = accumulator(a.dtype)
    if a.dtype != acc:
        return jnp.matmul(a, b, preferred_element_type=acc)
    exact = None if platform() == "cpu" else jax.lax.Precision.HIGHEST
    return jnp.matmul(a, b, precision=exact)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def count_to(n: int) -> Int[Array, " n"]:
    """0 to n - 1."""
    return jnp.arange(n, dtype=INDEX)


def cut(x: Array, starts: Sequence[Index], sizes: Sequence[int]) -> Array:
    """The slice of x from `starts` on."""
    return jax.lax.dynamic_slice(x, _as_indices(starts), sizes)


def put(whole: Array, part: Array, starts: Sequence[Index]) -> Array:
    """`whole` with `part` from `starts` on."""
    return jax.lax.dynamic_update_slice(whole, part, _as_indices(starts))


def cut_axis(x: Array, start: Index, size: int, axis: int = 0) -> Array:
    """The slice of x along one axis."""
    return cut(x, _along(start, axis, x.ndim), (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def put_axis(whole: Array, part: Array, start: Index, axis: int = 0) -> Array:
    """`whole` with `part` from `start` on along one axis."""
    return put(whole, part, _along(start, axis, whole.ndim))


def _along(start: Index, axis: int, rank: int) -> list[Index]:
    return [start if i == axis else 0 for i in range(rank)]


def _as_indices(starts: Sequence[Index]) -> list[Any]:
    """Of one dtype, as a slice wants them, whatever the loops and masks that they come from had."""
    if all(isinstance(start, int) for start in starts):
        return list(starts)
    return [jnp.asarray(start, INDEX) for start in starts]


def smaller(a: Index, b: Index) -> Index:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def larger(a: Index, b: Index) -> Index:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.maximum(a, b)


def clip(value: Any, s: int) -> Index:
    """From 0 to s."""
    return smaller(larger(value, 0), s)


def true_range(x: Bool[Array, " s"], s: int) -> tuple[Index, Index]:
    """The range [first, stop) from the first to the last True."""
    first = jnp.min(count_to(s), where=x, initial=s)
    stop = jnp.max(count_to(s), where=x, initial=-1) + 1
    return jnp.minimum(first, stop), stop


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_along(x: Array, axis: int) -> Array:
    """The largest along an axis. Its derivative is that of the first of the largest.

    JAX looks for numbers that equal the maximum. It finds none, or another one, where a compiler
    computes them a second time and rounds them differently.
    """
    return x.max(axis)


@max_along.defjvp
def _max_along_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    first = jnp.expand_dims(jnp.argmax(x, axis), axis)
    places = jax.lax.broadcasted_iota(first.dtype, x.shape, axis % x.ndim)
    return max_along(x, axis), jnp.where(places == first, dx, 0).sum(axis)

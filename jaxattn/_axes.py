"""The axis key, the array types written with it, and what `attend` returns.

    *b batch (any rank)      t query positions      s key positions
    h query heads            n key/value heads      g = h // n, queries per key/value head
    d query/key features     e value features

Arrays without a shape annotation carry their axes in their name: `logits_ts`.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._serial import serial_tuple

Index: TypeAlias = int | Array
"""A position: a Python int where it is known while tracing, else a traced integer scalar."""


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


def dot(a: Array, b: Array) -> Array:
    """`a @ b` in the operands' own precision on every platform (no TF32 for float32).

    A CPU multiplies in it anyway, and asking for it there costs time in small products.
    """
    exact = None if jax.default_backend() == "cpu" else jax.lax.Precision.HIGHEST
    return jnp.matmul(a, b, precision=exact)


def smaller(a: Index, b: Index) -> Index:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def larger(a: Index, b: Index) -> Index:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.maximum(a, b)

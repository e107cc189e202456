"""A function whose first result is linear in its last argument: `jax.linear_transpose` works.

It is a primitive that every transformation but the transpose looks through.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jaxattn._lowering import replaced

_linear = Primitive("linear_in_values")
_linear.multiple_results = True


def linear(compute: Callable[..., Any], rest: Any, x: Array) -> Any:
    """compute(rest, x), whose first result is linear in x."""
    leaves, structure = jax.tree.flatten(rest)
    call = lambda *args: compute(jax.tree.unflatten(structure, args[:-1]), args[-1])
    jaxpr, result = jax.make_jaxpr(call, return_shape=True)(*leaves, x)
    return jax.tree.unflatten(jax.tree.structure(result), _linear.bind(*leaves, x, jaxpr=jaxpr))


def _plain(*args: Any, jaxpr: Any) -> list[Any]:
    return jaxpr_as_fun(jaxpr)(*args)


def _jvp(primals: Any, tangents: Any, *, jaxpr: Any) -> tuple[Any, Any]:
    moved = [i for i, x in enumerate(tangents) if type(x) is not ad.Zero]

    def of(*some: Any) -> list[Any]:
        return jaxpr_as_fun(jaxpr)(*replaced(primals, moved, some))

    results, moves = jax.jvp(of, [primals[i] for i in moved], [tangents[i] for i in moved])
    still = lambda dx: dx.dtype == jax.dtypes.float0
    pairs = zip(results, moves, strict=True)
    return results, [
        ad.Zero(jax.typeof(x).to_tangent_aval()) if still(dx) else dx for x, dx in pairs
    ]


def _transpose(cotangents: Any, *args: Any, jaxpr: Any) -> list[Any]:
    *rest, x = args
    first, *others = cotangents
    is_linear = ad.is_undefined_primal
    if any(map(is_linear, rest)) or any(type(c) is not ad.Zero for c in others):
        raise NotImplementedError(
            "attention is linear in the values alone, and of its results `out` alone; transpose "
            "jax.linear_transpose(lambda v: jaxattn.attention(q, k, v), v), or use jax.vjp"
        )
    if type(first) is ad.Zero:
        return [None for _ in args]
    # A linear function is its own derivative, anywhere.
    mixed = lambda x: jaxpr_as_fun(jaxpr)(*rest, x)[0]
    _, pull = jax.vjp(mixed, jnp.zeros(x.aval.shape, x.aval.dtype))
    return [*(None for _ in rest), *pull(first)]


def _batch(args: Any, axes: Any, *, jaxpr: Any) -> tuple[list[Any], list[int]]:
    mapped = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), axes))(*args)
    return _linear.bind(*args, jaxpr=mapped), [0] * len(mapped.out_avals)


_linear.def_impl(_plain)
_linear.def_effectful_abstract_eval(lambda *_, jaxpr: (jaxpr.out_avals, jaxpr.effects))
mlir.register_lowering(_linear, mlir.lower_fun(_plain, multiple_results=True))
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch

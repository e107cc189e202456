"""Going through a jaxpr an equation at a time.

Source: JAX's documentation, "Writing custom Jaxpr interpreters".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Var

JIT = "jit", "pjit"  # as newer and older versions of JAX name it


def run(
    jaxpr: Any, consts: Any, args: Any, apply: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """The results of a jaxpr, with those of each equation as `apply(equation, operands)`."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        env |= zip(eqn.outvars, apply(eqn, read(eqn.invars, env)), strict=True)
    return read(jaxpr.outvars, env)


def opened(jaxpr: Any) -> Any:
    """The jaxpr with its constants as its first arguments: it holds none of their arrays."""
    return jaxpr.replace(constvars=(), invars=[*jaxpr.constvars, *jaxpr.invars])


def bind(eqn: Any, operands: Sequence[Any], mesh: Any = None) -> Sequence[Any]:
    """The results of an equation of these operands. mesh: in place of that when it was traced."""
    here = nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)
    with eqn.ctx.manager, here:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def read(atoms: Sequence[Any], env: dict[Any, Any]) -> list[Any]:
    """What atoms are: those with a name as in `env`, literals as arrays of their dtype."""
    literal = lambda x: jnp.asarray(x.val, getattr(x.aval, "dtype", None))
    return [literal(x) if isinstance(x, Literal) else env[x] for x in atoms]


def equations(jaxpr: Any, known: Any = None) -> Iterator[tuple[Any, list[Any]]]:
    """(equation, operands) of a jaxpr of scalars, and in place of a call of a compiled function
    those of the function. An operand whose number is known is an array, and else a variable.

    known: what variables are, by their names in `jaxpr`.
    """
    known = {} if known is None else known
    value = lambda x, known: read([x], {})[0] if isinstance(x, Literal) else known.get(x, x)
    for eqn in jaxpr.eqns:
        with jax.ensure_compile_time_eval():
            operands, results = [value(x, known) for x in eqn.invars], eqn.outvars
            if eqn.primitive.name in JIT:
                inner = eqn.params["jaxpr"].jaxpr
                within = dict(zip(inner.invars, operands, strict=True))
                found = [*equations(inner, within)]
                results = [value(x, within) for x in inner.outvars]
            elif any(isinstance(x, Var) for x in operands):
                found = [(eqn, operands)]
            else:
                found, results = [], bind(eqn, operands)
        known |= zip(eqn.outvars, results, strict=True)
        yield from found


def named(atoms: Sequence[Any]) -> list[Any]:
    """Those that are no literals."""
    return [x for x in atoms if not isinstance(x, Literal)]

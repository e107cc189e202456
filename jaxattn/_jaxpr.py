"""Going through a jaxpr an equation at a time.

Source: JAX's documentation, "Writing custom Jaxpr interpreters".
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal


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


def bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation of these operands."""
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def read(atoms: Sequence[Any], env: dict[Any, Any]) -> list[Any]:
    """What atoms are: those with a name as in `env`, literals as arrays of their dtype."""
    literal = lambda x: jnp.asarray(x.val, getattr(x.aval, "dtype", None))
    return [literal(x) if isinstance(x, Literal) else env[x] for x in atoms]


def named(atoms: Sequence[Any]) -> list[Any]:
    """Those that are no literals."""
    return [x for x in atoms if not isinstance(x, Literal)]

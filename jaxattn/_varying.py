"""Inside `jax.shard_map`: over which axes of the mesh a value varies.

JAX types values by those axes, and a loop or a branch wants the same type of all that goes round or
may come out. So all that a call is given is made to vary over the same axes at the door, and what
loops and branches begin with, or have nothing to show for, as well. Outside `shard_map` all of this
does nothing.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

Axes: TypeAlias = frozenset[str]
NOWHERE: Axes = frozenset()


def varying(*trees: Any) -> Axes:
    """The axes over which any array in the trees varies."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array)]
    return NOWHERE.union(*map(_axes_of, leaves))


def vary(tree: Any, axes: Axes) -> Any:
    """The tree with arrays that vary over `axes`, at least."""
    if not axes:
        return tree

    def one(x: Any) -> Any:
        missing = tuple(sorted(axes - _axes_of(jnp.asarray(x))))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree)


def _axes_of(x: Any) -> Axes:
    return jax.typeof(x).mat.varying


def hoist(jaxpr: Any, consts: list[Any]) -> tuple[Any, list[Any]]:
    """(jaxpr, consts) without the equations that depend on nothing but constants."""
    known, left = dict(zip(jaxpr.constvars, consts, strict=True)), []
    for eqn in jaxpr.eqns:
        free = [x for x in eqn.invars if not isinstance(x, Literal)]
        if any(x not in known for x in free):
            left.append(eqn)
        else:
            known |= zip(eqn.outvars, _apply(eqn, known), strict=True)
    used = {x for eqn in left for x in eqn.invars if not isinstance(x, Literal)}
    used |= {x for x in jaxpr.outvars if not isinstance(x, Literal)}
    constants = [x for x in known if x in used]
    return jaxpr.replace(constvars=constants, eqns=left), [known[x] for x in constants]


def evaluate(jaxpr: Any, consts: Any, args: Any, axes: Axes) -> list[Any]:
    """The jaxpr of arguments that vary over `axes`, where some did not when it was traced."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        env |= zip(eqn.outvars, _apply(eqn, env, axes), strict=True)
    return [_read(x, env) for x in jaxpr.outvars]


def _apply(eqn: Any, env: dict[Any, Any], axes: Axes = NOWHERE) -> list[Any]:
    """The results of an equation, of operands that vary over `axes`."""
    inside: Callable[[str], Any] = eqn.params.get
    values = [_read(x, env) for x in eqn.invars]
    if axes:
        values = vary([jnp.asarray(x) for x in values], axes)
        if eqn.primitive.name == "pvary":
            return values
        closed = inside("jaxpr") if eqn.primitive.name == "jit" else None
        if not all(axes <= x.aval.mat.varying for x in eqn.invars):  # traced for another type
            closed = closed or inside("call_jaxpr")
        if closed is not None:
            return evaluate(closed.jaxpr, closed.consts, values, axes)
    results = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]


def _read(x: Any, env: dict[Any, Any]) -> Any:
    is_literal = isinstance(x, Literal)
    return jnp.asarray(x.val, getattr(x.aval, "dtype", None)) if is_literal else env[x]

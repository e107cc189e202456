"""Inside `jax.shard_map`: over which axes of the mesh a value varies.

JAX types values by those axes, and a loop or a branch wants the same type of all that goes round or
may come out. So all that a call is given is made to vary over the same axes at the door, and what
the loops and branches of a ring begin with, or have nothing to show for, as well. What one device
computes alone is lowered without these types. Outside `shard_map` all of this does nothing.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxattn._jaxpr import bind, named, read, run

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


def anywhere(aval: Any) -> Any:
    """The type of an array that does not vary."""
    return aval.update(manual_axis_type=aval.mat.update(varying=NOWHERE))


def hoist(jaxpr: Any, captured: list[Any]) -> tuple[Any, list[Any]]:
    """(jaxpr, captured) without the equations that depend on nothing but captured arrays, which are
    the first arguments."""
    n = len(captured)
    known, left = dict(zip(jaxpr.invars[:n], captured, strict=True)), []
    for eqn in jaxpr.eqns:
        if any(x not in known for x in named(eqn.invars)):
            left.append(eqn)
        else:
            known |= zip(eqn.outvars, bind(eqn, read(eqn.invars, known)), strict=True)
    used = {x for eqn in left for x in named(eqn.invars)} | {*named(jaxpr.outvars)}
    first = [x for x in known if x in used]
    hoisted = jaxpr.replace(invars=[*first, *jaxpr.invars[n:]], eqns=left)
    return hoisted, [known[x] for x in first]


def evaluate(jaxpr: Any, consts: Any, args: Any, axes: Axes) -> list[Any]:
    """The jaxpr of arguments that vary over `axes`, where some varied otherwise when it was
    traced."""

    mesh = jax.sharding.get_abstract_mesh()

    def apply(eqn: Any, operands: list[Any]) -> Any:
        operands = vary(operands, axes)
        if eqn.primitive.name == "pvary":
            return operands
        closed = eqn.params.get("jaxpr") if eqn.primitive.name == "jit" else None
        if any(x.aval.mat.varying != axes for x in eqn.invars):  # traced for another type
            closed = closed or eqn.params.get("call_jaxpr")
        if closed is not None:
            return evaluate(closed.jaxpr, closed.consts, operands, axes)
        return bind(eqn, operands, mesh)

    return run(jaxpr, consts, args, apply)

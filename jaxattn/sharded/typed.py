"""The way that arrays ask for by their types, of which explicit axes of a mesh are a part."""

import math
from typing import Any

import jax

from jaxattn.sharded.ways import AllToAll, Product, Ring, Way, names_of


def way_of(q: Any, k: Any, v: Any) -> Way | None:
    """How to attend to q, k and v whose tokens are sharded over explicit axes of a mesh.

    None where they are not, where they are not sharded alike, or where no way fits: then every
    device has all keys, or the compiler brings them. So too inside a `jax.shard_map` over other
    axes and a `jax.vmap` of one, in which JAX cannot differentiate a `jax.shard_map`.
    """
    arrays = q, k, v
    if not all(isinstance(x, jax.Array) and x.ndim >= 3 for x in arrays):
        return None
    typed = [jax.typeof(x).sharding for x in arrays]
    axes = [names_of(its.spec[-3]) for its in typed]
    if not axes[0] or any(names != axes[0] for names in axes):
        return None
    if any(features is not None for *_, features in (its.spec for its in typed)):
        return None
    mesh = typed[0].mesh
    if not _can_be_manual(mesh):
        return None
    sizes = mesh.shape
    heads = q.shape[-2] // math.prod(sizes[name] for name in names_of(typed[0].spec[-2]))
    first, *more = axes[0]
    if len(more) > 1 or math.prod(sizes[name] for name in axes[0]) == 1:
        return None
    if more:
        return Product(more[0], first) if heads % sizes[more[0]] == 0 else None
    return Ring(first) if heads % sizes[first] else AllToAll(first)


def _can_be_manual(mesh: Any) -> bool:
    """Whether JAX gives all axes of a mesh to a `jax.shard_map` here."""
    if mesh.manual_axes:
        return False
    axes = frozenset(mesh.axis_names)
    try:
        jax.shard_map(lambda: (), mesh=mesh, axis_names=axes, in_specs=(), out_specs=())()
    except ValueError:  # one is mapped by `jax.vmap`
        return False
    return True

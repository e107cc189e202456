"""Explicit axes of a mesh: the compiler divides the work, results are sharded as queries are."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxattn._observation import HEAD, KEY, QUERY


def sharded_as(q: Any, compute: Callable[..., Any], results: Any) -> Callable[..., Any]:
    """`compute` over the explicit axes of the mesh that is set, if it has any.

    results: a tree of what each result, or tree of results, has one of: QUERY [*b t h ...],
      KEY [*b s h ...] or HEAD [*b h ...].
    """
    axes = jax.sharding.get_abstract_mesh().explicit_axes
    if not axes:
        return compute
    *batch, t, h, _ = jax.typeof(q).sharding.spec
    specs = {QUERY: P(*batch, t, h), KEY: P(*batch, None, h), HEAD: P(*batch, h)}
    divided: Any = jax.sharding.auto_axes
    return divided(compute, axes=axes, out_sharding=jax.tree.map(specs.__getitem__, results))

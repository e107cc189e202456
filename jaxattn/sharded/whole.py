"""`attend` of global arrays, sharded over a mesh: every device's program by `jax.shard_map`."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxattn._axes import Attended
from jaxattn._function import keep
from jaxattn._observation import HEAD, Observation, check_observations
from jaxattn._problem import Whole, check
from jaxattn._value import Shift
from jaxattn.backends.protocol import Backend
from jaxattn.backends.select import check_backend
from jaxattn.sharded.local import solve
from jaxattn.sharded.parts import each_array, moved
from jaxattn.sharded.ways import Axes, names_of


def attend_whole(
    way: Any,
    arrays: tuple[Array, Array, Array],
    rule: tuple[Any, ...],
    observe: Mapping[str, Observation] | None,
    backend: Backend,
    spec: Any = None,
) -> Attended:
    """spec: of q, [*b t h d]; None for that of q's own sharding."""
    q, k, v = arrays
    mesh = mesh_of(q)
    axes = Axes(way, lambda name: _size(mesh, name))
    spec = spec_of(q, spec, axes)
    *batch, tokens, heads, features = spec
    _check(axes, spec, features, q)
    axes.check("queries", q.shape[-3] // axes.count, axes.order.parts)
    axes.check("keys", k.shape[-3] // axes.count, axes.order.parts)
    # Heads over an axis of the mesh: keys and values are repeated where theirs cannot be shared.
    many = math.lcm(k.shape[-2], _count(mesh, heads)) // max(k.shape[-2], 1)
    k, v = (jnp.repeat(x, many, axis=-2) if many > 1 else x for x in (k, v))
    t, s = q.shape[-3], k.shape[-3]
    rows, keys = (_in_order(axes, length) for length in (t, s))
    problem, frame = check(q, k, v, *rule, whole=Whole(t, s, rows, keys))
    observations = check_observations(observe, frame, problem.q.dtype)
    given = problem, tuple(observations.values())

    def of(x: Any, names: str | None) -> P:
        if names is None:  # perhaps a number of a user's own value
            return P(*(None,) * jnp.ndim(x))
        lead = x.ndim - len(names)
        own = dict(zip(names, x.shape[lead:], strict=True))
        parts = [a if n > 1 else None for a, n in zip(batch, x.shape[:lead], strict=False)]
        for name, n in zip(names, x.shape[lead:], strict=True):
            shared = {"h": heads, "t": tokens, "s": None if own.get("t", 1) > 1 else tokens}
            parts.append(shared.get(name) if n > 1 else None)
        return P(*parts)

    marked = each_array(given, lambda x, names: _Marked(of(x, names)))
    leaves, structure = jax.tree.flatten(given)
    q_spec, rest = P(*batch, tokens, heads), P(*batch, heads)
    inputs = [x.spec for x in jax.tree.leaves(marked)]
    inputs[:3] = [P(*batch, tokens, heads, None)] * 3
    out_specs = q_spec, q_spec, tuple(rest if x.per is HEAD else q_spec for x in given[1]), q_spec

    def on_device(*leaves: Array) -> Any:
        problem, watched = jax.tree.unflatten(structure, leaves)
        sizes = problem.sizes
        one = lambda x: jnp.reshape(x, (1,) * len(sizes.batch))
        first = _index(heads) * sizes.h if heads else 0
        starts = [_index(a) * n if a else 0 for a, n in zip(batch, sizes.batch, strict=True)]
        by = Shift(head=one(first) if heads else 0, batch=tuple(starts) if any(batch) else ())
        return solve(axes, *moved((problem, watched), by), check_backend(backend))

    # In a checked one Pallas asks over which axes results vary, which not all kernels tell.
    options: Any = {"mesh": mesh, "in_specs": tuple(inputs), "check_vma": False}
    divided = jax.shard_map(on_device, out_specs=out_specs, **options)
    if mesh.explicit_axes:
        leaves = [_put(x, mesh, its) for x, its in zip(leaves, inputs, strict=True)]
    out, lse, states, live = keep(given[1], divided(*leaves))
    if any(x.per is HEAD for x in given[1]) and axes.order.parts > 1:
        live = axes.order.back(live, axes.rings, -2)
    pairs = zip(observations.items(), states, strict=True)
    return Attended(out, lse, {name: each.finish(x, live) for (name, each), x in pairs})


def _put(x: Any, mesh: Any, spec: P) -> Array:
    """Where no mesh is set, an array that is not traced may be on one device."""
    move = jax.device_put if isinstance(mesh, Mesh) and not isinstance(x, Tracer) else jax.reshard
    return move(x, jax.NamedSharding(mesh, spec))


class _Marked:
    def __init__(self, spec: P) -> None:
        self.spec = spec


def mesh_of(q: Any) -> Any:
    """The mesh that is set, or that q is on.

    Raises:
      ValueError: there is none.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        return mesh
    if not isinstance(q, Tracer) and isinstance(q.sharding, jax.NamedSharding):
        return q.sharding.mesh
    own = getattr(jax.typeof(q).sharding, "mesh", None)
    if own is not None and not own.empty:
        return own
    raise ValueError(
        f"a sequence is shared out over a mesh, and none is known here, got q {q.shape}; call it "
        f"under jax.set_mesh(mesh), with arrays that are on a mesh, or inside jax.shard_map"
    )


def spec_of(q: Any, spec: Any, axes: Axes) -> P:
    """How q is sharded: as told, as its type or its own sharding says, or along the sequence."""
    if spec is None:
        typed = jax.typeof(q).sharding.spec
        spec = typed if any(typed) else None
    if spec is None and not isinstance(q, Tracer):
        own = getattr(q, "sharding", None)
        spec = own.spec if isinstance(own, jax.NamedSharding) else None
    known: list[Any] = [*(() if spec is None else spec)]
    known += [None] * (q.ndim - len(known))
    first, *more = axes.names
    names = (first, *more) if more else first
    return P(*known[:-3], names if known[-3] is None else known[-3], *known[-2:])


def _check(axes: Axes, spec: P, features: Any, q: Any) -> None:
    tokens = spec[-3] if isinstance(spec[-3], tuple) else (spec[-3],)
    if tokens != axes.names or features is not None:
        raise ValueError(
            f"q [*b t h d] is sharded along t over {axes.names}, as the way says, and not along d; "
            f"got {spec} for q {q.shape}; reshard it, or pass spec="
        )


def _size(mesh: Any, name: str) -> int:
    if name not in mesh.axis_names:
        raise ValueError(
            f"the mesh has no axis {name!r}, got the axes {mesh.axis_names}; name one of these"
        )
    return mesh.shape[name]


def _count(mesh: Any, axis: Any) -> int:
    return math.prod(mesh.shape[name] for name in names_of(axis))


def _index(axis: Any) -> Any:
    return jax.lax.axis_index(names_of(axis))


def _in_order(axes: Axes, length: int) -> Any:
    """Which token of the sequence each of the array is."""
    every = [axes.order.tokens(d, axes.rings, length // axes.rings) for d in range(axes.rings)]
    return jnp.concatenate(every)

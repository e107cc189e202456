"""Heads for sequence: every device gets some heads of what all of them have."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._axes import cut_axis, put_axis
from jaxattn._observation import HEAD, Watch
from jaxattn._problem import Problem
from jaxattn._value import Shift, Zero
from jaxattn.sharded.parts import Given, each_array, moved


def check_heads(h: int, n: int, devices: int) -> int:
    """How often keys and values are repeated, so that their heads can be shared out: the least.

    Raises:
      ValueError: query heads cannot be shared out.
    """
    if h % devices:
        raise ValueError(
            f"AllToAll shares query heads out over the devices of its axis, got h={h} heads and "
            f"{devices} devices; use a Ring, or a Product whose axis of heads is smaller"
        )
    return math.lcm(n, devices) // n


def exchange(axis: str, devices: int, given: Given) -> Given:
    """The problem of this device's heads, with the queries and keys of all devices of the axis."""
    problem, _ = given
    sizes = problem.sizes
    repeat = check_heads(sizes.h, problem.kv_heads, devices)
    k, v = (jnp.repeat(x, repeat, axis=-2) for x in (problem.k, problem.v))
    first, held = jax.lax.axis_index(axis) * (sizes.h // devices), {"t": sizes.t, "s": sizes.s}
    trade = lambda x, split, join: jax.lax.all_to_all(x, axis, split, join, tiled=True)

    def change(x: Array, axes: str | None) -> Array:
        if axes is None:
            return x
        at = {name: x.ndim - len(axes) + i for i, name in enumerate(axes)}
        at = {name: i for name, i in at.items() if x.shape[i] > 1}
        pairs = "ts" if "t" not in at or x.shape[at["t"]] != held["t"] else "t"
        apart = [at[a] for a in pairs if a in at and x.shape[at[a]] == held[a]]
        if "t" in at and "s" in at:  # it has all keys
            apart = [i for i in apart if i == at["t"]]
        if "h" in at and apart:
            return trade(x, at["h"], apart[0])
        if "h" in at:
            return cut_axis(x, first, sizes.h // devices, at["h"])
        for i in apart:
            x = jax.lax.all_gather(x, axis, axis=i, tiled=True)
        return x

    bare = problem._replace(q=Zero(), k=Zero(), v=Zero())  # pyright: ignore[reportArgumentType]
    rest, watched = each_array((bare, given[1]), change)
    q, k, v = (trade(x, x.ndim - 2, x.ndim - 3) for x in (problem.q, k, v))
    by = Shift(head=jnp.reshape(first, (1,) * len(sizes.batch)))
    return moved((rest._replace(q=q, k=k, v=v), watched), by)


def restore(axis: str, x: Any, lead: int) -> Any:
    """Results [*b t h ...] of this device's heads as those of its queries; so too of keys."""
    back = lambda x: jax.lax.all_to_all(x, axis, lead, lead + 1, tiled=True)
    return jax.tree.map(back, x)


def restore_states(
    axis: str, devices: int, watched: Watch, states: tuple[Any, ...], problem: Problem
) -> tuple[Any, ...]:
    """States of observations likewise; of those of heads, those of all heads."""
    lead, h = len(problem.sizes.batch), problem.sizes.h
    first = jax.lax.axis_index(axis) * (h // devices)

    def heads(x: Array) -> Array:
        zeros = jnp.zeros((*x.shape[:lead], h, *x.shape[lead + 1 :]), x.dtype)
        return jax.lax.psum(put_axis(zeros, x, first, lead), axis)

    return tuple(
        jax.tree.map(heads, x) if each.per is HEAD else restore(axis, x, lead)
        for each, x in zip(watched, states, strict=True)
    )

"""Round a ring: what travels, what stays, and when it is sent.

The keys of a device go round a piece at a time, so that what visits is small. Every transfer is
issued before the computation that it does not need, so that they overlap. What travels with the
keys, such as their gradients, starts at the first device that is not its own, and comes home last:
n - 1 transfers of each piece, where n devices are visited.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from jaxattn.sharded.parts import Layout, Visit

FEW = 3  # steps are written out, more of the same are a loop

Visiting = Callable[[Visit, Any, Any], tuple[Any, Any]]


def go_round(
    layout: Layout,
    shifts: Sequence[int],
    travel: tuple[Sequence[Any], Sequence[int]],
    visit: Visiting,
    stay: Any,
    home: tuple[Sequence[Any], Sequence[int]],
    join: Callable[[Any, Any], Any],
) -> tuple[Any, list[Any]]:
    """(what stays after all visits, what came home of those that travelled).

    Args:
      shifts: which devices' things a device is visited by: that of its own, 0, first, and those so
        many before it, ascending.
      travel: the arrays that visit, and the axis of keys of each, from the end.
      visit: (visit, stay, visiting) -> (stay, part), a list of arrays. The shift is 0 or an index
        above it.
      stay: what there is before.
      home: what there is of parts before, of which nothing is left, and the axis of keys of each.
      join: (part, part) -> part of both.
    """
    arrays, axes = travel
    parts, of_parts = home

    def step(i: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        stay, parts = state
        moving = [layout.piece(x, axis, i) for x, axis in zip(arrays, axes, strict=True)]
        of_piece = lambda shift, stay, visiting: visit(Visit(shift, i), stay, visiting)
        stay, made = _go_round(layout.axis, shifts, moving, of_piece, stay, join)
        every = zip(parts, made, of_parts, strict=True)
        return stay, [layout.put_piece(x, part, axis, i) for x, part, axis in every]

    if layout.pieces == 1:
        return step(0, (stay, parts))
    return jax.lax.fori_loop(0, layout.pieces, step, (stay, [*parts]))


def _go_round(
    axis: str, shifts: Sequence[int], travel: Any, visit: Any, stay: Any, join: Any
) -> tuple[Any, Any]:
    """`go_round` of one piece, for a visit of it: (shift, stay, visiting) -> (stay, part)."""
    own, *rest = shifts
    hops = [b - a for a, b in zip(shifts, rest, strict=False)]
    moving = send(travel, axis, hops[0]) if rest else None
    stay, home = visit(own, stay, travel)
    part, i = None, 0
    while i < len(rest):
        loop = _same_from(hops, i)
        if loop >= FEW and (part is not None or not jax.tree.leaves(home)):
            step = partial(_step, axis, hops[i], rest[i], visit, join)
            start = stay, moving, part if part is not None else home
            stay, moving, last = jax.lax.fori_loop(0, loop, step, start)
            part, i = last if part is not None else None, i + loop
            continue
        after = send(moving, axis, hops[i + 1]) if i + 1 < len(rest) else None
        arrived = None if part is None else send(part, axis, hops[i])
        stay, made = visit(rest[i], stay, moving)
        part = made if arrived is None else join(arrived, made)
        moving, i = after, i + 1
    if part is None:
        return stay, home
    return stay, join(home, send(part, axis, -rest[-1]))


def _same_from(hops: Sequence[int], i: int) -> int:
    """How many steps from the i-th on are reached and left by the same hop."""
    count = 0
    while i + count + 1 < len(hops) and hops[i + count] == hops[i + count + 1] == hops[i]:
        count += 1
    return count


def _step(
    axis: str, hop: int, first: int, visit: Any, join: Any, i: Any, state: tuple[Any, Any, Any]
) -> tuple[Any, Any, Any]:
    stay, moving, part = state
    after, arrived = send(moving, axis, hop), send(part, axis, hop)
    stay, made = visit(first + i * hop, stay, moving)
    return stay, after, join(arrived, made)


def send(tree: Any, axis: str, hop: int) -> Any:
    """Every array to the device that is so many further on."""
    n = jax.lax.axis_size(axis)
    if hop % n == 0:
        return tree
    pairs = [(i, (i + hop) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, pairs), tree)

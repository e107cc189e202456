"""Round a ring: what travels, what stays, and when it is sent.

Every transfer is issued before the computation that it does not need, so that they overlap. What
travels with the keys of a device, such as their gradients, starts at the first device that is not
its own, and comes home last: n - 1 transfers, where n devices are visited.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

FEW = 3  # steps are written out, more of the same are a loop


def go_round(
    axis: str,
    shifts: Sequence[int],
    travel: Any,
    visit: Callable[[Any, Any, Any], tuple[Any, Any]],
    stay: Any,
    join: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """(what stays after all visits, what came home of those that travelled).

    Args:
      shifts: which devices' things a device is visited by: that of its own, 0, first, and those so
        many before it, ascending.
      travel: a tree of what visits.
      visit: (shift, stay, visiting) -> (stay, part). The shift is 0 or an index above it.
      stay: what there is before.
      join: (part, part) -> part of both.
    """
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

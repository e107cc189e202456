"""Observations over the devices of a ring: each state merged with that of the pairs before.

Keys go round once more, without values, when the lse of every query is known. What an observation
has of each query or head stays; what it has of each key goes round with it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import put_axis
from jaxattn._observation import HEAD, KEY, BoundObservation, Watch, states_of_no_pairs
from jaxattn._problem import Problem
from jaxattn._varying import vary
from jaxattn.sharded.go_round import go_round
from jaxattn.sharded.parts import Pair
from jaxattn.sharded.ring_sum import ring_sum
from jaxattn.sharded.visits import Split, Visits


class Observing:
    """The states of a problem's observations. make: (problem, watched, lse) -> those of a part."""

    def __init__(self, visits: Visits, problem: Problem, watched: Watch, make: Any) -> None:
        sizes = problem.sizes
        self.visits, self.watched, self.make = visits, watched, make
        self.sizes, self.lead = sizes._replace(varying=visits.axes), len(sizes.batch)

    def start(self, dtype: Any) -> tuple[Any, ...]:
        return vary(states_of_no_pairs(self.sizes, self.watched, dtype), self.visits.axes)

    def pair(self, pair: Pair, mask: Any, operands: Any, split: Split) -> tuple[Any, ...]:
        """The states of a pair of chunks."""
        (here, lse), there = operands
        problem, watched = self.visits.part(split.together(here, there), pair, mask)
        return self.make(problem, watched, self.visits.rows(lse, pair, self.lead))

    def of_pair(self, each: BoundObservation, state: Any, pair: Pair) -> Any:
        """The part of a device's state that is that of a pair."""
        if each.per is HEAD:
            return state
        cut = self.visits.columns if each.per is KEY else self.visits.rows
        return cut(state, pair, self.lead)

    def put(self, each: BoundObservation, state: Any, part: Any, pair: Pair) -> Any:
        if each.per is HEAD:
            return part
        put = self.visits.put_columns if each.per is KEY else self.visits.put_rows
        return put(state, part, pair, self.lead)

    def merged(self, states: tuple[Any, ...], made: tuple[Any, ...], pair: Pair) -> tuple[Any, ...]:
        every = zip(self.watched, states, made, strict=True)
        return tuple(
            self.put(each, x, each.merge(self.of_pair(each, x, pair), y), pair)
            for each, x, y in every
        )

    def travels(self, states: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        """(the states that stay, those that go with the keys)."""
        pairs = [*zip(self.watched, states, strict=True)]
        return [x for each, x in pairs if each.per is not KEY], [
            x for each, x in pairs if each.per is KEY
        ]

    def together(self, stay: list[Any], travel: list[Any]) -> tuple[Any, ...]:
        here, there = iter(stay), iter(travel)
        return tuple(next(there if each.per is KEY else here) for each in self.watched)


def states_of(
    axis: str, watching: Observing, given: Any, split: Split, lse: Float[Array, "*b t h"]
) -> tuple[Any, ...]:
    """The states, merged on the way. Never differentiated."""
    visits, (stay, travel) = watching.visits, split.apart(given)
    nothing = watching.start(lse.dtype)

    def pair_of(pair: Pair, mask: Any, states: Any, operands: Any) -> Any:
        return watching.merged(states, watching.pair(pair, mask, operands, split), pair)

    def visit(shift: Any, here: Any, visiting: Any) -> tuple[Any, Any]:
        states = watching.together(here, watching.travels(nothing)[1])
        return watching.travels(visits.each(shift, states, pair_of, ((stay, lse), visiting)))

    def join(a: list[Any], b: list[Any]) -> list[Any]:
        of_keys = [each for each in watching.watched if each.per is KEY]
        return [each.merge(x, y) for each, x, y in zip(of_keys, a, b, strict=True)]

    here, _ = watching.travels(nothing)
    return watching.together(*go_round(axis, visits.shifts, travel, visit, here, join))


def states_to_differentiate(
    axis: str, watching: Observing, given: Any, split: Split, lse: Float[Array, "*b t h"]
) -> tuple[Any, ...]:
    """The same, as sums: of those that do not add up, each visit's has a place of its own, and they
    are merged in the end."""
    visits, (stay, travel) = watching.visits, split.apart(given)
    shifts, parts = visits.shifts, visits.layout.parts
    nothing = watching.start(lse.dtype)

    def slots(each: BoundObservation) -> int:
        return len(shifts) * (parts**2 if each.per is HEAD else parts)

    def empty(each: BoundObservation, state: Any) -> Any:
        if each.adds_up:
            return state
        return jax.tree.map(lambda x: jnp.zeros((slots(each), *x.shape), x.dtype), state)

    def slot(each: BoundObservation, shift: Any, pair: Pair) -> Any:
        order = sum((shift > s) for s in shifts) if not isinstance(shift, int) else 0
        order = jnp.asarray(order, jnp.int32)
        if each.per is HEAD:
            return order * parts**2 + pair.row * parts + pair.column
        return order * parts + (pair.row if each.per is KEY else pair.column)

    def added(each: BoundObservation, state: Any, made: Any, pair: Pair, shift: Any) -> Any:
        if each.adds_up:
            return watching.put(
                each, state, each.merge(watching.of_pair(each, state, pair), made), pair
            )
        at = slot(each, shift, pair)
        place = lambda x: jax.lax.dynamic_index_in_dim(x, at, 0, keepdims=False)
        one = watching.put(each, jax.tree.map(place, state), made, pair)
        return jax.tree.map(lambda x, y: put_axis(x, y[None], at), state, one)

    def visit(shift: Any, here: Any, visiting: Any) -> tuple[Any, Any]:
        stay, lse = here
        states = tuple(map(empty, watching.watched, watching.start(lse.dtype)))

        def pair_of(pair: Pair, mask: Any, states: Any, operands: Any) -> Any:
            made = watching.pair(pair, mask, operands, split)
            every = zip(watching.watched, states, made, strict=True)
            return tuple(added(each, x, y, pair, shift) for each, x, y in every)

        def hidden(pair: Pair, states: Any) -> Any:
            sizes = watching.sizes._replace(t=visits.layout.rows, s=visits.layout.keys)
            made = states_of_no_pairs(sizes, watching.watched, lse.dtype)
            every = zip(watching.watched, states, made, strict=True)
            return tuple(
                x if each.adds_up else added(each, x, y, pair, shift) for each, x, y in every
            )

        operands = (stay, lse), visiting
        made = visits.each(shift, states, pair_of, operands, hidden, again=True)
        return watching.travels(made)

    made = watching.together(*ring_sum(axis, shifts, visit, (stay, lse), travel))

    def whole(each: BoundObservation, state: Any) -> Any:
        if each.adds_up:
            return state
        every = [jax.tree.map(lambda x, i=i: x[i], state) for i in range(slots(each))]
        return functools.reduce(each.merge, every)

    del nothing
    return tuple(map(whole, watching.watched, made))


def over_devices(axis: str, each: BoundObservation, state: Any) -> Any:
    """The state of what each device saw as that of all."""
    if each.adds_up:
        return jax.lax.psum(state, axis)
    n, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    place = lambda x: put_axis(jnp.zeros((n, *x.shape), x.dtype), x[None], me)
    every = jax.lax.psum(jax.tree.map(place, state), axis)
    return functools.reduce(
        each.merge, [jax.tree.map(lambda x, i=i: x[i], every) for i in range(n)]
    )

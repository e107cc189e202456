"""Observations over the devices of a ring: each state merged with that of the pairs before.

Keys go round once more, without values, when the lse of every query is known. What an observation
has of each query or head stays; what it has of each key goes round with it.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import put_axis
from jaxattn._observation import HEAD, KEY, BoundObservation, Watch, states_of_no_pairs
from jaxattn._problem import Problem
from jaxattn._varying import vary
from jaxattn.sharded.go_round import go_round
from jaxattn.sharded.parts import Pair, Visit
from jaxattn.sharded.ring_sum import ring_sum
from jaxattn.sharded.visits import Split, Visits


class Observing:
    """The states of a problem's observations. make: (problem, watched, lse) -> those of a part."""

    def __init__(self, visits: Visits, problem: Problem, watched: Watch, make: Any) -> None:
        self.visits, self.watched, self.make = visits, watched, make
        self.sizes, self.lead = problem.sizes, len(problem.sizes.batch)

    def start(self, dtype: Any, s: int) -> tuple[Any, ...]:
        """The states of so many keys before any visit."""
        sizes = self.sizes._replace(s=s)
        return vary(states_of_no_pairs(sizes, self.watched, dtype), self.visits.axes)

    def pair(self, split: Split, pair: Pair, mask: Any, operands: Any) -> tuple[Any, ...]:
        """The states of a pair."""
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

    def merge(self, each: BoundObservation, state: Any, made: Any, pair: Pair) -> Any:
        """A device's state with that of a pair."""
        return self.put(each, state, each.merge(self.of_pair(each, state, pair), made), pair)

    def of_hidden(self, dtype: Any) -> tuple[Any, ...]:
        """The states of a pair in which there is nothing."""
        layout = self.visits.layout
        sizes = self.sizes._replace(t=layout.rows, s=layout.keys)
        return states_of_no_pairs(sizes, self.watched, dtype)

    def travels(self, states: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        """(the states that stay, those that go with the keys)."""
        pairs = [*zip(self.watched, states, strict=True)]
        return [x for each, x in pairs if each.per is not KEY], [
            x for each, x in pairs if each.per is KEY
        ]

    @property
    def of_keys(self) -> list[BoundObservation]:
        return [each for each in self.watched if each.per is KEY]

    def keys(self, travel: list[Any], apart: bool = False) -> list[int]:
        """Of each array of the states that travel its axis of keys, from the end. apart: those that
        do not add up have an axis of visits before those of the batch."""
        pairs = zip(self.of_keys, travel, strict=True)
        lead = lambda each: self.lead + (apart and not each.adds_up)
        return [lead(each) - x.ndim for each, state in pairs for x in jax.tree.leaves(state)]

    def together(self, stay: list[Any], travel: list[Any]) -> tuple[Any, ...]:
        here, there = iter(stay), iter(travel)
        return tuple(next(there if each.per is KEY else here) for each in self.watched)


def states_of(
    watching: Observing, given: Any, split: Split, lse: Float[Array, "*b t h"]
) -> tuple[Any, ...]:
    """The states, merged on the way. Never differentiated."""
    visits, (stay, travel) = watching.visits, split.apart(given)
    layout = visits.layout

    def add(pair: Pair, states: Any, made: Any) -> Any:
        every = zip(watching.watched, states, made, strict=True)
        return tuple(watching.merge(each, x, y, pair) for each, x, y in every)

    here, nothing = watching.travels(watching.start(lse.dtype, layout.s))
    structure = jax.tree.structure(nothing)

    def visit(at: Visit, here: Any, visiting: Any) -> tuple[Any, Any]:
        _, of_piece = watching.travels(watching.start(lse.dtype, layout.s // layout.pieces))
        states = watching.together(here, of_piece)
        pair_of, hidden = partial(watching.pair, split), lambda _: watching.of_hidden(lse.dtype)
        made = visits.each(at, states, pair_of, add, ((stay, lse), visiting), hidden)
        here, of_keys = watching.travels(made)
        return here, jax.tree.leaves(of_keys)

    def join(a: list[Any], b: list[Any]) -> list[Any]:
        every = zip(
            watching.of_keys, *(jax.tree.unflatten(structure, x) for x in (a, b)), strict=True
        )
        return jax.tree.leaves([each.merge(x, y) for each, x, y in every])

    home = jax.tree.leaves(nothing), watching.keys(nothing)
    moving = travel, split.keys
    here, home = go_round(layout, visits.shifts, moving, visit, here, home, join)
    return watching.together(here, jax.tree.unflatten(structure, home))


def states_to_differentiate(
    watching: Observing, given: Any, split: Split, lse: Float[Array, "*b t h"]
) -> tuple[Any, ...]:
    """The same, as sums: of those that do not add up, each visit's has a place of its own, and they
    are merged in the end."""
    visits, (stay, travel) = watching.visits, split.apart(given)
    layout, shifts = visits.layout, visits.shifts
    parts, pieces, rows = layout.parts, layout.pieces, layout.parts * layout.blocks

    def slots(each: BoundObservation) -> int:
        """Of a state of keys, each piece has places of its own."""
        of_visit = {HEAD: rows * parts * pieces, KEY: rows}.get(each.per, parts * pieces)
        return len(shifts) * of_visit

    def empty(each: BoundObservation, state: Any) -> Any:
        if each.adds_up:
            return state
        return jax.tree.map(lambda x: jnp.zeros((slots(each), *x.shape), x.dtype), state)

    def slot(each: BoundObservation, shift: Any, pair: Pair) -> Any:
        order = sum((shift > s) for s in shifts) if not isinstance(shift, int) else 0
        order = jnp.asarray(order, jnp.int32)
        if each.per is KEY:
            return order * rows + pair.row
        order = (order * pieces + pair.piece) * parts + pair.column
        return order * rows + pair.row if each.per is HEAD else order

    def added(each: BoundObservation, state: Any, made: Any, pair: Pair, shift: Any) -> Any:
        if each.adds_up:
            return watching.merge(each, state, made, pair)
        at = slot(each, shift, pair)
        place = lambda x: jax.lax.dynamic_index_in_dim(x, at, 0, keepdims=False)
        one = watching.put(each, jax.tree.map(place, state), made, pair)
        return jax.tree.map(lambda x, y: put_axis(x, y[None], at), state, one)

    def start() -> tuple[list[Any], list[Any]]:
        states = watching.start(lse.dtype, layout.s // pieces)
        states = vary(tuple(map(empty, watching.watched, states)), visits.axes)
        return watching.travels(states)

    def visit(at: Visit, sums: Any, here: Any, visiting: Any) -> tuple[Any, Any]:
        stay, lse = here
        states = watching.together(sums, start()[1])

        def add(pair: Pair, states: Any, made: Any) -> Any:
            every = zip(watching.watched, states, made, strict=True)
            return tuple(added(each, x, y, pair, at.shift) for each, x, y in every)

        operands = (stay, lse), visiting
        pair_of, hidden = partial(watching.pair, split), lambda _: watching.of_hidden(lse.dtype)
        made = visits.each(at, states, pair_of, add, operands, hidden, again=True)
        return watching.travels(made)

    here, of_keys = start()
    moving, home = (travel, split.keys), watching.keys(of_keys, apart=True)
    made = ring_sum(layout, shifts, visit, here, (stay, lse), moving, home)

    def whole(each: BoundObservation, state: Any) -> Any:
        if each.adds_up:
            return state
        every = [jax.tree.map(lambda x, i=i: x[i], state) for i in range(slots(each))]
        return reduce(each.merge, every)

    return tuple(map(whole, watching.watched, watching.together(*made)))


def over_devices(axis: str, each: BoundObservation, state: Any) -> Any:
    """The state of what each device saw as that of all."""
    if each.adds_up:
        return jax.lax.psum(state, axis)
    n, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    place = lambda x: put_axis(jnp.zeros((n, *x.shape), x.dtype), x[None], me)
    every = jax.lax.psum(jax.tree.map(place, state), axis)
    return reduce(each.merge, [jax.tree.map(lambda x, i=i: x[i], every) for i in range(n)])

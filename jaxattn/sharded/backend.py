"""The ring as a backend: another backend's results of pairs of chunks, put together by lse."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import accumulator
from jaxattn._lowering import platform
from jaxattn._mask import BoundMask
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._softmax import Partial
from jaxattn._varying import vary, varying
from jaxattn.backends.blockwise.backend import Blockwise
from jaxattn.backends.protocol import Backend, Call, Cost, Moves, Moving, Results
from jaxattn.backends.rule import answer, observed, tangents_of
from jaxattn.sharded.cases import Cases
from jaxattn.sharded.go_round import go_round
from jaxattn.sharded.observing import Observing, states_of, states_to_differentiate
from jaxattn.sharded.parts import Layout, Pair, Visit, align, layout_of
from jaxattn.sharded.ring_sum import ring_sum
from jaxattn.sharded.visits import Split, Visits
from jaxattn.sharded.ways import Order


@dataclass(frozen=True)
class Round(Backend):
    """Keys go round the devices of a mesh axis. Its problems are bound to the whole sequence, and
    hold what a device has of it: see parts.py.

    pieces: how many the keys of a device go round in, as a `Ring` has it. inside: makes the results
      of each pair of chunks.
    """

    OVER_DEVICES = True

    axis: str
    order: Order
    pieces: int | None
    inside: Backend

    def refuses(self, call: Call) -> str | None:
        self.inside.choose(call._replace(watched=(), from_lse=False))
        return None

    def run(self, problem: Problem, watched: Watch) -> Results:
        assert not watched, "they are made from lse, in a round of their own"
        given = problem._replace(rule=problem.rule._replace(sinks=None)), ()
        visits, split = self._visits(given), Split.of(self._layout(problem), given)
        stay, travel = split.apart(given)
        lead = len(problem.sizes.batch)

        def nothing(t: int) -> Partial:
            acc, sizes = accumulator(problem.q.dtype), problem.sizes
            zeros = jnp.zeros((*sizes.batch, t, sizes.h), acc)
            out = jnp.zeros((*zeros.shape, problem.v.shape[-1]), acc)
            return vary(Partial(zeros - jnp.inf, zeros, out), visits.axes)

        def pair_of(pair: Pair, mask: Any, operands: Any) -> Results:
            part, _ = visits.part(split.together(*operands), pair, mask)
            return answer(self._chosen(part), part, ())

        def hidden(_: Pair) -> Results:
            rows = nothing(visits.layout.rows)
            return Results(rows.accumulator, rows.peak, rows.total, ())

        def add(pair: Pair, state: Partial, made: Results) -> Partial:
            total = jnp.where(jnp.isneginf(made.peak), 0, jnp.exp(made.log_total))
            here = Partial(made.peak, total, made.out * total[..., None])
            before = visits.rows(state, pair, lead)
            peak = jnp.maximum(before.peak, here.peak)
            after = before.about(peak).add(here.about(peak))
            return visits.put_rows(state, after, pair, lead)

        def visit(at: Visit, state: Partial, visiting: Any) -> tuple[Partial, Any]:
            return visits.each(at, state, pair_of, add, (stay, visiting), hidden), ()

        join, moving = lambda a, b: a, (travel, split.keys)
        start, home = nothing(problem.sizes.t), ((), ())
        done, _ = go_round(visits.layout, visits.shifts, moving, visit, start, home, join)
        out, lse = done.finish()
        return Results(out, lse.peak, lse.log_total, ())

    def tangent(self, problem: Problem, watched: Watch, results: Results, moving: Moving) -> Moves:
        """Σ over pairs of the rule with the whole lse and out: it is linear in the tiles."""
        assert not watched
        given, along = _bare((problem, watched)), _bare(moving)
        layout, visits = self._layout(problem), self._visits(given)
        split, moves = Split.of(layout, given), Split.of(layout, along)
        lead, found = len(problem.sizes.batch), results._replace(states=())
        stay, travel = zip(split.apart(given), moves.apart(along), strict=True)

        def pair_of(pair: Pair, mask: Any, operands: Any) -> Any:
            here, there = operands
            part = visits.part(split.together(here[0], there[0]), pair, mask)
            of = moves.cut(layout, moves.together(here[1], there[1]), pair)
            at = visits.rows(here[2], pair, lead)
            made = tangents_of(self._by_lse(part[0]), (*part, at), align(part, of))
            return made.out, made.log_total

        def add(pair: Pair, sums: Any, part: Any) -> Any:
            after = jax.tree.map(jnp.add, visits.rows(sums, pair, lead), part)
            return visits.put_rows(sums, after, pair, lead)

        def visit(at: Visit, sums: Any, here: Any, there: Any) -> tuple[Any, Any]:
            return visits.each(at, sums, pair_of, add, (here, there), again=True), ()

        here, there = (*stay, found), (travel, (*split.keys, *moves.keys))
        start = visits.zeros((found.out, found.log_total))
        (out, log_total), _ = ring_sum(layout, visits.shifts, visit, start, here, there, ())
        return Moves(out, log_total, ())

    def transpose(
        self,
        problem: Problem,
        watched: Watch,
        results: Results,
        moving: Moving,
        cotangents: Moves,
    ) -> Any:
        """Gradients of what stays are summed where they are; those of keys go round with them."""
        assert not watched
        given, asked = _bare((problem, watched)), _bare(moving)
        layout, visits = self._layout(problem), self._visits(given)
        split, moves = Split.of(layout, given), Split.of(layout, asked)
        lead, found = len(problem.sizes.batch), results._replace(states=())
        kept = [x for x in (cotangents.out, cotangents.log_total) if x is not None]
        if not kept:
            return NotImplemented
        known = [x is not None for x in (cotangents.out, cotangents.log_total)]
        stay, travel = split.apart(given)
        shapes = moves.apart(asked)
        wide = lambda x: x.update(dtype=jnp.promote_types(x.dtype, found.out.dtype))
        sums_here, whole = ([wide(jax.typeof(x)) for x in some] for some in shapes)
        of_piece = lambda x, axis: x.update(shape=layout.piece_shape(x.shape, axis))
        sums_there = [*map(of_piece, whole, moves.keys)]

        def pair_of(pair: Pair, mask: Any, operands: Any) -> Any:
            (here, at, cts), there = operands
            part: Any = visits.part(split.together(here, there), pair, mask)
            at, cts = visits.rows((at, cts), pair, lead)
            cutting = lambda some: moves.cut(layout, moves.together(*some), pair)
            like = visits.zeros(jax.eval_shape(cutting, (sums_here, sums_there)))

            def along(some: Moving) -> list[Any]:
                made = tangents_of(self._by_lse(part[0]), (*part, at), align(part, some))
                pairs = zip((made.out, made.log_total), known, strict=True)
                return [dx for dx, is_known in pairs if is_known]

            (pulled,) = jax.vjp(along, like)[1](cts)
            return jax.tree.leaves(pulled)

        def add(pair: Pair, sums: Any, part: Any) -> Any:
            whole = jax.tree.leaves(moves.together(*sums))
            every = zip(whole, part, moves.tags, strict=True)
            whole = [layout.add(x, dx, tag, pair) for x, dx, tag in every]
            return moves.apart(jax.tree.unflatten(moves.structure, whole))

        def visit(at: Visit, sums: Any, here: Any, there: Any) -> tuple[Any, Any]:
            sums = sums, visits.zeros(sums_there)
            return visits.each(at, sums, pair_of, add, (here, there))

        here, there = (stay, found, kept), (travel, split.keys)
        start = visits.zeros(sums_here)
        made = ring_sum(layout, visits.shifts, visit, start, here, there, moves.keys)
        narrow = jax.tree.map(lambda x, like: x.astype(like.dtype), made, tuple(shapes))
        of_problem, of_watched = moves.together(*narrow)
        sinks = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), moving[0].rule.sinks)
        of_problem = of_problem._replace(rule=of_problem.rule._replace(sinks=sinks))
        return of_problem, of_watched

    def observe(
        self, problem: Problem, watched: Watch, lse: Float[Array, "*b t h"], order: int = 0
    ) -> tuple[Any, ...]:
        """Keys go round again, without their values."""
        bare = problem._replace(v=problem.v[..., :0]), watched
        given = _bare(bare)
        visits, split = self._visits(given), Split.of(self._layout(problem), given)

        def make(part: Problem, watched: Watch, lse: Array) -> tuple[Any, ...]:
            call = Call(part, watched, True, platform(), order)
            chosen = self._by_lse(part)
            return observed(Blockwise() if chosen.refuses(call) else chosen, part, watched, lse)

        watching = Observing(visits, problem, watched, make)
        states = states_to_differentiate if order else states_of
        return states(watching, given, split, lse)

    def cost(self, problem: Problem, mask: BoundMask, watched: Watch) -> Cost:
        raise NotImplementedError("jaxattn.sharded.explain counts what devices do")

    def _chosen(self, problem: Problem) -> Backend:
        return self.inside.choose(Call(problem, (), platform=platform()))

    def _by_lse(self, problem: Problem) -> Backend:
        """The backend whose rule takes an lse of more keys than the problem's."""
        chosen = self._chosen(problem)
        return chosen if chosen.FROM_LSE else Blockwise()

    def _layout(self, problem: Problem) -> Layout:
        devices = jax.lax.axis_size(self.axis)
        sizes = problem.sizes
        return layout_of(self.axis, devices, self.order, sizes.t, sizes.s, self.pieces)

    def _visits(self, given: tuple[Problem, Watch]) -> Visits:
        layout = self._layout(given[0])
        cases = Cases(given[0].rule.mask, layout)
        return Visits(layout, cases, Split.of(layout, given), varying(given))


def _bare(given: Any) -> Any:
    """Without the sinks, which are joined once, when all keys have been seen."""
    problem, watched = given
    return problem._replace(rule=problem.rule._replace(sinks=None)), watched

"""What a visit computes: the pairs of chunks, each by the backend inside, those that a mask hides
left out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._axes import Index, cut_axis
from jaxattn._axes import put_axis as put
from jaxattn._value import Shift
from jaxattn._varying import vary
from jaxattn.sharded.parts import HIDDEN, Cases, Given, Layout, Pair, Tag, moved

NOTHING = jax.checkpoint_policies.nothing_saveable


class Split(NamedTuple):
    """A problem's arrays apart: those that stay and those that travel."""

    structure: Any
    tags: tuple[Tag, ...]

    @staticmethod
    def of(layout: Layout, given: Given) -> "Split":
        return Split(jax.tree.structure(given), tuple(layout.tags(given)))

    def apart(self, given: Given) -> tuple[list[Array], list[Array]]:
        leaves = jax.tree.leaves(given)
        stay = [x for x, tag in zip(leaves, self.tags, strict=True) if not tag.travels]
        travel = [x for x, tag in zip(leaves, self.tags, strict=True) if tag.travels]
        return stay, travel

    def together(self, stay: Sequence[Any], travel: Sequence[Any]) -> Given:
        here, there = iter(stay), iter(travel)
        leaves = [next(there if tag.travels else here) for tag in self.tags]
        return jax.tree.unflatten(self.structure, leaves)

    def cut(self, layout: Layout, given: Given, pair: Pair) -> Given:
        leaves = jax.tree.leaves(given)
        parts = [layout.cut(x, tag, pair) for x, tag in zip(leaves, self.tags, strict=True)]
        return jax.tree.unflatten(self.structure, parts)


class Visits(NamedTuple):
    """The visits of a ring for a problem. axes: of the mesh over which all arrays vary."""

    layout: Layout
    cases: Cases
    problem: Split
    axes: frozenset[str]

    @property
    def shifts(self) -> tuple[int, ...]:
        return self.cases.shifts(self.layout)

    def part(self, given: Given, pair: Pair, mask: Any) -> Given:
        """The problem of a pair of chunks. mask: in place of the problem's; None for that."""
        layout = self.layout
        problem, watched = self.problem.cut(layout, given, pair)
        one = lambda x: jnp.reshape(x, (1,) * len(problem.sizes.batch))
        by = Shift(one(pair.q_chunk * layout.rows), one(pair.k_chunk * layout.keys))
        if mask is not None:
            problem = problem._replace(rule=problem.rule._replace(mask=mask))
            problem, watched = moved((problem, watched), by)
            return problem._replace(rule=problem.rule._replace(mask=mask)), watched
        return moved((problem, watched), by)

    def rows(self, x: Any, pair: Pair, lead: int) -> Any:
        """The rows of a pair of every array [*b t ...]."""
        layout = self.layout
        return jax.tree.map(lambda a: cut_axis(a, pair.row * layout.rows, layout.rows, lead), x)

    def columns(self, x: Any, pair: Pair, lead: int) -> Any:
        layout = self.layout
        return jax.tree.map(lambda a: cut_axis(a, pair.column * layout.keys, layout.keys, lead), x)

    def put_rows(self, whole: Any, part: Any, pair: Pair, lead: int) -> Any:
        start = pair.row * self.layout.rows
        return jax.tree.map(lambda a, b: put(a, b.astype(a.dtype), start, lead), whole, part)

    def put_columns(self, whole: Any, part: Any, pair: Pair, lead: int) -> Any:
        start = pair.column * self.layout.keys
        return jax.tree.map(lambda a, b: put(a, b.astype(a.dtype), start, lead), whole, part)

    def each(
        self,
        shift: Any,
        state: Any,
        compute: Callable[[Pair, Any, Any, Any], Any],
        operands: Any,
        hidden: Callable[[Pair, Any], Any] | None = None,
        again: bool = False,
    ) -> Any:
        """`state` after all pairs of a visit.

        compute: (pair, mask, state, operands) -> state, for a mask as `part` takes it. hidden: of
        pairs in which there is nothing; the state as it is, if not given. again: computed again
        for a derivative, with nothing saved.
        """
        layout, cases = self.layout, self.cases
        shifts = (shift,) if isinstance(shift, int) else self.shifts[1:]
        met = sorted({int(i) for at in shifts for i in cases.of_shift(layout, at).ravel()})

        def one(state: Any, operands: Any, index: Index) -> Any:
            pair = layout.pair(shift, index)

            def branch(kind: Any) -> Any:
                def run(state: Any, operands: Any) -> Any:
                    if kind is HIDDEN:
                        made = state if hidden is None else hidden(pair, state)
                    else:
                        made = compute(pair, kind, state, operands)
                    return vary(made, self.axes)

                return run

            branches = [branch(cases.kinds[i]) for i in met]
            if len(branches) == 1:
                return branches[0](state, operands)
            which = cases.at(pair.q_chunk, pair.k_chunk)
            which = jnp.searchsorted(jnp.asarray(met), which).astype(jnp.int32)
            return jax.lax.switch(which, branches, state, operands)

        if again:
            one = jax.checkpoint(one, policy=NOTHING, prevent_cse=False)
        state = vary(state, self.axes)
        if layout.parts == 1:
            return one(state, operands, jnp.int32(0) if again else 0)
        step = lambda state, index: (one(state, operands, index), None)
        return jax.lax.scan(step, state, jnp.arange(layout.parts**2, dtype=jnp.int32))[0]

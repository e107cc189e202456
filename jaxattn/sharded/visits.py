"""What a visit computes: the pairs of chunks, each by the backend inside, those that a mask hides
left out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._axes import Index, cut_axis
from jaxattn._axes import put_axis as put
from jaxattn._value import Shift
from jaxattn._varying import vary
from jaxattn.sharded.cases import HIDDEN, Cases
from jaxattn.sharded.parts import Given, Layout, Pair, Tag, Visit, moved

Compute = Callable[..., Any]
NOTHING = jax.checkpoint_policies.nothing_saveable


class Split(NamedTuple):
    """A problem's arrays apart: those that stay and those that travel."""

    structure: Any
    tags: tuple[Tag, ...]

    @staticmethod
    def of(layout: Layout, given: Given) -> "Split":
        return Split(jax.tree.structure(given), tuple(layout.tags(given)))

    @property
    def keys(self) -> tuple[int, ...]:
        """The axis of keys of each array that travels, from the end."""
        return tuple(tag.s for tag in self.tags if tag.travels and tag.s is not None)

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

    def zeros(self, like: Any) -> Any:
        return vary(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), self.axes)

    def part(self, given: Given, pair: Pair, mask: Any) -> Given:
        """The problem of a pair of chunks. mask: in place of the problem's; None for that."""
        layout = self.layout
        problem, watched = self.problem.cut(layout, given, pair)
        one = lambda x: jnp.reshape(x, (1,) * len(problem.sizes.batch))
        start = layout.start_of(pair)
        by = Shift(one(start.q), one(start.k))
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
        visit: Visit,
        sums: Any,
        compute: Compute,
        add: Callable[[Pair, Any, Any], Any],
        operands: Any,
        hidden: Callable[[Pair], Any] | None = None,
        again: bool = False,
    ) -> Any:
        """`sums` with what each pair of a visit has.

        compute: (pair, mask, operands) -> part, for a mask as `part` takes it: what a branch gives
        is copied, so it gives no sums. add: (pair, sums, part) -> sums. hidden: the part of pairs
        in which there is nothing; zeros, if not given. again: computed again for a derivative,
        with nothing saved.
        """
        shifts = [visit.shift] if isinstance(visit.shift, int) else self.shifts[1:]
        met = self.cases.met(self.layout, shifts)
        kinds = [self.cases.kinds[i] for i in met]

        def one(sums: Any, operands: Any, index: Index) -> Any:
            pair = self.layout.pair(visit, index)

            def branch(kind: Any, operands: Any) -> Any:
                if kind is not HIDDEN:
                    made = compute(pair, kind, operands)
                elif hidden is not None:
                    made = hidden(pair)
                else:
                    like = next((other for other in kinds if other is not HIDDEN), None)
                    shapes = partial(compute, pair, like)
                    made = self.zeros(jax.eval_shape(shapes, operands))
                return vary(made, self.axes)

            branches = [partial(branch, kind) for kind in kinds]
            if len(branches) == 1:
                return add(pair, sums, branches[0](operands))
            which = jnp.searchsorted(jnp.asarray(met), self.cases.at(pair)).astype(jnp.int32)
            return add(pair, sums, jax.lax.switch(which, branches, operands))

        if again:
            one = jax.checkpoint(one, policy=NOTHING, prevent_cse=False)
        sums = vary(sums, self.axes)
        if self.layout.pairs == 1:
            return one(sums, operands, jnp.int32(0) if again else 0)
        step = lambda sums, index: (one(sums, operands, index), None)
        return jax.lax.scan(step, sums, jnp.arange(self.layout.pairs, dtype=jnp.int32))[0]

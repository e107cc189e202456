"""A sum over the visits of a ring, and its derivatives, which are such sums themselves.

JAX would differentiate a loop round a ring by keeping what visits each time, which is the whole
sequence. Here the loop is one equation. Its tangent and its transpose are rings again, round which
what visits goes anew, and its tangents or cotangents with it: no device ever keeps more than what
is its own and what visits, whatever the order of the derivative.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe
from jaxtyping import Array

from jaxattn._axes import INDEX
from jaxattn._lowering import replaced
from jaxattn._varying import vary
from jaxattn.sharded.go_round import go_round
from jaxattn.sharded.parts import Layout, Visit

_ring = Primitive("ring_sum")
_ring.multiple_results = True


def ring_sum(
    layout: Layout,
    shifts: Sequence[int],
    visit: Callable[[Visit, Any, Any, Any], tuple[Any, Any]],
    start: Any,
    stay: Any,
    travel: tuple[Any, Sequence[int]],
    home: Sequence[int],
) -> tuple[Any, Any]:
    """(Σ of what stays, Σ of what belongs to the travellers), over the visits.

    visit: (visit, sums, stay, visiting) -> (sums of what stays, with what this visit adds to them;
      what it adds to the visiting), trees of arrays. The shift is 0 for a device's own, else an
      index. It closes over no traced array.
    start: zeros, as the sums of what stays.
    travel: the arrays that visit, and the axis of keys of each, from the end. home: that of each
      array that is added to the visiting.
    """
    visiting, keys = travel
    sums, sum_tree = jax.tree.flatten(start)
    stays, stay_tree = jax.tree.flatten(stay)
    travels, travel_tree = jax.tree.flatten(visiting)
    form = Form(layout, tuple(shifts), len(stays), len(sums), tuple(keys), tuple(home))
    shapes: list[Any] = []

    def flat(own: bool, *args: Any) -> list[Any]:
        (shift, piece), sums, here, there = form.apart(args)
        made = visit(
            Visit(0 if own else shift, piece),
            sum_tree.unflatten(sums),
            stay_tree.unflatten(here),
            travel_tree.unflatten(there),
        )
        shapes[:] = [jax.tree.structure(x) for x in made]
        return jax.tree.leaves(made)

    inputs = form.inputs(map(jax.typeof, sums), (*stays, *travels))
    program = lambda own: jax.make_jaxpr(partial(flat, own))(*inputs)
    programs = program(True), program(False) if len(shifts) > 1 else None
    made = _ring.bind(*stays, *travels, programs=programs, form=form)
    return sum_tree.unflatten(made[: form.ends]), shapes[1].unflatten(made[form.ends :])


class Form(NamedTuple):
    """What of a sum is where. stays: how many of the arguments stay, and are first. ends: how many
    of the results. keys, home: the axis of keys, from the end, of each argument that travels, and
    of each result that comes home."""

    layout: Layout
    shifts: tuple[int, ...]
    stays: int
    ends: int
    keys: tuple[int, ...]
    home: tuple[int, ...]

    def inputs(self, sums: Iterable[Any], args: Sequence[Any]) -> list[Any]:
        """Types of what a program of a visit takes: the shift, the piece, the sums of what stays,
        what stays, and what visits."""
        stay, travel = args[: self.stays], args[self.stays :]
        piece = lambda x, axis: jax.eval_shape(lambda x: self.layout.piece(x, axis, 0), x)
        visiting = map(piece, travel, self.keys)
        return [_INDEX, _INDEX, *sums, *stay, *visiting]

    def apart(self, args: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """(shift and piece, sums, what stays, what visits) of the same."""
        visit, rest = _split(args, 2)
        sums, rest = _split(rest, self.ends)
        return visit, sums, *_split(rest, self.stays)


_INDEX = jax.ShapeDtypeStruct((), INDEX)
Programs = tuple[Any, Any]
"""Of what is a device's own, and of others: each takes `Form.inputs`, and gives the sums of what
stays and what belongs to the visiting."""


def _run(*args: Any, programs: Programs, form: Form) -> list[Any]:
    # Else XLA takes what visited in the forward pass for the same, and keeps all of it until then.
    args = jax.lax.optimization_barrier(args)
    here, there = args[: form.stays], args[form.stays :]

    def visit(at: Visit, sums: Any, visiting: Any) -> tuple[Any, Any]:
        own = isinstance(at.shift, int) and at.shift == 0
        compute: Any = jaxpr_as_fun(programs[0 if own else 1])
        made = compute(*(jnp.asarray(x, INDEX) for x in at), *sums, *here, *visiting)
        return _split(made, form.ends)

    join = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    start, home = _split(_zeros(_results(programs, form)), form.ends)
    travel = list(there), form.keys
    sums, parts = go_round(form.layout, form.shifts, travel, visit, start, (home, form.home), join)
    return [*sums, *parts]


def _zeros(types: Sequence[Any]) -> list[Any]:
    return [vary(jnp.zeros(x.shape, x.dtype), x.mat.varying) for x in types]


def _results(programs: Programs, form: Form) -> list[Any]:
    """Types of the results: a program has those that come home of a piece."""
    made = programs[0].out_avals
    home = zip(made[form.ends :], form.home, strict=True)
    whole = lambda x, axis: x.update(shape=form.layout.whole_shape(x.shape, axis))
    return [*made[: form.ends], *(whole(x, axis) for x, axis in home)]


def _abstract(*avals: Any, programs: Programs, form: Form) -> tuple[Any, Any]:
    return _results(programs, form), programs[0].effects


def _both(make: Callable[[Any], Any], programs: Programs) -> Programs:
    return make(programs[0]), None if programs[1] is None else make(programs[1])


def _split(xs: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    return list(xs[:count]), list(xs[count:])


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """The tangents by a ring of their own, in which the primals go round again."""
    results = _ring.bind(*primals, **params)
    programs, form = params["programs"], params["form"]
    stays = form.stays
    moved = [not isinstance(dx, ad.Zero) for dx in tangents]
    which = [i for i, moves in enumerate(moved) if moves]
    real = [i for i, x in enumerate(results) if jnp.issubdtype(x.dtype, jnp.inexact)]
    still = lambda x: ad.Zero(jax.typeof(x).to_tangent_aval())
    if not which or not real:
        return results, [still(x) for x in results]
    of_stay = [i for i in which if i < stays]
    of_travel = [i for i in which if i >= stays]
    n = len(primals)

    def make(program: Any) -> Any:
        def moves(*args: Any) -> list[Any]:
            visit, dsums, here, there = along_too.apart(args)
            (xs, dxs), (ys, dys) = _split(here, stays), _split(there, n - stays)
            every = [*xs, *ys]

            def along(sums: Any, *some: Any) -> list[Any]:
                sums = replaced(nothing, of_sums, sums)
                made: Any = jaxpr_as_fun(program)(*visit, *sums, *replaced(every, which, some))
                return [made[i] for i in real]

            nothing = _zeros(sums)
            given = [nothing[i] for i in of_sums], *(every[i] for i in which)
            return jax.jvp(along, given, (dsums, *dxs, *dys))[1]

        return jax.make_jaxpr(moves)(*along_too.inputs(dsums, args))

    sums = programs[0].out_avals[: form.ends]
    of_sums = [i for i in real if i < form.ends]
    dsums = [sums[i] for i in of_sums]

    here = [*primals[:stays], *(tangents[i] for i in of_stay)]
    there = [*primals[stays:], *(tangents[i] for i in of_travel)]
    args = *here, *there
    along_too = form._replace(
        stays=len(here),
        ends=len(of_sums),
        keys=(*form.keys, *(form.keys[i - stays] for i in of_travel)),
        home=tuple(form.home[i - form.ends] for i in real if i >= form.ends),
    )
    made = iter(_ring.bind(*args, programs=_both(make, programs), form=along_too))
    return results, [next(made) if i in real else still(x) for i, x in enumerate(results)]


def _transpose(cotangents: Any, *args: Any, **params: Any) -> list[Any]:
    """Cotangents of what travels go round with it; those of what stays are summed where it is."""
    form: Form = params["form"]
    stays, ends = form.stays, form.ends
    asked = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
    known = [i for i in range(len(args)) if i not in asked]
    given = [i for i, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero)]
    if not given:
        return [None] * len(args)
    known_here = [args[i] for i in known if i < stays]
    known_there = [args[i] for i in known if i >= stays]
    cts_here = [cotangents[i] for i in given if i < ends]
    cts_there = [cotangents[i] for i in given if i >= ends]

    def make(program: Any) -> Any:
        def pull(*every: Any) -> list[Any]:
            visit, sums, here, there = back.apart(every)
            xs, cts = _split(here, len(known_here))
            ys, more = _split(there, len(known_there))
            fixed = replaced([None] * len(args), known, [*xs, *ys])
            nothing = _zeros(program.out_avals[:ends])

            def along(*some: Any) -> list[Any]:
                made: Any = jaxpr_as_fun(program)(*visit, *nothing, *replaced(fixed, asked, some))
                return [made[i] for i in given]

            pulled = list(_pull(along, [types[i] for i in asked], [*cts, *more]))
            added = [x + y for x, y in zip(sums, pulled, strict=False)]
            return [*added, *pulled[len(sums) :]]

        types = program.in_avals[2 + ends :]
        return jax.make_jaxpr(pull)(*back.inputs([types[i] for i in asked if i < stays], every))

    every = *known_here, *cts_here, *known_there, *cts_there
    back = form._replace(
        stays=len(known_here) + len(cts_here),
        ends=sum(i < stays for i in asked),
        keys=(
            *(form.keys[i - stays] for i in known if i >= stays),
            *(form.home[i - ends] for i in given if i >= ends),
        ),
        home=tuple(form.keys[i - stays] for i in asked if i >= stays),
    )
    made = _ring.bind(*every, programs=_both(make, params["programs"]), form=back)
    return replaced([None] * len(args), asked, made)


def _pull(along: Callable[..., Any], shapes: Sequence[Any], cotangents: list[Any]) -> Any:
    """The transpose of a linear function, without the results that `jax.vjp` makes on the way."""
    zeros = [vary(jnp.zeros(x.shape, x.dtype), x.mat.varying) for x in shapes]
    pulled = lambda *cts: jax.vjp(along, *zeros)[1](list(cts))
    closed = jax.make_jaxpr(pulled)(*cotangents)
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(shapes), instantiate=True)
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*cotangents)


def _batch(args: Any, dims: Any, **params: Any) -> tuple[list[Array], list[int]]:
    args = [x if at is None else jnp.moveaxis(x, at, 0) for x, at in zip(args, dims, strict=True)]
    form: Form = params["form"]
    (size,) = {x.shape[0] for x, at in zip(args, dims, strict=True) if at is not None}
    sums = [x.update(shape=(size, *x.shape)) for x in params["programs"][0].out_avals[: form.ends]]
    axes = None, None, *(0 for _ in sums), *(None if at is None else 0 for at in dims)

    def make(program: Any) -> Any:
        whole: Callable[..., Any] = jaxpr_as_fun(program)
        return jax.make_jaxpr(jax.vmap(whole, axes))(*form.inputs(sums, args))

    made = _ring.bind(*args, **params | {"programs": _both(make, params["programs"])})
    return made, [0] * len(made)


_ring.def_impl(_run)
_ring.def_effectful_abstract_eval(_abstract)
mlir.register_lowering(_ring, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_ring] = _jvp
ad.primitive_transposes[_ring] = _transpose
batching.primitive_batchers[_ring] = _batch

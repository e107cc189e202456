"""A sum over the visits of a ring, and its derivatives, which are such sums themselves.

JAX would differentiate a loop round a ring by keeping what visits each time, which is the whole
sequence. Here the loop is one equation. Its tangent and its transpose are rings again, round which
what visits goes anew, and its tangents or cotangents with it: no device ever keeps more than what
is its own and what visits, whatever the order of the derivative.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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

_ring = Primitive("ring_sum")
_ring.multiple_results = True


def ring_sum(
    axis: str,
    shifts: Sequence[int],
    visit: Callable[[Any, Any, Any], tuple[Any, Any]],
    stay: Any,
    travel: Any,
) -> tuple[Any, Any]:
    """(Σ of what stays, Σ of what belongs to the travellers), over the visits.

    visit: (shift, stay, visiting) -> (added to what stays, added to the visiting), trees of arrays.
      The shift is 0 for a device's own, else an index. It closes over no traced array.
    """
    stays, stay_tree = jax.tree.flatten(stay)
    travels, travel_tree = jax.tree.flatten(travel)
    shapes: list[Any] = []

    def flat(own: bool, shift: Any, *args: Any) -> list[Any]:
        here, there = args[: len(stays)], args[len(stays) :]
        made = visit(
            0 if own else shift,
            jax.tree.unflatten(stay_tree, here),
            jax.tree.unflatten(travel_tree, there),
        )
        shapes[:] = [jax.tree.structure(x) for x in made]
        return jax.tree.leaves(made)

    def program(own: bool) -> Any:
        return jax.make_jaxpr(partial(flat, own))(_SHIFT, *stays, *travels)

    programs = program(True), program(False) if len(shifts) > 1 else None
    ends = shapes[0].num_leaves
    made = _bind((*stays, *travels), programs, axis, tuple(shifts), len(stays), ends, 0)
    return shapes[0].unflatten(made[:ends]), shapes[1].unflatten(made[ends:])


_SHIFT = jax.ShapeDtypeStruct((), INDEX)
Programs = tuple[Any, Any]


def _bind(
    args: Any,
    programs: Programs,
    axis: str,
    shifts: tuple[int, ...],
    stays: int,
    ends: int,
    linear: int,
) -> list[Any]:
    """
    programs: of a device's own, and of others: of (shift, *stay, *travel). stays: how many of the
    arguments stay. ends: how many of the results do. linear: in how many arguments it is linear,
    the last of those that stay, and the last that travel, as `_linear` has them.
    """
    return _ring.bind(
        *args,
        programs=programs,
        axis=axis,
        shifts=shifts,
        stays=stays,
        ends=ends,
        linear=linear,
    )


def _run(
    *args: Any, programs: Programs, axis: str, shifts: Any, stays: int, ends: int, linear: int
) -> list[Any]:
    del linear
    # Else XLA takes what visited in the forward pass for the same, and keeps all of it until then.
    args = jax.lax.optimization_barrier(args)
    here, there = args[:stays], args[stays:]

    def visit(shift: Any, sums: Any, visiting: Any) -> tuple[Any, Any]:
        own = isinstance(shift, int) and shift == 0
        compute: Any = jaxpr_as_fun(programs[0 if own else 1])
        made = compute(jnp.asarray(shift, INDEX), *here, *visiting)
        added = made[:ends]
        sums = added if sums is None else [a + b for a, b in zip(sums, added, strict=True)]
        return sums, made[ends:]

    join = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    sums, home = go_round(axis, shifts, list(there), visit, None, join)
    return [*sums, *home]


def _abstract(*avals: Any, programs: Programs, **_: Any) -> tuple[Any, Any]:
    return programs[0].out_avals, programs[0].effects


def _both(make: Callable[[Any], Any], programs: Programs) -> Programs:
    return make(programs[0]), None if programs[1] is None else make(programs[1])


def _split(xs: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    return list(xs[:count]), list(xs[count:])


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """The tangents by a ring of their own, in which the primals go round again."""
    results = _ring.bind(*primals, **params)
    programs, stays = params["programs"], params["stays"]
    moved = [not isinstance(dx, ad.Zero) for dx in tangents]
    which = [i for i, moves in enumerate(moved) if moves]
    real = [i for i, x in enumerate(results) if jnp.issubdtype(x.dtype, jnp.inexact)]
    still = lambda x: ad.Zero(jax.typeof(x).to_tangent_aval())
    if not which or not real:
        return results, [still(x) for x in results]
    of_stay = [i for i in which if i < stays]
    of_travel = [i for i in which if i >= stays]
    n, more = len(primals), len(of_stay)

    def make(program: Any) -> Any:
        def moves(shift: Any, *args: Any) -> list[Any]:
            here, there = _split(args, stays + more)
            (xs, dxs), (ys, dys) = _split(here, stays), _split(there, n - stays)
            every = [*xs, *ys]

            def along(*some: Any) -> list[Any]:
                made: Any = jaxpr_as_fun(program)(shift, *replaced(every, which, some))
                return [made[i] for i in real]

            return jax.jvp(along, [every[i] for i in which], [*dxs, *dys])[1]

        here = [*primals[:stays], *(tangents[i] for i in of_stay)]
        there = [*primals[stays:], *(tangents[i] for i in of_travel)]
        return jax.make_jaxpr(moves)(_SHIFT, *here, *there)

    here = [*primals[:stays], *(tangents[i] for i in of_stay)]
    there = [*primals[stays:], *(tangents[i] for i in of_travel)]
    ends = sum(i < params["ends"] for i in real)
    made = iter(
        _bind(
            (*here, *there),
            _both(make, programs),
            params["axis"],
            params["shifts"],
            len(here),
            ends,
            len(which),
        )
    )
    return results, [next(made) if i in real else still(x) for i, x in enumerate(results)]


def _transpose(cotangents: Any, *args: Any, **params: Any) -> list[Any]:
    """Cotangents of what travels go round with it; those of what stays are summed where it is."""
    stays, ends = params["stays"], params["ends"]
    asked = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
    known = [i for i in range(len(args)) if i not in asked]
    given = [i for i, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero)]
    if not given:
        return [None] * len(args)
    shapes = [args[i].aval for i in asked]
    known_here = [args[i] for i in known if i < stays]
    known_there = [args[i] for i in known if i >= stays]
    cts_here = [cotangents[i] for i in given if i < ends]
    cts_there = [cotangents[i] for i in given if i >= ends]

    def make(program: Any) -> Any:
        def pull(shift: Any, *every: Any) -> list[Any]:
            here, there = _split(every, len(known_here) + len(cts_here))
            xs, cts = _split(here, len(known_here))
            ys, more = _split(there, len(known_there))
            fixed = replaced([None] * len(args), known, [*xs, *ys])

            def along(*some: Any) -> list[Any]:
                made: Any = jaxpr_as_fun(program)(shift, *replaced(fixed, asked, some))
                return [made[i] for i in given]

            return list(_pull(along, shapes, [*cts, *more]))

        every = *known_here, *cts_here, *known_there, *cts_there
        return jax.make_jaxpr(pull)(_SHIFT, *every)

    made = _bind(
        (*known_here, *cts_here, *known_there, *cts_there),
        _both(make, params["programs"]),
        params["axis"],
        params["shifts"],
        len(known_here) + len(cts_here),
        sum(i < stays for i in asked),
        len(cts_here) + len(cts_there),
    )
    return replaced([None] * len(args), asked, made)


def _pull(along: Callable[..., Any], shapes: Sequence[Any], cotangents: list[Any]) -> Any:
    """The transpose of a linear function, without the results that `jax.vjp` makes on the way."""
    zeros = [vary(jnp.zeros(x.shape, x.dtype), x.mat.varying) for x in shapes]
    pulled = lambda *cts: jax.vjp(along, *zeros)[1](list(cts))
    closed = jax.make_jaxpr(pulled)(*cotangents)
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(shapes), instantiate=True)
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*cotangents)


def _batch(args: Any, dims: Any, **params: Any) -> tuple[list[Array], list[int]]:
    axes = None, *dims

    def make(program: Any) -> Any:
        whole: Callable[..., Any] = jaxpr_as_fun(program)
        return jax.make_jaxpr(jax.vmap(whole, axes))(_SHIFT, *args)

    made = _ring.bind(*args, **params | {"programs": _both(make, params["programs"])})
    return made, [0] * len(made)


_ring.def_impl(_run)
_ring.def_effectful_abstract_eval(_abstract)
mlir.register_lowering(_ring, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_ring] = _jvp
ad.primitive_transposes[_ring] = _transpose
batching.primitive_batchers[_ring] = _batch

"""Functions of the user's own, asked about one pair of a query and a key at a time.

A function is traced once, on scalars: what it closes over then shows as arrays, which become
operands of the computation, so that they get gradients and may themselves be traced. Mapped over
the rows and columns of a tile it is ordinary array code, for tiles of any shape.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Int

from jaxattn._axes import INDEX, accumulator
from jaxattn._function import Source
from jaxattn._jaxpr import JIT, bind, opened, run
from jaxattn._value import Fixed, Place, Shift, Value
from jaxattn._varying import evaluate, hoist, vary, varying
from jaxattn.positions import BoundPositions, Frame

POSITION: Any = jax.ShapeDtypeStruct((), INDEX)


# What to write in place of Python's and NumPy's own, by JAX's error. A subclass comes first.
REMEDIES: dict[type[Exception], str] = {
    jax.errors.TracerBoolConversionError: (
        "In place of `and`, `or` and `not` write &, | and ~, each side in parentheses; of `a <= b "
        "<= c`, (a <= b) & (b <= c); of `x if condition else y`, jnp.where(condition, x, y)"
    ),
    jax.errors.TracerArrayConversionError: (
        "In place of `table[at.k]`, for an array of NumPy, write jnp.asarray(table)[at.k]; of "
        "functions of numpy, those of jax.numpy"
    ),
    jax.errors.TracerIntegerConversionError: (
        "In place of `table[at.k]`, for a list, write jnp.asarray(table)[at.k]; a range or a shape "
        "cannot depend on them"
    ),
    jax.errors.ConcretizationTypeError: (
        "In place of `int(x)` and `float(x)` write x.astype(jnp.int32) and x.astype(jnp.float32); "
        "of functions of math, those of jax.numpy"
    ),
}


class At(NamedTuple):
    """A pair of a query and a key, as a user's function sees it: integers.

    batch: an index for each batch axis. head: of the queries. q, k: their positions, which are
    those in the arrays, from 0 on, if the call does not say otherwise.
    """

    batch: tuple[Int[Array, ""], ...]
    head: Int[Array, ""]
    q: Int[Array, ""]
    k: Int[Array, ""]


class Program(Fixed):
    """What was traced, of the arrays that it captures and then of its arguments. Equal to another
    that came from the same function and reads the same."""

    def __init__(self, source: Callable[..., Any], jaxpr: Any, dtypes: tuple[Any, ...]) -> None:
        self.source, self.jaxpr, self.dtypes = Source(source), jaxpr, dtypes
        self._text = str(jaxpr)

    def __repr__(self) -> str:
        return repr(self.source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._what == other._what

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def _what(self) -> tuple[Any, ...]:
        return self._text, self.dtypes, self.source

    @property
    def reads_head(self) -> bool:
        """Whether the result may depend on the head."""
        return self._reads(self.jaxpr.invars[-3])

    @property
    def reads_positions(self) -> bool:
        """Whether the result may depend on the positions of the query and the key."""
        return any(map(self._reads, self.jaxpr.invars[-2:]))

    def _reads(self, var: Any) -> bool:
        return any(var is x for eqn in self.jaxpr.eqns for x in eqn.invars)


@dataclass(frozen=True, eq=False, repr=False)
class Traced(Value):
    """A function that is traced and bound to a call.

    captured: the arrays it closes over, in at least float32 where they are floating point: their
      gradients are summed tile by tile. positions: None where it reads none. head, batch: what its
    indices of heads and batch elements count from; () for zeros.
    """

    program: Program
    captured: tuple[Array, ...]
    positions: BoundPositions | None
    head: int | Int[Array, "*#b"] = 0
    batch: tuple[int | Int[Array, ""], ...] = ()

    def moved(self, by: Shift) -> "Traced":
        positions = None if self.positions is None else self.positions.moved(by)
        batch = by.batch
        if self.batch and by.batch:
            batch = tuple(a + b for a, b in zip(self.batch, by.batch, strict=True))
        head, batch = self.head + by.head, batch or self.batch
        return Traced(self.program, self.captured, positions, head, batch)

    def over(self, place: Place, *tiles: Array) -> Array:
        """The function of every pair of a tile, with one number of each of `tiles`."""
        program = self.program
        pairs = zip(self.captured, program.dtypes, strict=True)
        captured = [x.astype(dtype) for x, dtype in pairs]
        whole: Callable[..., Any] = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, ()))
        # Inside and outside `jax.shard_map` arrays vary otherwise, and the mesh is another one.
        where = self.positions, self.head, self.batch, place
        axes = varying(captured, tiles, where)
        if axes or not jax.sharding.get_abstract_mesh().empty:
            whole = lambda *args: evaluate(program.jaxpr, (), args, axes)
        as_position = lambda x: vary(jnp.asarray(x, INDEX), axes)
        if self.batch or not (isinstance(self.head, int) and self.head == 0):
            place = place.moved(Shift(0, 0, self.head, self.batch))
        batch, head = [as_position(i) for i in place.batch], as_position(place.head)

        def one(q: Array, k: Array, *scalars: Array) -> Array:
            return whole(*captured, *scalars, *batch, head, q, k)[0]

        at = BoundPositions() if self.positions is None else self.positions
        if not isinstance(place, Place):  # of registers, where each number has its own
            of_q, of_k = map(program._reads, program.jaxpr.invars[-2:])
            q = place.each_q(at.q(place)) if of_q else jnp.zeros((), INDEX)
            k = place.each_k(at.k(place)) if of_k else jnp.zeros((), INDEX)
            if not (of_q or of_k or tiles):
                return jnp.broadcast_to(one(q, k), place.shape)
            each = 0 if of_q else None, 0 if of_k else None, *(0,) * len(tiles)
            return jax.vmap(jax.vmap(one, each), each)(q, k, *tiles)
        q, k = as_position(at.q(place)), as_position(at.k(place))
        ways = [(None, 0), (0, None)]  # the inner axis, then the outer
        inner, outer = reversed(ways) if place.keys_first else ways
        every = (0,) * len(tiles)
        return jax.vmap(jax.vmap(one, (*inner, *every)), (*outer, *every))(q, k, *tiles)


def trace(
    function: Callable[..., Any],
    frame: Frame,
    *scalars: Any,
    what: str,
    check: Callable[[Any], None],
) -> Traced:
    """function(*scalars, at), traced and bound. check: of its result, raises for a dtype that
    is not wanted.

    Raises:
      ValueError: the result is not one number; the call does not tell the positions it reads.
    """
    sizes = frame.sizes
    at = At((POSITION,) * len(sizes.batch), POSITION, POSITION, POSITION)
    scalars_at: Any = (*scalars, at)
    if sizes.varying:
        scalars_at = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), scalars_at)
        scalars_at = vary(scalars_at, sizes.varying)
    try:
        # A function of its own: JAX remembers what another one closed over when it was last traced.
        fresh = lambda *scalars_at: function(*scalars_at)
        closed, result = jax.make_jaxpr(fresh, return_shape=True)(*scalars_at)
    except Exception as error:
        error.add_note(f"{what} is asked about one pair at a time: at.q and at.k are scalars")
        for kind, remedy in REMEDIES.items():
            if isinstance(error, kind):
                error.add_note(f"They stand for every pair while it is traced. {remedy}")
                break
        raise
    leaves = jax.tree.leaves(result)
    if len(leaves) != 1 or leaves[0].shape != ():
        raise ValueError(
            f"{what} is asked about one pair at a time and returns one number, got "
            f"{[leaf.shape for leaf in leaves]} from {function!r}; use at.q and at.k as scalars, "
            f"and index arrays with them"
        )
    check(leaves[0])
    if any(_calls(closed.jaxpr)):
        closed = jax.make_jaxpr(partial(_inlined, closed))(*jax.tree.leaves(scalars_at))
    used, _ = dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    jaxpr, captured = opened(used), [*map(jnp.asarray, closed.consts)]
    if sizes.varying:
        jaxpr, captured = hoist(jaxpr, captured)
    program = Program(function, jaxpr, tuple(x.dtype for x in captured))
    positions = frame.where(what) if program.reads_positions else None
    return Traced(program, tuple(map(_wide, captured)), positions)


def _calls(jaxpr: Any) -> Iterator[ClosedJaxpr]:
    """What `jaxpr` calls of compiled functions that hold arrays of their own."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in JIT:
            inner = eqn.params["jaxpr"]
            yield from [inner] if inner.consts else _calls(inner.jaxpr)


def _inlined(closed: ClosedJaxpr, *args: Any) -> list[Any]:
    """`closed`, and in it all that it calls: then every array shows."""

    def apply(eqn: Any, operands: list[Any]) -> Any:
        is_call = eqn.primitive.name in JIT
        return _inlined(eqn.params["jaxpr"], *operands) if is_call else bind(eqn, operands)

    return run(closed.jaxpr, closed.consts, args, apply)


def _wide(x: Array) -> Array:
    return x.astype(accumulator(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x

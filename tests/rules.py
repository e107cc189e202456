"""Shapes, and masks twice: as the package's values and as dense booleans from the oracle."""

# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import oracle
from numpy import ndarray

import jaxattn as ja


class Shape(NamedTuple):
    """See the axis key: batch, query and key positions, query and key/value heads, features.

    positions: what the package is given.
    """

    batch: tuple[int, ...]
    t: int
    s: int
    h: int
    n: int
    d: int
    e: int
    positions: Any = None

    def at(self, q: Any, k: Any = 0) -> "Shape":
        """The same with positions: starts, or a position for every token; q may be END."""
        return self._replace(positions=ja.Positions(q, k))

    @property
    def at_k(self):
        """[*b s], or [s]."""
        return self._each(0 if self.positions is None else self.positions.k, self.s)

    @property
    def at_q(self):
        """[*b t], or [t]."""
        q, k = (0, 0) if self.positions is None else (self.positions.q, self.positions.k)
        if q is ja.END and np.ndim(k):
            return self.at_k[..., self.s - self.t :]
        return self._each(k + self.s - self.t if q is ja.END else q, self.t)

    def _each(self, given, size):
        shape = np.shape(given)
        if len(shape) > len(self.batch) and shape[-1] == 1:
            return oracle.count(np.asarray(given)[..., 0], size)
        return np.asarray(given) if shape[-1:] == (size,) else oracle.count(given, size)

    @property
    def q(self):
        return (*self.batch, self.t, self.h, self.d)

    @property
    def k(self):
        return (*self.batch, self.s, self.n, self.d)

    @property
    def v(self):
        return (*self.batch, self.s, self.n, self.e)

    @property
    def out(self):
        return (*self.batch, self.t, self.h, self.e)

    @property
    def scores(self):
        return (*self.batch, self.h, self.t, self.s)


class Masks(NamedTuple):
    """The same rule twice: for the package, and as booleans that broadcast to [*b h t s]."""

    mask: Any
    allowed: ndarray

    def __and__(self, other: "Masks") -> "Masks":
        return Masks(self.mask & other.mask, np.logical_and(self.allowed, other.allowed))

    def __or__(self, other: "Masks") -> "Masks":
        return Masks(self.mask | other.mask, np.logical_or(self.allowed, other.allowed))

    def __invert__(self) -> "Masks":
        return Masks(~self.mask, np.logical_not(self.allowed))


Build = Callable[[Shape, np.random.Generator], Masks]


def everything(shape, rng):
    return Masks(ja.EVERYTHING, np.ones((1, 1, 1), bool))


def causal(offset: int = 0) -> Build:
    def build(shape, rng):
        return Masks(ja.Causal(offset), oracle.near(shape.at_q, shape.at_k, None, offset))

    return build


def window(left, right=0, offset: int = 0) -> Build:
    def build(shape, rng):
        low = None if left is None else offset - left
        high = None if right is None else offset + right
        mask = ja.Window(left, right, offset)
        return Masks(mask, oracle.near(shape.at_q, shape.at_k, low, high))

    return build


def lengths(q=None, k=None) -> Build:
    def build(shape, rng):
        return Masks(ja.Lengths(q=q, k=k), oracle.lengths(shape.t, shape.s, q, k))

    return build


def packed(shape, rng):
    """Three documents of random lengths in every row of the batch, then padding."""
    ends = np.sort(rng.integers(1, shape.t, (*shape.batch, 3)), axis=-1)
    ids = (np.arange(shape.t) >= ends[..., None]).sum(-2)
    ids = np.where(ids == 3, -1, ids).astype(np.int32)
    return Masks(ja.Segments(ids), oracle.segments(ids))


def scattered(shape, rng):
    """Ids in no order, padding in between, other ids for the keys than for the queries."""
    q_ids, k_ids = (
        rng.integers(-1, 4, (*shape.batch, length)).astype(np.int32)
        for length in (shape.t, shape.s)
    )
    return Masks(ja.Segments(q_ids, k_ids), oracle.segments(q_ids, k_ids))


def dense(axes: str, share=0.6) -> Build:
    """Random booleans with the axes named: "ts" is [t s], "b1ts" is [*b 1 t s].

    The query in the middle sees nothing where each query has a choice of keys.
    """

    def build(shape, rng):
        sizes = {"h": (shape.h,), "t": (shape.t,), "s": (shape.s,), "b": shape.batch, "1": (1,)}
        allowed = rng.random(sum((sizes[axis] for axis in axes), ())) < share
        if axes.endswith("ts"):
            allowed[..., shape.t // 2, :] = False
        return Masks(ja.Dense(allowed), allowed)

    return build


def prefix(length) -> Build:
    def build(shape, rng):
        return Masks(ja.PrefixLM(length), oracle.prefix(shape.at_q, shape.at_k, length))

    return build


def ring(shape: Shape, roll=5) -> Shape:
    """The keys are slots of a ring buffer: in rolled order, some empty, which is far away."""
    k = np.arange(shape.s)
    k = np.roll(np.where(k < shape.s - 3, k, 2**29), roll)
    q = np.arange(shape.t) + shape.s - shape.t - 3
    every = (None,) * len(shape.batch)  # [t] might be a start for each element of the batch
    return shape.at(q[every], k[every])


def shuffled(shape: Shape) -> Shape:
    """In no order, another one in each element of the batch; some positions twice."""
    rng = np.random.default_rng(5)
    order = lambda n: rng.integers(-9, max(shape.t, shape.s), (*shape.batch, n)).astype(np.int32)
    return shape.at(order(shape.t), order(shape.s))


def strided(step=3) -> Build:
    """A function of the positions, the head and the batch element."""

    def build(shape, rng):
        def seen(at):
            return (at.q + at.head + sum(at.batch)) % step == at.k % step

        b = sum(np.indices(shape.batch), np.zeros(shape.batch, int))[..., None, None, None]
        head, t = np.arange(shape.h)[:, None, None], shape.at_q[..., None, :, None]
        return Masks(ja.Where(seen), (t + head + b) % step == shape.at_k[..., None, None, :] % step)

    return build


def looked_up(shape, rng):
    """A function that closes over an array for the queries and one for each head's keys."""
    of_q, of_k = rng.integers(0, 3, 999), rng.integers(0, 3, (shape.h, 999))
    table_q, table_k = jnp.asarray(of_q), jnp.asarray(of_k)
    mask = ja.Where(lambda at: table_q[at.q % 999] <= table_k[at.head, at.k % 999])
    heads = np.arange(shape.h)[:, None, None]
    q, k = (x % 999 for x in (shape.at_q[..., None, :, None], shape.at_k[..., None, None, :]))
    return Masks(mask, of_q[q] <= of_k[heads, k])


def inverse(build: Build) -> Build:
    return lambda shape, rng: ~build(shape, rng)


def either(*builds: Build) -> Build:
    def build(shape, rng):
        first, *rest = (one(shape, rng) for one in builds)
        for other in rest:
            first = first | other
        return first

    return build


def both(*builds: Build) -> Build:
    def build(shape, rng):
        first, *rest = (one(shape, rng) for one in builds)
        for other in rest:
            first = first & other
        return first

    return build

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
    """See the axis key: batch, query and key positions, query and key/value heads, features."""

    batch: tuple[int, ...]
    t: int
    s: int
    h: int
    n: int
    d: int
    e: int

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


def causal(offset: Any = None) -> Build:
    def build(shape, rng):
        given = resolved(offset, shape)
        return Masks(ja.Causal(offset), oracle.causal(shape.t, shape.s, given))

    return build


def window(left, right=0, offset: Any = None) -> Build:
    def build(shape, rng):
        given = resolved(offset, shape)
        mask = ja.Window(left, right, offset)
        return Masks(mask, oracle.window(shape.t, shape.s, left, right, given))

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


def prefix(length, offset: Any = 0) -> Build:
    def build(shape, rng):
        given = resolved(offset, shape)
        return Masks(ja.PrefixLM(length, offset), oracle.prefix(shape.t, shape.s, length, given))

    return build


def positions(left=None, right: Any = 0, roll=5) -> Build:
    """A ring buffer in each row of the batch: keys in rolled order, the last few places empty."""

    def build(shape, rng):
        q = np.broadcast_to(np.arange(shape.t) + shape.s - shape.t - 3, (*shape.batch, shape.t))
        k = np.arange(shape.s)
        k = np.roll(np.where(k < shape.s - 3, k, -1), roll)
        q, k = q.astype(np.int32), k.astype(np.int32)
        return Masks(ja.Positions(q, k, left, right), oracle.positions(q, k, left, right))

    return build


def strided(step=3) -> Build:
    """A function of the positions, the head and the batch element."""

    def build(shape, rng):
        def seen(at):
            return (at.q + at.head + sum(at.batch)) % step == at.k % step

        b = sum(np.indices(shape.batch), np.zeros(shape.batch, int))[..., None, None, None]
        head, t = np.arange(shape.h)[:, None, None], np.arange(shape.t)[:, None]
        return Masks(ja.Where(seen), (t + head + b) % step == np.arange(shape.s) % step)

    return build


def looked_up(shape, rng):
    """A function that closes over an array for the queries and one for each head's keys."""
    of_q, of_k = rng.integers(0, 3, shape.t), rng.integers(0, 3, (shape.h, shape.s))
    table_q, table_k = jnp.asarray(of_q), jnp.asarray(of_k)
    mask = ja.Where(lambda at: table_q[at.q] <= table_k[at.head, at.k])
    return Masks(mask, of_q[:, None] <= of_k[:, None, :])


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


def resolved(offset, shape):
    return shape.s - shape.t if offset is ja.END else 0 if offset is None else offset

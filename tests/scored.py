"""Scores twice: as the package's values and as the oracle's items, made from the same arrays."""

# pyright: reportArgumentType=false

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import oracle
from numpy import ndarray
from oracle import scores as theirs
from rules import Shape

import jaxattn as ja


class Scored(NamedTuple):
    """arrays: all that may be differentiated.

    make, items: from those arrays, the package's scores and the oracle's items.
    """

    arrays: tuple[ndarray, ...]
    make: Callable[[Sequence[Any]], list[Any]]
    items: Callable[[Sequence[Any]], list[Any]]


Build = Callable[[Shape, np.random.Generator, Any], Scored]


def chain(*builds: Build) -> Build:
    """All of them, from left to right."""

    def build(shape, rng, dtype):
        parts = [one(shape, rng, dtype) for one in builds]
        ends = np.cumsum([0, *(len(part.arrays) for part in parts)])

        def each(name):
            def of(arrays):
                cuts = zip(parts, ends[:-1], ends[1:], strict=True)
                return [x for part, a, b in cuts for x in getattr(part, name)(arrays[a:b])]

            return of

        return Scored(sum((part.arrays for part in parts), ()), each("make"), each("items"))

    return build


def bias(axes: str, hidden=0.0) -> Build:
    """Normal numbers with the axes named, as in cases.dense; a share of them -inf."""

    def build(shape, rng, dtype):
        sizes = {"h": (shape.h,), "t": (shape.t,), "s": (shape.s,), "b": shape.batch, "1": (1,)}
        array = rng.standard_normal(sum((sizes[axis] for axis in axes), ()))
        array[rng.random(array.shape) < hidden] = -np.inf
        return Scored(
            (array.astype(dtype),), lambda x: [ja.Bias(x[0])], lambda x: [theirs.Bias(x[0])]
        )

    return build


def alibi(learnt=True) -> Build:
    def build(shape, rng, dtype):
        at = shape.at_q, shape.at_k
        slopes = 2.0 ** -np.arange(1, shape.h + 1)
        if learnt:
            arrays = (slopes.astype(oracle.accumulator(dtype)),)
            return Scored(arrays, lambda x: [ja.ALiBi(x[0])], lambda x: [theirs.alibi(x[0], *at)])
        standard = theirs.alibi(ja.alibi_slopes(shape.h), *at)
        added = standard.apply(np.zeros(shape.scores))
        return Scored((), lambda x: [ja.ALiBi()], lambda x: [theirs.Fixed(added)])

    return build


def relative(bidirectional=True, buckets=8, max_distance=11) -> Build:
    def build(shape, rng, dtype):
        table = rng.standard_normal((buckets, shape.h)).astype(oracle.accumulator(dtype))
        make = lambda x: [ja.RelativeBias(x[0], bidirectional, max_distance)]
        bucket = lambda away: bucket_of(away, bidirectional, buckets, max_distance)
        items = lambda x: [theirs.relative(x[0], shape.at_q, shape.at_k, bucket)]
        return Scored((table,), make, items)

    return build


def bucket_of(away: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """T5's bucket of a key `away` positions after the query, as its code has it.

    Source: github.com/google-research/text-to-text-transfer-transformer, and Mesh TensorFlow's
    transformer_layers.py, _relative_position_bucket.
    """
    first, n = 0, -away
    if bidirectional:
        buckets //= 2
        first = buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return first + n
    f32 = np.float32
    growth = np.log(f32(n) / f32(exact)) / f32(np.log(max_distance / exact)) * f32(buckets - exact)
    return first + min(exact + int(growth), buckets - 1)


def cap(size=2.0) -> Build:
    def build(shape, rng, dtype):
        array = np.asarray(size, oracle.accumulator(dtype))
        return Scored((array,), lambda x: [ja.SoftCap(x[0])], lambda x: [theirs.Cap(x[0])])

    return build


def function(what: str) -> Build:
    """A user's function that closes over an array, and indexes it with what it is told.

    Positions can be far apart, as empty slots of a ring are: the index goes around.
    """

    def build(shape, rng, dtype):
        q, k = shape.at_q[..., None, :, None], shape.at_k[..., None, None, :]
        around = shape.t + shape.s
        heads = np.arange(shape.h).reshape(-1, 1, 1)
        elements = (shape.batch or (1,))[0]
        first = np.arange(elements)[(..., *[None] * (len(shape.batch) + 2))]
        sizes, index, score, item = {
            "add-by-head-and-key": (
                (shape.h, around),
                (heads, k % around),
                lambda x: lambda logit, at: logit + x[0][at.head, at.k % around],
                theirs.Lookup,
            ),
            "add-by-distance": (
                (around,),
                ((q - k) % around,),
                lambda x: lambda logit, at: logit + x[0][(at.q - at.k) % around],
                theirs.Lookup,
            ),
            "times-by-batch-and-query": (
                (elements, around),
                (first, q % around),
                lambda x: (
                    lambda logit, at: logit * x[0][at.batch[0] if at.batch else 0, at.q % around]
                ),
                theirs.Gate,
            ),
        }[what]
        array = rng.standard_normal(sizes).astype(oracle.accumulator(dtype))
        return Scored((array,), lambda x: [score(x)], lambda x: [item(x[0], index)])

    return build


def cap_of_each_head(shape, rng, dtype) -> Scored:
    caps = (1 + rng.random(shape.h)).astype(oracle.accumulator(dtype))

    def make(x):
        return [lambda logit, at: x[0][at.head] * jnp.tanh(logit / x[0][at.head])]

    return Scored((caps,), make, lambda x: [PerHeadCap(np.asarray(x[0])[:, None, None])])


class PerHeadCap(theirs.Cap):
    """A cap [h 1 1] whose gradient is [h]."""

    def parts(self, x):
        ((part, size, collect),) = super().parts(x)
        return [(part, size, lambda terms: collect(terms)[:, 0, 0])]


def nothing(shape, rng, dtype) -> Scored:
    return Scored((), lambda x: [], lambda x: [])

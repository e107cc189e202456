"""What scores do to logits, in NumPy: each with its derivative by the logit and by its own arrays.

Imports nothing of jax or jaxattn. An item changes the logits [*b h t s] pair by pair, so that all
of its derivatives are arrays of that shape:

    apply(x)   the logits after it
    slope(x)   the derivative of each by the logit before it
    parts(x)   for each array of the item: the derivative of each logit by the entry that it reads,
               the size of the terms it is the difference of, and `collect`, which sums over pairs
               to the array's shape
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray


class Sum(NamedTuple):
    """A derivative that is a sum over pairs. size: the sum of magnitudes that rounding acts on."""

    value: ndarray
    size: ndarray


@dataclass(frozen=True)
class Bias:
    """x + array, which broadcasts to the logits."""

    array: Any

    def apply(self, x):
        return x + np.asarray(self.array, x.dtype)

    def slope(self, x):
        return np.ones_like(x)

    def parts(self, x):
        return [(np.ones_like(x), 1, to_shape(np.shape(self.array)))]


@dataclass(frozen=True)
class Fixed(Bias):
    """The same of an array that nothing is differentiated in."""

    def parts(self, x):
        return []


@dataclass(frozen=True)
class Cap:
    """cap · tanh(x / cap), where cap broadcasts to the logits."""

    cap: Any

    def apply(self, x):
        cap = np.asarray(self.cap, x.dtype)
        return cap * np.tanh(x / cap)

    def slope(self, x):
        return 1 - np.tanh(x / np.asarray(self.cap, x.dtype)) ** 2

    def parts(self, x):
        u = x / np.asarray(self.cap, x.dtype)
        one, two = np.tanh(u), u * (1 - np.tanh(u) ** 2)
        return [(one - two, np.abs(one) + np.abs(two), to_shape(np.shape(self.cap)))]


@dataclass(frozen=True)
class Lookup:
    """x + factor · array[index]. `index` holds an array for each axis, all broadcast to x."""

    array: Any
    index: tuple[Any, ...]
    factor: Any = 1.0

    def apply(self, x):
        return x + np.asarray(self.factor, x.dtype) * np.asarray(self.array, x.dtype)[self.index]

    def slope(self, x):
        return np.ones_like(x)

    def parts(self, x):
        part = self.factor * np.ones_like(x)
        return [(part, np.abs(part), to_index(np.shape(self.array), self.index))]


@dataclass(frozen=True)
class Gate:
    """x · array[index]."""

    array: Any
    index: tuple[Any, ...]

    def apply(self, x):
        return x * self.slope(x)

    def slope(self, x):
        return np.broadcast_to(np.asarray(self.array, x.dtype)[self.index], x.shape)

    def parts(self, x):
        return [(x, np.abs(x), to_index(np.shape(self.array), self.index))]


def alibi(slopes, q: Any, k: Any) -> Lookup:
    """-slope · |p - r| for queries at positions q [*b t] and keys at k [*b s]."""
    heads = np.arange(np.size(slopes))[:, None, None]
    return Lookup(slopes, (heads,), -np.abs(ahead(q, k)).astype(np.float64))


def relative(table, q: Any, k: Any, bucket: Callable[[int], int]) -> Lookup:
    """table[bucket(r - p), head]."""
    buckets = np.vectorize(bucket, otypes=[int])(ahead(q, k))
    return Lookup(table, (buckets, np.arange(np.shape(table)[1])[:, None, None]))


def ahead(q: Any, k: Any):
    """[*b 1 t s]: how far each key is ahead of each query."""
    return np.asarray(k)[..., None, None, :] - np.asarray(q)[..., None, :, None]


def to_shape(shape) -> Callable[[ndarray], ndarray]:
    def collect(terms):
        terms = terms.sum(tuple(range(terms.ndim - len(shape))))
        wide = tuple(i for i, n in enumerate(shape) if n == 1)
        return terms.sum(wide, keepdims=True)

    return collect


def to_index(shape, index) -> Callable[[ndarray], ndarray]:
    def collect(terms):
        total = np.zeros(shape, terms.dtype)
        np.add.at(total, tuple(np.broadcast_to(i, terms.shape) for i in index), terms)
        return total

    return collect


def apply(items, x):
    for item in items:
        x = item.apply(x)
    return x


def pull(items, x, cot, size) -> tuple[Sum, tuple[Sum, ...]]:
    """From the cotangent of the logits at the end: that of the first ones, and of every array."""
    before = [x]
    for item in items:
        before.append(item.apply(before[-1]))
    sums: list[Sum] = []
    for item, x in zip(reversed(items), reversed(before[:-1]), strict=True):
        here = [
            Sum(collect(_product(cot, part)), collect(_product(size, among)))
            for part, among, collect in item.parts(x)
        ]
        sums = here + sums
        slope = item.slope(x)
        cot, size = _product(cot, slope), _product(size, np.abs(slope))
    return Sum(cot, size), tuple(sums)


def _product(cot, part):
    """A pair without weight moves nothing, even where its logit is not finite."""
    return np.where(cot == 0, 0, cot * np.where(cot == 0, 0, part)).astype(cot.dtype)

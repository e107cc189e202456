"""What a workload may have besides its mask, as plain values that every contender translates.

An option knows its arrays, which contenders are given, and what it does to the scores of one head
in float64, which is what they are checked against. As masks do, they import NumPy alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Head(NamedTuple):
    """Some queries of one head."""

    arrays: Mapping[str, np.ndarray]
    """What `Option.arrays` gave."""
    head: int
    rows: np.ndarray
    """The positions of the queries."""


class Option:
    """One option. What a subclass does not define, it does not do."""

    rate = 0.0
    """The probability with which a weight is dropped."""

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of every array."""
        return {}

    def bytes(self, h: int, t: int, s: int) -> int:
        found = self.shapes(h, t, s).values()
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in found)

    def arrays(self, h: int, t: int, s: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Standard normal numbers, unless the option says otherwise."""
        return {
            name: random.standard_normal(shape, dtype=dtype)
            for name, (shape, dtype) in self.shapes(h, t, s).items()
        }

    def score(self, x_ts: np.ndarray, at: Head) -> tuple[np.ndarray, np.ndarray | float]:
        """The logits made of scaled products, and their derivative in these."""
        return x_ts, 1.0

    def sink(self, at: Head) -> float:
        """A logit that joins the denominator of the softmax; -inf for none."""
        return -math.inf


@dataclass(frozen=True)
class Nothing(Option):
    """No option."""

    def __str__(self) -> str:
        return "plain"


NOTHING = Nothing()


class Added(Option):
    """Adds numbers to the logits."""

    def added(self, at: Head, keys: int) -> np.ndarray:
        """[t s]: what is added for these queries, in the dtype of the arrays."""
        raise NotImplementedError

    def score(self, x_ts: np.ndarray, at: Head) -> tuple[np.ndarray, np.ndarray | float]:
        return x_ts + self.added(at, x_ts.shape[1]), 1.0


@dataclass(frozen=True)
class Bias(Added):
    """An array, one number for every head, query and key."""

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"bias": ((1, h, t, s), np.float32)}

    def added(self, at: Head, keys: int) -> np.ndarray:
        return at.arrays["bias"][0, at.head, at.rows]

    def __str__(self) -> str:
        return "bias"


@dataclass(frozen=True)
class ALiBi(Added):
    """slope · |i - j| subtracted, with the standard slopes of Press et al. 2022, section 3."""

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"slopes": ((h,), np.float32)}

    def arrays(self, h: int, t: int, s: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """2^(-8i/h) where h is a power of 2; others take every other one of the next power's."""
        power = 2 ** int(math.log2(h))
        exponents = [8 * (i + 1) / power for i in range(power)]
        exponents += [8 * (2 * i + 1) / (2 * power) for i in range(h - power)]
        return {"slopes": (2.0 ** -np.array(exponents)).astype(np.float32)}

    def added(self, at: Head, keys: int) -> np.ndarray:
        away_ts = np.abs(np.arange(keys) - at.rows[:, None])
        return -at.arrays["slopes"][at.head] * away_ts.astype(np.float32)

    def __str__(self) -> str:
        return "alibi"


@dataclass(frozen=True)
class RelativeBias(Added):
    """A learnt number for every head and bucket of distances, keys before and after apart.

    Source: Raffel et al. 2020, section 2.1, and the code published with it.
    """

    buckets: int = 32
    max_distance: int = 128

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"table": ((self.buckets, h), np.float32)}

    def bucket(self, ahead: np.ndarray) -> np.ndarray:
        """The bucket of keys that are `ahead` positions after the query."""
        half = self.buckets // 2
        single = half // 2
        far = np.abs(ahead)
        # In float32, as the published code, whose edges depend on it.
        ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single))
        ratio = ratio / np.float32(math.log(self.max_distance / single))
        wide = np.minimum(single + (ratio * np.float32(half - single)).astype(np.int32), half - 1)
        return np.where(ahead > 0, half, 0) + np.where(far < single, far, wide)

    def added(self, at: Head, keys: int) -> np.ndarray:
        ahead_ts = np.arange(keys) - at.rows[:, None]
        distances = np.arange(1 - keys, keys)
        of_distance = at.arrays["table"][self.bucket(distances), at.head]
        return of_distance[ahead_ts + keys - 1]

    def __str__(self) -> str:
        return f"relative{self.buckets}"


@dataclass(frozen=True)
class SoftCap(Option):
    """cap · tanh(logit / cap)."""

    cap: float = 30.0

    def score(self, x_ts: np.ndarray, at: Head) -> tuple[np.ndarray, np.ndarray | float]:
        bent = np.tanh(x_ts / self.cap)
        return self.cap * bent, 1 - bent**2

    def __str__(self) -> str:
        return f"softcap{self.cap:g}"


@dataclass(frozen=True)
class DenseMask(Option):
    """A mask given as an array: even chances for each pair, and every query sees itself."""

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"seen": ((1, 1, t, s), np.bool_)}

    def arrays(self, h: int, t: int, s: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        seen = random.integers(2, size=(1, 1, t, s), dtype=np.int8).astype(bool)
        return {"seen": seen | np.eye(t, s, dtype=bool)}

    def score(self, x_ts: np.ndarray, at: Head) -> tuple[np.ndarray, np.ndarray | float]:
        return np.where(at.arrays["seen"][0, 0, at.rows], x_ts, -np.inf), 1.0

    def __str__(self) -> str:
        return "densemask"


@dataclass(frozen=True)
class Sinks(Option):
    """A logit for every head that joins the denominator of its softmax."""

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"sinks": ((h,), np.float32)}

    def arrays(self, h: int, t: int, s: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Around log s, so that a sink takes about as much weight as all the keys together."""
        return {"sinks": (math.log(s) + random.standard_normal(h)).astype(np.float32)}

    def sink(self, at: Head) -> float:
        return float(at.arrays["sinks"][at.head])

    def __str__(self) -> str:
        return "sinks"


@dataclass(frozen=True)
class Dropout(Option):
    """Each weight is dropped with probability `rate`, the others divided by 1 - rate.

    Every contender draws its own random numbers: see `chance.py`.
    """

    rate: float = 0.1

    def shapes(self, h: int, t: int, s: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"key": ((2,), np.uint32)}

    def arrays(self, h: int, t: int, s: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """The data of a key of `jax.random`."""
        return {"key": random.integers(2**32, size=2, dtype=np.uint32)}

    def __str__(self) -> str:
        return f"dropout{self.rate:g}"

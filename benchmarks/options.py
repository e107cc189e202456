"""Masks and options of workloads: what each is, and what each library makes of it.

Plain values, so that what a contender is asked does not depend on the one that is being measured.
All that is to be said about an option is in its row: its array, who has it, what it does to the
logits, and how jaxattn and FlexAttention are asked for it. The others get what it adds to logits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Arrays: TypeAlias = Mapping[str, Any]
"""The array of an option by its name, and the `ids` [t] of documents; of any library."""

OURS, PLAIN, COMPAT = "jaxattn", "jaxattn, plain", "jaxattn.compat"
JAX_NN, FLAX, SDPA, FLEX = "jax.nn", "Flax NNX", "torch SDPA", "torch Flex"
"""The names of contenders."""


@dataclass(frozen=True)
class Mask:
    """Every query sees every key, but for what is said here."""

    causal: bool = False
    """It sees none after it."""
    left: int | None = None
    """It sees none that is more positions before it."""
    documents: int | None = None
    """It sees its own of so many documents of equal length, packed one after another."""

    def spans(self, t: int, s: int) -> tuple[np.ndarray, np.ndarray]:
        """The first key each query sees, and one past the last."""
        at, first, stop = np.arange(t), np.zeros(t, int), np.full(t, s)
        if self.causal:
            stop = np.minimum(at + 1, s)
        if self.left is not None:
            first = np.maximum(at - self.left, 0)
        if self.documents is not None:
            first, stop = (np.searchsorted(self.ids(s), self.ids(t), x) for x in ("left", "right"))
        return first, stop

    def allowed(self, t: int, s: int, rows: Any = slice(None)) -> np.ndarray:
        """[t s]: which key (column) each of these queries (row) sees."""
        first, stop = (x[rows, None] for x in self.spans(t, s))
        return (first <= np.arange(s)) & (np.arange(s) < stop)

    def ids(self, tokens: int) -> np.ndarray:
        """[t]: the document of each token."""
        return (np.arange(tokens) * (self.documents or 1) // tokens).astype(np.int32)

    def __str__(self) -> str:
        if self.documents is not None:
            return f"segments{self.documents}"
        if self.left is not None:
            return f"window{self.left + 1}"
        return "causal" if self.causal else "full"


EVERY_PAIR, CAUSAL = Mask(), Mask(causal=True)


def window(size: int) -> Mask:
    """Each query sees itself and the `size - 1` keys before it."""
    return Mask(causal=True, left=size - 1)


@dataclass(frozen=True, eq=False)
class Option:
    """One option. What a row does not say, it does not do."""

    name: str
    """As in the names of workloads."""
    title: str = ""
    """In words."""
    others: tuple[str, ...] = ()
    """The contenders besides jaxattn that have it."""
    array: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    """Its name and its axes, each a size of the workload or a number. Nothing is differentiated in
    it. No array where empty."""
    dtype: Any = np.float32
    draw: Callable[[np.random.Generator, Any], np.ndarray] | None = None
    """The array for a workload; without it, standard normal numbers."""
    added: Callable[[Arrays, Any], Any] | None = None
    """[h t s] to add to the logits, from how far each key is ahead of each query, [t s]."""
    cap: float | None = None
    """Logits become cap · tanh(logit / cap)."""
    rate: float = 0.0
    """The probability with which a weight is dropped."""
    jaxattn: Callable[[Any, Arrays], dict[str, Any]] = lambda ja, a: {}
    """Arguments of `ja.attention`, where ja is jaxattn, this version or another."""
    flex: Callable[[Arrays, int], Any] | None = None
    """FlexAttention's function of one logit, from torch's tensors and the number of tokens."""

    def shapes(self, work: Any) -> dict[str, tuple[int, ...]]:
        size = lambda axis: getattr(work, axis) if isinstance(axis, str) else axis
        return {name: tuple(map(size, axes)) for name, axes in self.array.items()}

    def arrays(self, work: Any, random: np.random.Generator) -> dict[str, np.ndarray]:
        normal = lambda shape: random.standard_normal(shape, np.float32)
        draw = lambda shape: normal(shape) if self.draw is None else self.draw(random, work)
        return {x: draw(shape).astype(self.dtype) for x, shape in self.shapes(work).items()}

    def of(self, arrays: Arrays, heads: slice, rows: np.ndarray) -> Arrays:
        """Its array, of some queries of some heads."""
        cut: dict[Any, Any] = {"heads": heads, "queries": rows}
        part = lambda axes: tuple(cut.get(axis, slice(None)) for axis in axes)
        return {name: arrays[name][part(axes)] for name, axes in self.array.items()}

    def __str__(self) -> str:
        return self.name


def _standard_slopes(random: np.random.Generator, work: Any) -> np.ndarray:
    """2^(-8i/h) where h is a power of 2; others take every other one of the next power's.

    Source: Press et al. 2022, section 3, and the code published with it.
    """
    power = 2 ** int(math.log2(work.heads))
    slopes = 2.0 ** -(np.arange(1, 2 * power + 1) * 4 / power)
    return np.concatenate([slopes[1::2], slopes[::2][: work.heads - power]])


STARTS = (*range(9), 12, 16, 23, 32, 46, 64, 91)
"""The distance at which each of T5's buckets begins, for 32 buckets and distances up to 128.

Source: Raffel et al. 2020, section 2.1, and the code published with it.
"""


def bucket(ahead: np.ndarray, starts: Sequence[int] = STARTS) -> np.ndarray:
    """The bucket of keys that are `ahead` positions after the query; first those before it."""
    return np.searchsorted(starts, np.abs(ahead), "right") - 1 + len(starts) * (ahead > 0)


def _of_bucket(a: Arrays, ahead_ts: Any) -> Any:
    """Looked up by distance, of which there are fewer than pairs. There are no more t than s."""
    s = ahead_ts.shape[1]
    of_distance = a["table"][bucket(np.arange(1 - s, s))]
    return of_distance[ahead_ts + s - 1].transpose(2, 0, 1)


def _flex_of_bucket(a: Arrays, tokens: int) -> Any:
    table = a["table"]
    at = table.new_tensor(bucket(np.arange(1 - tokens, tokens)).tolist()).long()
    return lambda x, b, h, i, j: x + table[at[j - i + tokens - 1], h]


def _half_of_the_pairs(random: np.random.Generator, work: Any) -> np.ndarray:
    t, s = work.queries, work.keys
    seen = random.integers(2, size=(1, 1, t, s), dtype=np.int8).astype(bool)
    return seen | np.eye(t, s, dtype=bool)


NOTHING = Option("plain")

ALIBI = Option(
    "alibi",
    "ALiBi",
    (JAX_NN, SDPA, FLEX),  # Flax would pass the bias on to jax.nn, which is timed
    array={"slopes": ("heads",)},
    draw=_standard_slopes,
    added=lambda a, ahead_ts: -a["slopes"][:, None, None] * abs(ahead_ts).astype(np.float32),
    jaxattn=lambda ja, a: {"score": ja.ALiBi(a["slopes"])},
    flex=lambda a, t: lambda x, b, h, i, j: x - a["slopes"][h] * (i - j).abs(),
)
SOFT_CAP = Option(
    "softcap30",
    "soft cap",
    (FLEX,),
    cap=30.0,
    jaxattn=lambda ja, a: {"score": ja.SoftCap(30.0)},
    flex=lambda a, t: lambda x, b, h, i, j: 30.0 * (x / 30.0).tanh(),
)
RELATIVE_BIAS = Option(
    "relative32",
    "relative bias",
    (JAX_NN, SDPA, FLEX),  # Flax as with ALiBi
    array={"table": (32, "heads")},
    added=_of_bucket,
    jaxattn=lambda ja, a: {"score": ja.RelativeBias(a["table"], max_distance=128)},
    flex=_flex_of_bucket,
)
BIAS = Option(
    "bias",
    "dense bias",
    (JAX_NN, FLAX, SDPA, FLEX),
    array={"bias": (1, "heads", "queries", "keys")},
    added=lambda a, ahead_ts: a["bias"][0],
    jaxattn=lambda ja, a: {"score": ja.Bias(a["bias"])},
    flex=lambda a, t: lambda x, b, h, i, j: x + a["bias"][0, h, i, j],
)
DENSE_MASK = Option(  # even chances for each pair, and every query sees itself
    "densemask",
    "dense mask",
    (JAX_NN, FLAX, SDPA, FLEX),
    array={"seen": (1, 1, "queries", "keys")},
    dtype=np.bool_,
    draw=_half_of_the_pairs,
    jaxattn=lambda ja, a: {"mask": ja.Dense(a["seen"])},
)
SINKS = Option(  # around log s, so that a sink takes about as much weight as all keys together
    "sinks",
    "sinks",
    array={"sinks": ("heads",)},
    draw=lambda random, work: math.log(work.keys) + random.standard_normal(work.heads),
    jaxattn=lambda ja, a: {"sinks": a["sinks"]},
)
DROPOUT = Option(  # every contender draws its own numbers; its array is the data of jaxattn's key
    "dropout0.1",
    "dropout",
    (FLAX, SDPA),
    array={"key": (2,)},
    dtype=np.uint32,
    draw=lambda random, work: random.integers(2**32, size=2, dtype=np.uint32),
    rate=0.1,
    jaxattn=lambda ja, a: {"dropout": ja.Dropout(0.1, a["key"])},
)

STRUCTURED = (ALIBI, SOFT_CAP, RELATIVE_BIAS)
"""Scores that are made in the tile, of a few numbers."""
OPTIONS = (*STRUCTURED, BIAS, DENSE_MASK, SINKS, DROPOUT)
TITLES = {option.name: option.title for option in OPTIONS} | {"segments8": "8 segments"}

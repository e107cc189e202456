"""Masks and options of workloads: what each is, and what each library makes of it.

Plain values, so that what a contender is asked does not depend on the one that is being measured.
All that is to be said about an option is in one place, its row of the table: its array, who has it,
what it does to the logits, and how jaxattn and FlexAttention are asked for it. `jax.nn`, Flax and
PyTorch's `attn_mask` get what it adds to the logits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        at = np.arange(t)
        first, stop = np.zeros(t, int), np.full(t, s)
        if self.causal:
            stop = np.minimum(at + 1, s)
        if self.left is not None:
            first = np.maximum(at - self.left, 0)
        if self.documents is not None:
            first = np.maximum(first, np.searchsorted(self.ids(s), self.ids(t)))
            stop = np.minimum(stop, np.searchsorted(self.ids(s), self.ids(t), side="right"))
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


def segments(count: int) -> Mask:
    """Documents that see only themselves."""
    return Mask(documents=count)


@dataclass(frozen=True, eq=False)
class Option:
    """One option. What a row does not say, it does not do."""

    name: str
    """As in the names of workloads."""
    title: str = ""
    """In words."""
    others: tuple[str, ...] = ()
    """The contenders besides jaxattn that have it."""
    array: str = ""
    axes: tuple[str | int, ...] = ()
    """Of its array, which nothing is differentiated in: h, t, s, or a size."""
    dtype: Any = np.float32
    draw: Callable[[np.random.Generator, Mapping[str, int]], np.ndarray] | None = None
    """Its array, given the sizes of h, t and s; without it, standard normal numbers."""
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

    def shape(self, h: int, t: int, s: int) -> tuple[int, ...]:
        sizes = {"h": h, "t": t, "s": s}
        return tuple(sizes[x] if isinstance(x, str) else x for x in self.axes)

    def bytes(self, h: int, t: int, s: int) -> int:
        shape = self.shape(h, t, s)
        return math.prod(shape) * np.dtype(self.dtype).itemsize if self.array else 0

    def arrays(self, h: int, t: int, s: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        if not self.array:
            return {}
        if self.draw is None:
            return {self.array: random.standard_normal(self.shape(h, t, s), self.dtype)}
        return {self.array: self.draw(random, {"h": h, "t": t, "s": s}).astype(self.dtype)}

    def of(self, arrays: Arrays, heads: slice, rows: np.ndarray) -> Arrays:
        """Its array, of some queries of some heads."""
        cut = {"h": heads, "t": rows}
        index = tuple(cut.get(str(axis), slice(None)) for axis in self.axes)
        return {self.array: arrays[self.array][index]} if self.array else {}

    def __str__(self) -> str:
        return self.name


def standard_slopes(h: int) -> np.ndarray:
    """2^(-8i/h) where h is a power of 2; others take every other one of the next power's.

    Source: Press et al. 2022, section 3, and the code published with it.
    """
    power = 2 ** int(math.log2(h))
    exponents = [8 * (i + 1) / power for i in range(power)]
    exponents += [8 * (2 * i + 1) / (2 * power) for i in range(h - power)]
    return 2.0 ** -np.array(exponents)


BUCKETS, FURTHEST = 32, 128


def bucket(ahead: np.ndarray, buckets: int = BUCKETS, furthest: int = FURTHEST) -> np.ndarray:
    """The bucket of keys that are `ahead` positions after the query, of both directions.

    Source: Raffel et al. 2020, section 2.1, and the code published with it.
    """
    half = buckets // 2
    single = half // 2
    far = np.abs(ahead)
    # In float32, as the published code, whose edges depend on it.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single))
    ratio = ratio / np.float32(math.log(furthest / single))
    wide = np.minimum(single + (ratio * np.float32(half - single)).astype(np.int32), half - 1)
    return np.where(ahead > 0, half, 0) + np.where(far < single, far, wide)


def _of_bucket(a: Arrays, ahead_ts: Any) -> Any:
    """Looked up by distance, of which there are fewer than pairs. There are no more t than s."""
    s = ahead_ts.shape[1]
    of_distance = a["table"][bucket(np.arange(1 - s, s))]
    return of_distance[ahead_ts + s - 1].transpose(2, 0, 1)


def _flex_of_bucket(a: Arrays, tokens: int) -> Any:
    table, at = a["table"], bucket(np.arange(1 - tokens, tokens)).tolist()
    at = table.new_tensor(at).long()
    return lambda x, b, h, i, j: x + table[at[j - i + tokens - 1], h]


def _half_of_the_pairs(random: np.random.Generator, sizes: Mapping[str, int]) -> np.ndarray:
    t, s = sizes["t"], sizes["s"]
    seen = random.integers(2, size=(1, 1, t, s), dtype=np.int8).astype(bool)
    return seen | np.eye(t, s, dtype=bool)


NOTHING = Option("plain")

ALIBI = Option(
    "alibi",
    "ALiBi",
    (JAX_NN, SDPA, FLEX),  # Flax would pass the bias on to jax.nn, which is timed
    array="slopes",
    axes=("h",),
    draw=lambda random, sizes: standard_slopes(sizes["h"]),
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
    array="table",
    axes=(BUCKETS, "h"),
    added=_of_bucket,
    jaxattn=lambda ja, a: {"score": ja.RelativeBias(a["table"], max_distance=FURTHEST)},
    flex=_flex_of_bucket,
)
BIAS = Option(
    "bias",
    "dense bias",
    (JAX_NN, FLAX, SDPA, FLEX),
    array="bias",
    axes=(1, "h", "t", "s"),
    added=lambda a, ahead_ts: a["bias"][0],
    jaxattn=lambda ja, a: {"score": ja.Bias(a["bias"])},
    flex=lambda a, t: lambda x, b, h, i, j: x + a["bias"][0, h, i, j],
)
DENSE_MASK = Option(  # even chances for each pair, and every query sees itself
    "densemask",
    "dense mask",
    (JAX_NN, FLAX, SDPA, FLEX),
    array="seen",
    axes=(1, 1, "t", "s"),
    dtype=np.bool_,
    draw=_half_of_the_pairs,
    jaxattn=lambda ja, a: {"mask": ja.Dense(a["seen"])},
)
SINKS = Option(  # around log s, so that a sink takes about as much weight as all keys together
    "sinks",
    "sinks",
    array="sinks",
    axes=("h",),
    draw=lambda random, size: math.log(size["s"]) + random.standard_normal(size["h"]),
    jaxattn=lambda ja, a: {"sinks": a["sinks"]},
)
DROPOUT = Option(  # every contender draws its own numbers; its array is the data of jaxattn's key
    "dropout0.1",
    "dropout",
    (FLAX, SDPA),
    array="key",
    axes=(2,),
    dtype=np.uint32,
    draw=lambda random, sizes: random.integers(2**32, size=2, dtype=np.uint32),
    rate=0.1,
    jaxattn=lambda ja, a: {"dropout": ja.Dropout(0.1, a["key"])},
)

STRUCTURED = (ALIBI, SOFT_CAP, RELATIVE_BIAS)
"""Scores that are made in the tile, of a few numbers."""
OPTIONS = (*STRUCTURED, BIAS, DENSE_MASK, SINKS, DROPOUT)
TITLES = {option.name: option.title for option in OPTIONS} | {"segments8": "8 segments"}

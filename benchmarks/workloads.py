"""Attention problems: shapes and options, with the arithmetic and the traffic of each.

Conventions, the ones of the FlashAttention papers:
  FLOPs: two for a multiply and an add, and only pairs that the mask allows are counted (so causal
    counts half): forward 2 * pairs * (d + e); gradient (forward and backward) 3.5 times that.
    What a mask given as an array hides is counted too: it does not say where it can be skipped.
  Bytes: every input read once and every result written once, the option's arrays among them.
Softmax, masking, what an option does and a contender's own recomputation count as nothing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.options import EVERY_PAIR, NOTHING, Mask, Option

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Inputs:
    """float32 arrays whose values the workload's dtype holds exactly."""

    q: np.ndarray
    """[b, t, h, d]"""
    k: np.ndarray
    """[b, s, n, d]"""
    v: np.ndarray
    """[b, s, n, e]"""
    cotangent: np.ndarray
    """[b, t, h, e]: the gradient of the loss with respect to the output"""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The array of the option by its name; with documents also `ids` [t]"""


@dataclass(frozen=True)
class Workload:
    """One attention problem: shapes, dtype, mask, option, and whether gradients are wanted."""

    queries: int
    keys: int
    batch: int = 1
    heads: int = 12
    kv_heads: int = 12
    features: int = 64
    value_features: int = 64
    dtype: np.dtype = FLOAT32
    """Of inputs and results."""
    mask: Mask = EVERY_PAIR
    option: Option = NOTHING
    gradient: bool = False
    """The output, and the gradients of sum(out * cotangent) for q, k and v: one training step. The
    array of an option is held fixed."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}"
            )
        if self.mask != EVERY_PAIR and self.queries != self.keys:
            raise ValueError(
                f"a {self.mask} workload needs as many queries as keys, because contenders align "
                f"the two ends differently; got {self.queries} queries and {self.keys} keys"
            )

    @property
    def kind(self) -> str:
        return "gradient" if self.gradient else "forward"

    @property
    def name(self) -> str:
        """Unique, and stable from run to run: what differs from the usual shape is spelled out."""
        t, s, h, d = self.queries, self.keys, self.heads, self.features
        grouped, narrow = self.kv_heads != h, self.value_features != d
        parts = {
            self.kind: True,
            str(self.mask): True,
            self.option.name: self.option != NOTHING,
            f"t{t}": True,
            f"s{s}": s != t,
            f"b{self.batch}": self.batch != 1,
            f"h{h}": h != 12 or grouped,
            f"n{self.kv_heads}": grouped,
            f"d{d}": d != 64 or narrow,
            f"e{self.value_features}": narrow,
            "bf16": self.dtype == BFLOAT16,
        }
        return "-".join(part for part, shown in parts.items() if shown)

    def __str__(self) -> str:
        return self.name

    @property
    def plain(self) -> "Workload":
        """The same without its option, and without documents."""
        return replace(self, mask=replace(self.mask, documents=None), option=NOTHING)

    def facts(self) -> dict[str, Any]:
        """What a results file says about the workload."""
        sizes = ("queries", "keys", "batch", "heads", "kv_heads", "features", "value_features")
        return {
            "name": self.name,
            **{size: getattr(self, size) for size in sizes},
            "dtype": self.dtype.name,
            "mask": str(self.mask),
            "option": None if self.option == NOTHING else self.option.name,
            "kind": self.kind,
            "flops": self.flops,
            "bytes": self.bytes,
        }

    @property
    def scores(self) -> int:
        """(query, key) pairs, over all batches and heads."""
        return self.batch * self.heads * self.queries * self.keys

    @property
    def pairs(self) -> int:
        """Those that the mask allows."""
        first, stop = self.mask.spans(self.queries, self.keys)
        return int((stop - first).sum()) * self.batch * self.heads

    @property
    def flops(self) -> int:
        forward = 2 * self.pairs * (self.features + self.value_features)
        return forward * 7 // 2 if self.gradient else forward

    @property
    def bytes(self) -> int:
        # The gradient also reads the cotangent and writes dq, dk and dv.
        total = sum(map(math.prod, self.shapes.values())) * (2 if self.gradient else 1)
        of_option = self.option.bytes(self.heads, self.queries, self.keys)
        return total * self.dtype.itemsize + of_option

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every field of `Inputs`, and so of out (the cotangent's), dq, dk and dv."""
        return {
            "q": (self.batch, self.queries, self.heads, self.features),
            "k": (self.batch, self.keys, self.kv_heads, self.features),
            "v": (self.batch, self.keys, self.kv_heads, self.value_features),
            "cotangent": (self.batch, self.queries, self.heads, self.value_features),
        }

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """The names of a contender's outputs, in order, and their shapes."""
        of = self.shapes
        gradients = {"dq": of["q"], "dk": of["k"], "dv": of["v"]}
        return {"out": of["cotangent"]} | (gradients if self.gradient else {})

    def inputs(self, seed: int = 0) -> Inputs:
        """Standard normal arrays, never zeros: constant inputs run faster than real ones."""
        random = np.random.default_rng(seed)
        draw = lambda shape: random.standard_normal(shape, np.float32)
        rounded = lambda x: x.astype(self.dtype).astype(np.float32)
        arrays = {name: rounded(draw(shape)) for name, shape in self.shapes.items()}
        extra = self.option.arrays(self.heads, self.queries, self.keys, random)
        if self.mask.documents is not None:
            extra["ids"] = self.mask.ids(self.queries)
        return Inputs(**arrays, extra=extra)


def over(lengths: Iterable[int], work: Workload) -> tuple[Workload, ...]:
    """`work` at each of these lengths."""
    return tuple(replace(work, queries=t, keys=t) for t in lengths)


def with_options(options: Iterable[Option], work: Workload) -> tuple[Workload, ...]:
    """`work` with each of these options."""
    return tuple(replace(work, option=option) for option in options)

"""Attention problems: shapes and options, with the arithmetic and the traffic of each.

Conventions, the ones of the FlashAttention papers:
  FLOPs: two for a multiply and an add, and only pairs that the mask allows are counted (so causal
    counts half): forward 2 * pairs * (d + e); gradient (forward and backward) 3.5 times that.
    What a mask given as an array hides is counted too: it does not say where it can be skipped.
  Bytes: every input read once and every result written once, the option's arrays among them.
Softmax, masking, what an option does and a contender's own recomputation count as nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.options import EVERY_PAIR, NOTHING, Mask, Option

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


class Inputs(NamedTuple):
    """float32 arrays of `Workload.shapes`, whose values the workload's dtype holds exactly."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    cotangent: np.ndarray
    """The gradient of the loss with respect to the output."""
    extra: Mapping[str, np.ndarray]
    """The array of the option by its name; with documents also `ids` [t]."""


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
            f"{self.kind}-{self.mask}": True,
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
        of_name = {"dtype": self.dtype.name, "mask": str(self.mask), "kind": self.kind}
        option = None if self.option == NOTHING else self.option.name
        found = {x: getattr(self, x) for x in ("name", *sizes, "flops", "bytes")}
        return found | of_name | {"option": option}

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
        of_option = sum(map(math.prod, self.option.shapes(self).values()))
        return total * self.dtype.itemsize + of_option * np.dtype(self.option.dtype).itemsize

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of `Inputs`: [b t h d], [b s n d], [b s n e], [b t h e]; so of dq, dk, dv and out too."""
        return {
            "q": (self.batch, self.queries, self.heads, self.features),
            "k": (self.batch, self.keys, self.kv_heads, self.features),
            "v": (self.batch, self.keys, self.kv_heads, self.value_features),
            "cotangent": (self.batch, self.queries, self.heads, self.value_features),
        }

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """The names of a contender's outputs, in order, and their shapes."""
        q, k, v, out = self.shapes.values()
        return {"out": out} | ({"dq": q, "dk": k, "dv": v} if self.gradient else {})

    def inputs(self, seed: int = 0) -> Inputs:
        """Standard normal arrays, never zeros: constant inputs run faster than real ones."""
        random = np.random.default_rng(seed)
        drawn = [random.standard_normal(shape, np.float32) for shape in self.shapes.values()]
        extra = self.option.arrays(self, random)
        if self.mask.documents is not None:
            extra["ids"] = self.mask.ids(self.queries)
        return Inputs(*(x.astype(self.dtype).astype(np.float32) for x in drawn), extra=extra)

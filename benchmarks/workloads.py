"""Attention problems: shapes and options, with the arithmetic and the traffic of each.

Conventions, the ones of the FlashAttention papers:
  FLOPs: two for a multiply and an add, and only pairs that the mask allows are counted (so causal
    counts half): forward 2 * pairs * (d + e); gradient (forward and backward) 3.5 times that.
    What a mask given as an array hides is counted too: it does not say where it can be skipped.
  Bytes: every input read once and every result written once, the option's arrays among them.
Softmax, masking, what an option does and a contender's own recomputation count as nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.masks import EVERY_PAIR, Full, Mask, Segments
from benchmarks.options import NOTHING, Option


class Kind(Enum):
    """What is computed."""

    FORWARD = "forward"
    """The output."""
    GRADIENT = "gradient"
    """The output, and the gradients of sum(out * cotangent) for q, k and v: one training step. The
    arrays of an option are held fixed."""


class Dtype(Enum):
    """The dtype of inputs and results."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16 if self is Dtype.BFLOAT16 else np.float32)

    @property
    def eps(self) -> float:
        """The gap between 1 and the next larger number."""
        return float(ml_dtypes.finfo(self.numpy).eps)


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
    """The arrays of the option by name, as they are; with segments also `ids` [t]"""


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
    dtype: Dtype = Dtype.FLOAT32
    mask: Mask = EVERY_PAIR
    option: Option = NOTHING
    kind: Kind = Kind.FORWARD

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}"
            )
        if not isinstance(self.mask, Full) and self.queries != self.keys:
            raise ValueError(
                f"a {self.mask} workload needs as many queries as keys, because contenders align "
                f"the two ends differently; got {self.queries} queries and {self.keys} keys"
            )

    @property
    def name(self) -> str:
        """Unique, and stable from run to run: what differs from the usual shape is spelled out."""
        parts = [self.kind.value, str(self.mask)]
        if self.has_option:
            parts.append(str(self.option))
        same_length = self.queries == self.keys
        parts.append(f"t{self.queries}" if same_length else f"t{self.queries}-s{self.keys}")
        if self.batch != 1:
            parts.append(f"b{self.batch}")
        if self.heads != 12 or self.kv_heads != self.heads:
            parts.append(f"h{self.heads}")
        if self.kv_heads != self.heads:
            parts.append(f"n{self.kv_heads}")
        if self.features != 64 or self.value_features != self.features:
            parts.append(f"d{self.features}")
        if self.value_features != self.features:
            parts.append(f"e{self.value_features}")
        if self.dtype is Dtype.BFLOAT16:
            parts.append("bf16")
        return "-".join(parts)

    def __str__(self) -> str:
        return self.name

    @property
    def has_option(self) -> bool:
        return self.option != NOTHING

    @property
    def plain(self) -> "Workload":
        """The same without its option, and without segments."""
        mask = EVERY_PAIR if isinstance(self.mask, Segments) else self.mask
        return replace(self, mask=mask, option=NOTHING)

    def describe(self) -> str:
        """A sentence for readers."""
        heads = f"{self.heads} heads"
        if self.kv_heads != self.heads:
            heads += f" sharing {self.kv_heads} key/value heads"
        length = f"{self.queries} tokens"
        if self.queries != self.keys:
            length = f"{self.queries} queries over {self.keys} keys"
        option = f", {self.option}" if self.has_option else ""
        return (
            f"{self.kind.value}, {self.mask} mask{option}, {length}, batch {self.batch}, {heads}, "
            f"{self.features} features, {self.dtype.value}"
        )

    def facts(self) -> dict[str, Any]:
        """What a results file says about the workload."""
        fields = asdict(self)
        fields.update(dtype=self.dtype.value, kind=self.kind.value, mask=str(self.mask))
        fields.update(option=str(self.option) if self.has_option else None)
        return {"name": self.name, **fields, "flops": self.flops, "bytes": self.bytes}

    @property
    def pairs(self) -> int:
        """(query, key) pairs that the mask allows, over all batches and heads."""
        first, stop = self.mask.spans(self.queries, self.keys)
        return int((stop - first).sum()) * self.batch * self.heads

    @property
    def flops(self) -> int:
        forward = 2 * self.pairs * (self.features + self.value_features)
        return forward if self.kind is Kind.FORWARD else forward * 7 // 2

    @property
    def bytes(self) -> int:
        sizes = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        inputs = sizes["q"] + sizes["k"] + sizes["v"]
        out = sizes["cotangent"]
        # The gradient also reads the cotangent and writes dq, dk and dv.
        total = inputs + out if self.kind is Kind.FORWARD else 2 * (inputs + out)
        return total * self.dtype.numpy.itemsize + self.option.bytes(*self._sizes)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.heads, self.queries, self.keys

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every field of `Inputs`."""
        return {
            "q": (self.batch, self.queries, self.heads, self.features),
            "k": (self.batch, self.keys, self.kv_heads, self.features),
            "v": (self.batch, self.keys, self.kv_heads, self.value_features),
            "cotangent": (self.batch, self.queries, self.heads, self.value_features),
        }

    def inputs(self, seed: int = 0) -> Inputs:
        """Standard normal arrays, never zeros: constant inputs run faster than real ones."""
        random = np.random.default_rng(seed)
        arrays = {
            name: random.standard_normal(shape, dtype=np.float32)
            .astype(self.dtype.numpy)
            .astype(np.float32)
            for name, shape in self.shapes.items()
        }
        extra = dict(self.option.arrays(*self._sizes, random))
        if isinstance(self.mask, Segments):
            extra["ids"] = self.mask.ids(self.queries)
        return Inputs(**arrays, extra=extra)


def over(lengths: Iterable[int], work: Workload) -> tuple[Workload, ...]:
    """`work` at each of these lengths."""
    return tuple(replace(work, queries=t, keys=t) for t in lengths)

"""Named attention shapes, with the arithmetic and the traffic each of them stands for.

Conventions, the ones of the FlashAttention papers:
  FLOPs: two for a multiply and an add, and only pairs that the mask allows are counted (so causal
    counts half): forward 2 * pairs * (d + e); gradient (forward and backward) 3.5 times that.
  Bytes: every input read once and every result written once.
Softmax, masking and a contender's own recomputation count as nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.masks import EVERY_PAIR, Causal, Full, Mask, Window


class Kind(Enum):
    """What is computed."""

    FORWARD = "forward"
    """The output."""
    GRADIENT = "gradient"
    """The output, and the gradients of sum(out * cotangent) for q, k and v: one training step."""


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


@dataclass(frozen=True)
class Workload:
    """One attention problem: shapes, dtype, mask, and whether gradients are wanted."""

    queries: int
    keys: int
    batch: int = 1
    heads: int = 12
    kv_heads: int = 12
    features: int = 64
    value_features: int = 64
    dtype: Dtype = Dtype.FLOAT32
    mask: Mask = EVERY_PAIR
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

    def describe(self) -> str:
        """A sentence for readers."""
        heads = f"{self.heads} heads"
        if self.kv_heads != self.heads:
            heads += f" sharing {self.kv_heads} key/value heads"
        length = f"{self.queries} tokens"
        if self.queries != self.keys:
            length = f"{self.queries} queries over {self.keys} keys"
        return (
            f"{self.kind.value}, {self.mask} mask, {length}, batch {self.batch}, {heads}, "
            f"{self.features} features, {self.dtype.value}"
        )

    def facts(self) -> dict[str, Any]:
        """What a results file says about the workload."""
        fields = asdict(self)
        fields.update(dtype=self.dtype.value, kind=self.kind.value, mask=str(self.mask))
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
        return total * self.dtype.numpy.itemsize

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
        return Inputs(
            **{
                name: random.standard_normal(shape, dtype=np.float32)
                .astype(self.dtype.numpy)
                .astype(np.float32)
                for name, shape in self.shapes.items()
            }
        )


def over(lengths: Iterable[int], work: Workload) -> tuple[Workload, ...]:
    """`work` at each of these lengths."""
    return tuple(replace(work, queries=t, keys=t) for t in lengths)


FORWARD = Workload(1, 1)
CAUSAL = replace(FORWARD, mask=Causal())
GRADIENT = replace(FORWARD, kind=Kind.GRADIENT)
CAUSAL_GRADIENT = replace(GRADIENT, mask=Causal())

SMOKE = (
    *over((9, 128), FORWARD),
    *over((128,), CAUSAL),
    *over((128,), replace(FORWARD, mask=Window(left=31))),
    *over((9,), GRADIENT),
    *over((64,), replace(CAUSAL_GRADIENT, batch=2, kv_heads=4)),
)
"""Seconds in all: one workload of every sort, for tests."""

_SHORT = (9, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

DEFAULT = (
    *over((*_SHORT, 8192, 16384), FORWARD),
    *over((9, 32, 128, 512, 1024, 2048, 4096, 8192, 16384), CAUSAL),
    *over((9, 32, 128, 512, 1024, 2048, 4096), GRADIENT),
    *over((9, 32, 128, 512, 1024, 2048, 4096), CAUSAL_GRADIENT),
    *over((8192,), replace(FORWARD, mask=Window(left=511))),
    *over((2048,), replace(FORWARD, features=128, value_features=128)),
    *over((1024,), replace(CAUSAL_GRADIENT, features=128, value_features=128)),
    *over((128, 512), replace(FORWARD, batch=8)),
    *over((512,), replace(CAUSAL_GRADIENT, batch=8)),
    *over((2048,), replace(CAUSAL, kv_heads=4)),
    *over((1024,), replace(CAUSAL_GRADIENT, kv_heads=4)),
    replace(FORWARD, queries=1, keys=8192),
)
"""What `python -m benchmarks` runs on a CPU: about ten minutes on two cores."""

FULL = (
    *DEFAULT,
    *over((577, 1000, 2047, 3000), FORWARD),
    *over((16, 64, 256), CAUSAL),
    *over((8192,), GRADIENT),
    *over((8192,), CAUSAL_GRADIENT),
    *over((2048, 16384), replace(FORWARD, mask=Window(left=511))),
    *over((2048,), replace(GRADIENT, mask=Window(left=511))),
    *over((4096,), replace(CAUSAL, features=128, value_features=128)),
    *over((2048,), replace(GRADIENT, features=128, value_features=128)),
    *over((2048,), replace(CAUSAL, batch=8)),
)
"""The default set, and odd lengths, longer gradients and more of every variant."""

_LONG = (512, 1024, 2048, 4096, 8192, 16384)


def _gpu(work: Workload) -> tuple[Workload, ...]:
    return over(_LONG, replace(work, batch=4, heads=16, kv_heads=16, dtype=Dtype.BFLOAT16))


def _wide(work: Workload) -> Workload:
    return replace(work, features=128, value_features=128)


_GROUPED = replace(
    _wide(CAUSAL), batch=4, heads=32, kv_heads=8, queries=8192, keys=8192, dtype=Dtype.BFLOAT16
)

GPU = (
    *_gpu(FORWARD),
    *_gpu(CAUSAL),
    *_gpu(GRADIENT),
    *_gpu(CAUSAL_GRADIENT),
    *_gpu(_wide(FORWARD)),
    *_gpu(_wide(CAUSAL)),
    *_gpu(_wide(GRADIENT)),
    *_gpu(_wide(CAUSAL_GRADIENT)),
    *over((8192, 16384), replace(_gpu(_wide(FORWARD))[0], mask=Window(left=511))),
    *over((8192,), replace(_gpu(_wide(GRADIENT))[0], mask=Window(left=511))),
    _GROUPED,
    replace(_GROUPED, kind=Kind.GRADIENT),
)
"""What `python -m benchmarks` runs on a GPU: bfloat16, batch 4, 16 heads."""

SETS: Mapping[str, tuple[Workload, ...]] = MappingProxyType(
    {"smoke": SMOKE, "default": DEFAULT, "full": FULL, "gpu": GPU}
)

"""The sets of workloads that can be run, by name."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from benchmarks.masks import Causal, Segments, Window
from benchmarks.options import (
    ALiBi,
    Bias,
    DenseMask,
    Dropout,
    Option,
    RelativeBias,
    Sinks,
    SoftCap,
)
from benchmarks.workloads import Dtype, Kind, Workload, over

FORWARD = Workload(1, 1)
CAUSAL = replace(FORWARD, mask=Causal())
GRADIENT = replace(FORWARD, kind=Kind.GRADIENT)
CAUSAL_GRADIENT = replace(GRADIENT, mask=Causal())

PACKED = replace(FORWARD, mask=Segments(8))
STRUCTURED: tuple[Option, ...] = (ALiBi(), SoftCap(), RelativeBias())
"""Scores that are made in the tile, of a few numbers."""
ALL_OPTIONS: tuple[Option, ...] = (*STRUCTURED, Bias(), DenseMask(), Sinks(), Dropout())


def with_options(options: Iterable[Option], work: Workload) -> tuple[Workload, ...]:
    """`work` with each of these options."""
    return tuple(replace(work, option=option) for option in options)


SMOKE = (
    *over((9, 128), FORWARD),
    *over((128,), CAUSAL),
    *over((128,), replace(FORWARD, mask=Window(left=31))),
    *over((9,), GRADIENT),
    *over((64,), replace(CAUSAL_GRADIENT, batch=2, kv_heads=4)),
    *with_options(ALL_OPTIONS, replace(FORWARD, queries=64, keys=64)),
    *over((64,), PACKED),
)
"""A minute in all: one workload of every sort, for tests."""

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

_AT_4096, _AT_8192 = over((4096, 8192), FORWARD)
_STEP = replace(GRADIENT, queries=2048, keys=2048)
_DROP_IN = tuple(
    one
    for t in (9, 32, 128, 2048)
    for work in over((t,), FORWARD)
    for one in (work, replace(work, mask=Causal()), *with_options((Bias(), DenseMask()), work))
)
"""What `jaxattn.compat` is compared with jax.nn on."""

OPTIONS = (
    *_DROP_IN,
    _AT_4096,
    *with_options(ALL_OPTIONS, _AT_4096),
    *over((4096, 8192), PACKED),
    *with_options(STRUCTURED, _AT_8192),
    _STEP,
    *with_options(ALL_OPTIONS, _STEP),
    *over((2048, 8192), replace(PACKED, kind=Kind.GRADIENT)),
)
"""Every option: about twelve minutes on two cores with `--seconds 1.5`."""

FULL = (
    *DEFAULT,
    *with_options(ALL_OPTIONS, replace(FORWARD, queries=2048, keys=2048)),
    *with_options(ALL_OPTIONS, replace(GRADIENT, queries=1024, keys=1024)),
    *over((2048,), PACKED),
    *over((8192,), replace(PACKED, kind=Kind.GRADIENT)),
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
"""The default set, and odd lengths, longer gradients, options and more of every variant."""

_GPU_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def _gpu(work: Workload) -> tuple[Workload, ...]:
    return over(_GPU_LENGTHS, replace(work, batch=4, heads=16, kv_heads=16, dtype=Dtype.BFLOAT16))


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

FEW = (1, 8, 64)
"""Queries of a decoding step, of several sequences' draft tokens, of a chunk."""
DECODING = replace(FORWARD, keys=8192)


def few(work: Workload) -> tuple[Workload, ...]:
    """`work` with few queries, in both dtypes."""
    return tuple(
        replace(work, queries=t, dtype=dtype)
        for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16)
        for t in FEW
    )


_ONE_HEAD = replace(FORWARD, heads=1, kv_heads=1)
QUERIES = (
    *few(DECODING),
    *few(replace(DECODING, keys=1024)),
    *(replace(_ONE_HEAD, queries=8, keys=s) for s in (2**17, 2**20)),
    *(replace(_ONE_HEAD, queries=8, keys=s, kind=Kind.GRADIENT) for s in (2**17, 2**20)),
)
"""Few queries over many keys, and what the longest ones take to compile: about three minutes."""

SETS: Mapping[str, tuple[Workload, ...]] = MappingProxyType(
    {
        "smoke": SMOKE,
        "default": DEFAULT,
        "options": OPTIONS,
        "queries": QUERIES,
        "full": FULL,
        "gpu": GPU,
    }
)

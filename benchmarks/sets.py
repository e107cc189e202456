"""The sets of workloads that can be run, by name."""

from collections.abc import Mapping
from dataclasses import replace

from benchmarks import options
from benchmarks.options import BIAS, CAUSAL, DENSE_MASK, OPTIONS, STRUCTURED
from benchmarks.workloads import BFLOAT16, FLOAT32, Workload, over, with_options


def _wide(work: Workload) -> Workload:
    return replace(work, features=128, value_features=128)


def _step(work: Workload) -> Workload:
    return replace(work, gradient=True)


FORWARD = Workload(1, 1)
FORWARD_CAUSAL = replace(FORWARD, mask=CAUSAL)
GRADIENT, GRADIENT_CAUSAL = _step(FORWARD), _step(FORWARD_CAUSAL)
WINDOW = replace(FORWARD, mask=options.window(512))
PACKED = replace(FORWARD, mask=options.segments(8))

SMOKE = (
    *over((9, 128), FORWARD),
    *over((128,), FORWARD_CAUSAL),
    *over((128,), replace(FORWARD, mask=options.window(32))),
    *over((9,), GRADIENT),
    *over((64,), replace(GRADIENT_CAUSAL, batch=2, kv_heads=4)),
    *(one for work in over((64,), FORWARD) for one in with_options(OPTIONS, work)),
    *over((64,), PACKED),
)
"""A minute in all: one workload of every sort, for tests."""

_SHORT = (9, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SOME = (9, 32, 128, 512, 1024, 2048, 4096)

DEFAULT = (
    *over((*_SHORT, 8192, 16384), FORWARD),
    *over((*_SOME, 8192, 16384), FORWARD_CAUSAL),
    *over(_SOME, GRADIENT),
    *over(_SOME, GRADIENT_CAUSAL),
    *over((8192,), WINDOW),
    *over((2048,), _wide(FORWARD)),
    *over((1024,), _wide(GRADIENT_CAUSAL)),
    *over((128, 512), replace(FORWARD, batch=8)),
    *over((512,), replace(GRADIENT_CAUSAL, batch=8)),
    *over((2048,), replace(FORWARD_CAUSAL, kv_heads=4)),
    *over((1024,), replace(GRADIENT_CAUSAL, kv_heads=4)),
    replace(FORWARD, queries=1, keys=8192),
)
"""What `python -m benchmarks` runs on a CPU: about ten minutes on two cores."""

_AT_4096, _AT_8192 = over((4096, 8192), FORWARD)
_STEP_2048 = replace(GRADIENT, queries=2048, keys=2048)
_DROP_IN = tuple(
    one
    for work in over((9, 32, 128, 2048), FORWARD)
    for one in (work, replace(work, mask=CAUSAL), *with_options((BIAS, DENSE_MASK), work))
)
"""What `jaxattn.compat` is compared with jax.nn on."""

OPTIONS_SET = (
    *_DROP_IN,
    _AT_4096,
    *with_options(OPTIONS, _AT_4096),
    *over((4096, 8192), PACKED),
    *with_options(STRUCTURED, _AT_8192),
    _STEP_2048,
    *with_options(OPTIONS, _STEP_2048),
    *over((2048, 8192), _step(PACKED)),
)
"""Every option: about twelve minutes on two cores with `--seconds 1.5`."""

FULL = (
    *DEFAULT,
    *with_options(OPTIONS, replace(FORWARD, queries=2048, keys=2048)),
    *with_options(OPTIONS, replace(GRADIENT, queries=1024, keys=1024)),
    *over((2048,), PACKED),
    *over((8192,), _step(PACKED)),
    *over((577, 1000, 2047, 3000), FORWARD),
    *over((16, 64, 256), FORWARD_CAUSAL),
    *over((8192,), GRADIENT),
    *over((8192,), GRADIENT_CAUSAL),
    *over((2048, 16384), WINDOW),
    *over((2048,), _step(WINDOW)),
    *over((4096,), _wide(FORWARD_CAUSAL)),
    *over((2048,), _wide(GRADIENT)),
    *over((2048,), replace(FORWARD_CAUSAL, batch=8)),
)
"""The default set, and odd lengths, longer gradients, options and more of every variant."""

_LARGE = {"batch": 4, "heads": 16, "kv_heads": 16, "dtype": BFLOAT16}
_GROUPED = replace(_wide(FORWARD_CAUSAL), batch=4, heads=32, kv_heads=8, dtype=BFLOAT16)

GPU = (
    *(
        one
        for widen in (lambda work: work, _wide)
        for work in (FORWARD, FORWARD_CAUSAL, GRADIENT, GRADIENT_CAUSAL)
        for one in over((512, 1024, 2048, 4096, 8192, 16384), replace(widen(work), **_LARGE))
    ),
    *over((8192, 16384), replace(_wide(WINDOW), **_LARGE)),
    *over((8192,), replace(_wide(_step(WINDOW)), **_LARGE)),
    *over((8192,), _GROUPED),
    *over((8192,), _step(_GROUPED)),
)
"""What `python -m benchmarks` runs on a GPU: bfloat16, batch 4, 16 heads."""


def few(keys: int) -> tuple[Workload, ...]:
    """Queries of a decoding step, of several sequences' draft tokens, of a chunk; both dtypes."""
    return tuple(
        replace(FORWARD, queries=t, keys=keys, dtype=dtype)
        for dtype in (FLOAT32, BFLOAT16)
        for t in (1, 8, 64)
    )


_ONE_HEAD = replace(FORWARD, heads=1, kv_heads=1, queries=8)
QUERIES = (
    *few(8192),
    *few(1024),
    *(replace(work, keys=s) for work in (_ONE_HEAD, _step(_ONE_HEAD)) for s in (2**17, 2**20)),
)
"""Few queries over many keys, and what the longest ones take to compile: about three minutes."""

SETS: Mapping[str, tuple[Workload, ...]] = {
    "smoke": SMOKE,
    "default": DEFAULT,
    "options": OPTIONS_SET,
    "queries": QUERIES,
    "full": FULL,
    "gpu": GPU,
}

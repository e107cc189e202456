"""The sets of workloads that can be run, by name."""

from typing import Any

from benchmarks.options import BIAS, CAUSAL, DENSE_MASK, NOTHING, OPTIONS, STRUCTURED, Mask, window
from benchmarks.workloads import BFLOAT16, FLOAT32, Workload

STEP: dict[str, Any] = {"gradient": True}
CAUSAL_STEP = {"mask": CAUSAL, **STEP}
WIDE = {"features": 128, "value_features": 128}
LARGE = {"batch": 4, "heads": 16, "kv_heads": 16, "dtype": BFLOAT16}
GROUPED = {**LARGE, **WIDE, "heads": 32, "kv_heads": 8, "mask": CAUSAL}
PACKED, WINDOW = Mask(documents=8), window(512)
SOME = (9, 32, 128, 512, 1024, 2048, 4096)


def over(*lengths: int, options: Any = (NOTHING,), **rest: Any) -> tuple[Workload, ...]:
    """A workload of each length with each option. rest: of `Workload`."""
    return tuple(Workload(t, t, option=option, **rest) for t in lengths for option in options)


SETS: dict[str, tuple[Workload, ...]] = {
    # A minute in all: one workload of every sort, for tests.
    "smoke": (
        *over(9, 128),
        *over(128, mask=CAUSAL),
        *over(128, mask=window(32)),
        *over(9, **STEP),
        *over(64, batch=2, kv_heads=4, **CAUSAL_STEP),
        *over(64, options=OPTIONS),
        *over(64, mask=PACKED),
    ),
    # What `python -m benchmarks` runs on a CPU: about ten minutes on two cores.
    "default": (
        *over(9, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
        *over(*SOME, 8192, 16384, mask=CAUSAL),
        *over(*SOME, **STEP),
        *over(*SOME, **CAUSAL_STEP),
        *over(8192, mask=WINDOW),
        *over(2048, **WIDE),
        *over(1024, **WIDE, **CAUSAL_STEP),
        *over(128, 512, batch=8),
        *over(512, batch=8, **CAUSAL_STEP),
        *over(2048, kv_heads=4, mask=CAUSAL),
        *over(1024, kv_heads=4, **CAUSAL_STEP),
        Workload(queries=1, keys=8192),
    ),
    # Every option: about twelve minutes on two cores with `--seconds 1.5`.
    "options": (
        *(
            work
            for t in (9, 32, 128, 2048)  # what `jaxattn.compat` is compared with jax.nn on
            for work in (*over(t), *over(t, mask=CAUSAL), *over(t, options=(BIAS, DENSE_MASK)))
        ),
        *over(4096, options=(NOTHING, *OPTIONS)),
        *over(4096, 8192, mask=PACKED),
        *over(8192, options=STRUCTURED),
        *over(2048, options=(NOTHING, *OPTIONS), **STEP),
        *over(2048, 8192, mask=PACKED, **STEP),
    ),
    # Few queries over many keys (of a decoding step, of several sequences' draft tokens, of a
    # chunk), and what the longest ones take to compile: about three minutes.
    "queries": (
        *(
            Workload(queries=t, keys=s, dtype=dtype)
            for s in (8192, 1024)
            for dtype in (FLOAT32, BFLOAT16)
            for t in (1, 8, 64)
        ),
        *(
            Workload(queries=8, keys=s, heads=1, kv_heads=1, gradient=gradient)
            for gradient in (False, True)
            for s in (2**17, 2**20)
        ),
    ),
    # Beside the default set odd lengths, longer gradients, options and more of every variant.
    "full": (
        *over(2048, options=OPTIONS),
        *over(1024, options=OPTIONS, **STEP),
        *over(2048, mask=PACKED),
        *over(8192, mask=PACKED, **STEP),
        *over(577, 1000, 2047, 3000),
        *over(16, 64, 256, mask=CAUSAL),
        *over(8192, **STEP),
        *over(8192, **CAUSAL_STEP),
        *over(2048, 16384, mask=WINDOW),
        *over(2048, mask=WINDOW, **STEP),
        *over(4096, mask=CAUSAL, **WIDE),
        *over(2048, **WIDE, **STEP),
        *over(2048, mask=CAUSAL, batch=8),
    ),
    # What `python -m benchmarks` runs on a GPU: bfloat16, batch 4, 16 heads.
    "gpu": (
        *(
            work
            for width in ({}, WIDE)
            for kind in ({}, {"mask": CAUSAL}, STEP, CAUSAL_STEP)
            for work in over(512, 1024, 2048, 4096, 8192, 16384, **LARGE, **width, **kind)
        ),
        *over(8192, 16384, mask=WINDOW, **LARGE, **WIDE),
        *over(8192, mask=WINDOW, **LARGE, **WIDE, **STEP),
        *over(8192, **GROUPED),
        *over(8192, **GROUPED, **STEP),
    ),
}
SETS["full"] = SETS["default"] + SETS["full"]

"""The stage that times others, each beside jaxattn in the same rounds, after its check."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from statistics import median
from typing import Any

import jax
import numpy as np

import jaxattn as ja
from benchmarks import run
from benchmarks.contenders import CUDNN, XLA, Contender, attend, compiled
from benchmarks.gate import Gate
from benchmarks.gpu.child import Case, Setting
from benchmarks.gpu.programs import BUDGET, product, work
from benchmarks.gpu.times import name
from benchmarks.options import CAUSAL, EVERY_PAIR, FLEX
from benchmarks.timing import Built, measure, paired_ratio
from benchmarks.workloads import Inputs, Workload

OURS, MOSAIC = "jaxattn", "jax's Mosaic kernel"
# Of its kernels' tiles those that compile without spills, by features: queries, keys and steps of
# the forward pass; queries and keys for dk and dv, and for dq.
TILES = {64: (64, 128, 4, 128, 64, 64, 128), 128: (64, 128, 2, 64, 64, 64, 128)}


def _mosaic_limits(its: Workload) -> str | None:
    return "it has no causal backward pass" if its.gradient and its.mask.causal else None


def mosaic(its: Workload, inputs: Inputs) -> Built:
    """It has no scale: the queries are scaled beforehand, and their gradient afterwards. It takes
    float16 only."""
    from jax.experimental.pallas.ops.gpu import attention_mgpu  # pyright: ignore

    names = "block_q", "block_kv", "max_concurrent_steps"
    names += "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"
    blocks = dict(zip(names, TILES[its.features], strict=True))
    given: Any = blocks | {"compute_wgs_bwd": 2, "causal": its.mask.causal}
    config = attention_mgpu.TuningConfig(**given)
    scale = its.features**-0.5
    call: Any = lambda q, k, v, work, extra: attention_mgpu.attention(q, k, v, config)
    scaled = inputs._replace(q=inputs.q * np.float32(scale))
    built = compiled(call, replace(its, dtype=np.dtype(np.float16)), scaled)

    def outputs(got: Any) -> list[np.ndarray]:
        found = built.outputs(got)
        return [x * scale if i == 1 else x for i, x in enumerate(found)]

    return replace(built, outputs=outputs)


def peers(setting: Setting) -> list[Case]:
    others = [XLA] if setting.dry else [XLA, CUDNN, Contender(MOSAIC, mosaic, _mosaic_limits)]
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_contenders import torch_contenders

        others += torch_contenders(options=True)
    kinds = [(128, CAUSAL), (128, EVERY_PAIR), (64, CAUSAL)]
    works = [
        work(setting, 8192, *kind, batch=1, gradient=x) for kind in kinds for x in (False, True)
    ]
    cases = [
        Case(f"{other.name}, {its.kind} {name(its)}", partial(one, setting, its, other), limit=75)
        for its in works
        for other in others
    ]
    if not any(other.name == FLEX for other in others):
        cases.append(Case("torch", lambda: {"status": "left out", "reason": "no torch with CUDA"}))
    return cases[: setting.size(len(cases), 1)]


@cache
def _drawn(its: Workload, seed: int) -> Inputs:
    return its.inputs(seed)


@cache
def _inputs(its: Workload, seed: int) -> tuple[Inputs, Gate]:
    """The same inputs with and without gradients, whatever the mask."""
    inputs = _drawn(replace(its, mask=EVERY_PAIR, gradient=False), seed)
    return inputs, Gate(its, inputs)


@cache
def _ours(its: Workload, seed: int, dry: bool) -> Built:
    backend: Any = ja.Blockwise() if dry else ja.Hopper()
    return compiled(partial(attend, ja, backend=backend), its, _inputs(its, seed)[0])


def one(setting: Setting, its: Workload, other: Contender) -> dict[str, Any]:
    """Another library on a workload."""
    if why := other.limits(its):
        return {"status": "unsupported", "reason": why}
    inputs, gate = _inputs(its, setting.seed)
    _ours(its, setting.seed, setting.dry)
    builder: Callable[[], Built] = partial(other.build, its, inputs)
    if other.name == FLEX:  # it compiles for long, and on the host
        built = builder()
        builder = lambda: built
    with setting.alone():
        makers = {OURS: partial(_ours, its, setting.seed, setting.dry), other.name: builder}
        ready, records = {}, {}
        for who, maker in makers.items():
            records[who], passed = run.admit(maker, gate.check)
            if passed is None:
                return records[who] | {"who": who}
            ready[who] = passed[0]
        ready["product"] = product(setting.size(8192, 64)).built
        samples = {who: x["samples_s"] for who, x in measure(ready, BUDGET).items()}
    ceiling = product(setting.size(8192, 64))
    facts = {}
    for who in makers:
        share = paired_ratio(samples["product"], samples[who]) / ceiling.calls
        facts[who] = {
            "ms": median(samples[who]) * 1e3,
            "tflops": its.flops / median(samples[who]) / 1e12,
            "share": share * its.flops / ceiling.flops,
            "errors": records[who]["errors"],
            "compile_s": records[who].get("compile_s"),
            "samples_ms": [x * 1e3 for x in samples[who]],
        }
    jax.clear_caches()
    return {"who": other.name, "ratio": paired_ratio(samples[OURS], samples[other.name])} | {
        "times": facts
    }

"""Contenders and results made up for the tests of the benchmarks.

Import it before `benchmarks`: without what they need, the importing tests are skipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("flax", reason="the benchmarks measure Flax")
pytest.importorskip("matplotlib", reason="the benchmarks draw plots")
pytest.importorskip("psutil", reason="the benchmarks read the machine's memory")
pytest.importorskip("tqdm", reason="the benchmarks show a progress bar")

from benchmarks import machine
from benchmarks.contenders import Contender
from benchmarks.sets import SETS
from benchmarks.timing import Budget, Built
from benchmarks.workloads import Inputs, Workload

QUICK = Budget(seconds=0.0, fewest=5, most=5)


def times(contender: Contender, factor: float) -> Contender:
    """A contender whose outputs are too large by a factor."""

    def build(work: Workload, inputs: Inputs) -> Built:
        built = contender.build(work, inputs)
        return replace(built, outputs=lambda got: [x * factor for x in built.outputs(got)])

    return Contender(f"{contender.name} x {factor}", build)


def synthetic(
    seconds: Callable[[Workload, str], float],
    temp: Callable[[Workload, str], int],
    works: Sequence[Workload] = SETS["default"],
    names: Sequence[str] = ("jaxattn", "jax.nn", "torch SDPA"),
) -> dict[str, Any]:
    """Results of the default set, as if these had been measured."""
    drift = (1.0, 1.5, 0.75, 2.0, 1.25)

    def record(work: Workload, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "status": "timed",
            "reason": None,
            "samples_s": [seconds(work, name) * x for x in drift],
        }
        if name != "torch SDPA":
            found |= {"temp_bytes": temp(work, name), "compile_s": 0.5}
        if work.queries == 16384 and name == "jax.nn":
            del found["samples_s"]
            found |= {"status": "does not fit", "reason": "needs 24 GiB"}
        return found

    return {
        "name": "made-up",
        "command": "python -m benchmarks",
        "date": "2020-01-01T00:00:00Z",
        "machine": machine.facts(),
        "load_before": 0.1,
        "versions": {"python": "3.11.0", "torch": None},
        "peaks": {"float32": {"size": 1000, "samples_s": {"XLA": [0.01], "torch": [0.008, 0.008]}}},
        "workloads": [
            {**work.facts(), "contenders": {name: record(work, name) for name in names}}
            for work in works
        ],
    }


def fast(work: Workload, name: str) -> float:
    slower = {"jaxattn": 1, "jax.nn": 20 if work.queries >= 512 else 1.2, "torch SDPA": 0.9}
    return work.flops / 100e9 * slower[name]


def lean(work: Workload, name: str) -> int:
    return work.queries * 2048 if name == "jaxattn" else work.queries**2 * 96

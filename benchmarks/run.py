"""Builds contenders, checks them, times them in turns, and says what was found, as plain data.

The results, all of them JSON: `command`, `date`, `machine`, `versions`; `load_before`, the
machine's load when the run began (near 0 if it was quiet); where shares are shown `peaks`, a matrix
product for every dtype; and `workloads`, each with its name, its facts and a record for every
contender that takes part in it:

    status           timed | unsupported | does not fit | wrong | failed
    reason           why it was not timed
    compile_s        tracing, lowering and compiling
    temp_bytes       peak temporary bytes, where it can be known
    errors           of every output against float64, relative
    samples_s        seconds per call, one for every round; rounds are shared by the contenders
    calls            calls to a sample
    median_s, min_s, iqr_s
"""

import gc
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.contenders import Contender
from benchmarks.gate import Finding, Gate
from benchmarks.timing import Budget, Built, build, interquartile, measure, peak_gflops
from benchmarks.workloads import FLOAT32, Inputs, Workload

SHARE_OF_MEMORY = 0.4
"""A contender that would take more of what is free is not run."""

Record = dict[str, Any]
Check = Callable[[Built, Any], Sequence[Finding]]
"""From a contender and what it returned to how right that is."""


def budget(seconds: float) -> Budget:
    """How to time on this device, spending about `seconds` on a workload."""
    if jax.default_backend() == "cpu":
        return Budget(seconds)
    return Budget(seconds, sample_seconds=0.02, pipelined=True)


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Compile times must be real: nothing comes from an earlier run's cache on disk."""
    flag = "jax_enable_compilation_cache"
    before = getattr(jax.config, flag)
    jax.config.update(flag, False)
    try:
        yield
    finally:
        jax.config.update(flag, before)


def run(
    works: Sequence[Workload],
    contenders: Sequence[Contender],
    timing: Budget,
    matrix: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Measures every workload, and gives the results so far after each.

    matrix: rows of the square matrices that speed is compared with.
    """
    dtypes = sorted({w.dtype for w in works}, key=lambda x: x.name)
    products = [MatrixProduct(x, matrix, timing.pipelined) for x in dtypes]
    results: dict[str, Any] = {"peaks": {}, "workloads": []}
    with no_compilation_cache():
        for work in works:
            results["workloads"].append(measure_workload(work, contenders, timing))
            for product in products:
                results["peaks"][product.dtype.name] = product.measured_again()
            yield results


class MatrixProduct:
    """What the machine can do: a large square matrix product, by XLA and by torch.

    It is measured again after every workload, so that a share of it compares like with like even if
    the machine's speed drifts in the course of a run.
    """

    def __init__(self, dtype: np.dtype, size: int | None, pipelined: bool) -> None:
        self.dtype = dtype
        self._size = size or (3072 if jax.default_backend() == "cpu" else 8192)
        self._budget = Budget(0, 1, 1, sample_seconds=0.02, pipelined=pipelined)
        shape = 2, self._size, self._size
        a, b = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        precision = jax.lax.Precision.HIGHEST if dtype == FLOAT32 else None
        by_xla = lambda x, y: jnp.matmul(x, y, precision=precision)
        self._products = {"XLA": build(by_xla, *(jnp.asarray(m, dtype) for m in (a, b)))}
        if importlib.util.find_spec("torch") is not None:
            from benchmarks import torch_contenders

            by_torch = torch_contenders.product(a, b, dtype)
            self._products |= {"torch": by_torch} if by_torch else {}
        for product in self._products.values():
            product.result()
        self._samples: dict[str, list[float]] = {name: [] for name in self._products}

    def measured_again(self) -> dict[str, Any]:
        """What a results file says, with one more sample of each product."""
        for name, samples in measure(self._products, self._budget).items():
            self._samples[name] += [_rounded(x) for x in samples.seconds]
        gflops = peak_gflops(self._samples, self._size)
        return {"size": self._size, "samples_s": self._samples, "gflops": gflops}


def measure_workload(
    work: Workload, contenders: Sequence[Contender], timing: Budget
) -> dict[str, Any]:
    """Builds, checks and times every contender on one workload."""
    gates: dict[Workload, tuple[Inputs, Gate]] = {}
    records: dict[str, Record] = {}
    admitted: dict[str, Built] = {}
    samples: dict[str, list[np.ndarray]] = {}
    for contender in contenders:
        name, asked = contender.name, contender.asked(work)
        if asked is None:
            continue
        if reason := contender.limits(asked):
            records[name] = {"status": "unsupported", "reason": reason}
            continue
        if asked not in gates:
            inputs = asked.inputs()
            gates[asked] = inputs, Gate(asked, inputs)
        inputs, gate = gates[asked]
        records[name], passed = admit(partial(contender.build, asked, inputs), gate.check)
        if passed is not None:
            admitted[name], got = passed
            if asked == work:
                samples[name] = gate.sample(admitted[name].outputs(got))
    if samples:
        for name, finding in gates[work][1].dissenters(samples).items():
            records[name] |= {"status": "wrong", "reason": f"against the others, {finding}"}
            del admitted[name]
    del gates
    add_times(records, admitted, timing)
    return {**work.facts(), "contenders": records}


def measure_all(
    contenders: Mapping[str, tuple[Callable[[], Built], Check]], timing: Budget
) -> dict[str, Record]:
    """Builds, checks and times contenders, each given by how to build and how to check it."""
    records: dict[str, Record] = {}
    admitted: dict[str, Built] = {}
    for name, (builder, check) in contenders.items():
        records[name], passed = admit(builder, check)
        if passed is not None:
            admitted[name] = passed[0]
    add_times(records, admitted, timing)
    return records


def admit(builder: Callable[[], Built], check: Check) -> tuple[Record, tuple[Built, Any] | None]:
    """Builds a contender and checks its results.

    Returns its record, and it and its results if it may be timed.
    """
    record: Record = {"status": "timed", "reason": None}
    refused = lambda status, reason: (record | {"status": status, "reason": reason}, None)
    try:
        built = builder()
        if built.compile_seconds is not None:
            record["compile_s"] = _rounded(built.compile_seconds)
        free = machine.available_bytes()
        if built.needs_bytes > SHARE_OF_MEMORY * free:
            if built.compile_seconds is not None:  # then its need is known without running it
                record["temp_bytes"] = built.temp_bytes()
            needs, there = (f"{x / 2**30:.1f} GiB" for x in (built.needs_bytes, free))
            reason = f"needs {needs} of {there} free, more than {SHARE_OF_MEMORY:.0%}"
            return refused("does not fit", reason)
        got = built.result()
        record["temp_bytes"] = built.temp_bytes()
        findings = check(built, got)
    except Exception as error:  # a peer may fail in any way it likes; the others go on
        lines = str(error).strip().splitlines() or [""]
        return refused("failed", f"{type(error).__name__}: {lines[0][:300]}")
    record["errors"] = {finding.output: finding.facts() for finding in findings}
    if wrong := [str(finding) for finding in findings if finding.wrong]:
        return refused("wrong", "; ".join(wrong))
    return record, (built, got)


def add_times(records: dict[str, Record], admitted: dict[str, Built], timing: Budget) -> None:
    """Times contenders in turns, and lets go of them."""
    for name, its in measure(admitted, timing).items():
        seconds = its.seconds
        found = {
            "median_s": median(seconds),
            "min_s": min(seconds),
            "iqr_s": interquartile(seconds),
        }
        records[name] |= {"calls": its.calls, "samples_s": [_rounded(x) for x in seconds]}
        records[name] |= {key: _rounded(x) for key, x in found.items()}
    admitted.clear()
    gc.collect()


def _rounded(x: float) -> float:
    return float(f"{x:.4g}")

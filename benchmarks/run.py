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
"""

import gc
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.contenders import Contender
from benchmarks.gate import Finding, Gate
from benchmarks.timing import Budget, Built, build, four_digits, measure
from benchmarks.workloads import FLOAT32, Workload

SHARE_OF_MEMORY = 0.4
"""A contender that would take more of what is free is not run."""

MATRIX = {"cpu": 3072, "gpu": 8192, "tpu": 8192}
"""Rows of the square matrices whose product shows what the machine can do."""

Record = dict[str, Any]
Check = Callable[[Built, Any], Sequence[Finding]]
"""From a contender and what it returned to how right that is."""


def run(
    works: Sequence[Workload], contenders: Sequence[Contender], timing: Budget
) -> Iterator[dict[str, Any]]:
    """Measures every workload, and gives the results so far after each.

    Matrix products are measured again after every workload, so that a share of their speed compares
    like with like even if the machine's speed drifts in the course of a run.
    """
    size, once = MATRIX[jax.default_backend()], Budget(0, 1, 1)
    products = {dtype.name: _products(dtype, size) for dtype in {w.dtype: None for w in works}}
    peaks = {dtype: {"size": size, "samples_s": defaultdict(list)} for dtype in products}
    results: dict[str, Any] = {"peaks": peaks, "workloads": []}
    for work in works:
        results["workloads"].append(measure_workload(work, contenders, timing))
        for dtype, its in products.items():
            for name, found in measure(its, once).items():
                peaks[dtype]["samples_s"][name] += found["samples_s"]
        yield results


def _products(dtype: np.dtype, size: int) -> dict[str, Built]:
    """Of two large square matrices, by XLA and by torch."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    precision = jax.lax.Precision.HIGHEST if dtype == FLOAT32 else None
    by_xla = partial(jnp.matmul, precision=precision)
    found = {"XLA": build(by_xla, jnp.asarray(a, dtype), jnp.asarray(b, dtype))}
    if importlib.util.find_spec("torch") is not None:
        from benchmarks import torch_contenders

        if by_torch := torch_contenders.product(a, b, dtype):
            found["torch"] = by_torch
    for product in found.values():
        product.result()
    return found


def measure_workload(
    work: Workload, contenders: Sequence[Contender], timing: Budget
) -> dict[str, Any]:
    """Builds, checks and times every contender on one workload."""
    asked = {c: its for c in contenders if (its := c.asked(work)) is not None}
    inputs = {its: its.inputs() for its in asked.values()}
    gates = {its: Gate(its, arrays) for its, arrays in inputs.items()}
    found: dict[str, Record] = {}
    ready: dict[str, tuple[Callable[[], Built], Check]] = {}
    for contender, its in asked.items():
        if reason := contender.limits(its):
            found[contender.name] = {"status": "unsupported", "reason": reason}
        else:
            builder = partial(contender.build, its, inputs[its])
            ready[contender.name] = builder, gates[its].check
    peers = [c.name for c, its in asked.items() if its == work]
    found |= measure_all(ready, timing, gates.get(work), peers)
    return {**work.facts(), "contenders": {c.name: found[c.name] for c in asked}}


def measure_all(
    contenders: Mapping[str, tuple[Callable[[], Built], Check]],
    timing: Budget,
    gate: Gate | None = None,
    peers: Sequence[str] = (),
) -> dict[str, Record]:
    """Builds, checks and times contenders, each given by how to build and how to check it.

    gate: what compares the outputs of `peers` with each other.
    """
    gc.collect()  # what was measured before lets go of its arrays
    records: dict[str, Record] = {}
    admitted: dict[str, Built] = {}
    samples: dict[str, list[np.ndarray]] = {}
    for name, (builder, check) in contenders.items():
        records[name], passed = admit(builder, check)
        if passed is not None:
            admitted[name], got = passed
            if gate and name in peers:
                samples[name] = gate.sample(admitted[name].outputs(got))
    for name, finding in (gate.dissenters(samples) if gate else {}).items():
        records[name] |= {"status": "wrong", "reason": f"against the others, {finding}"}
        del admitted[name]
    times = measure(admitted, timing)
    return {name: record | times.get(name, {}) for name, record in records.items()}


def admit(builder: Callable[[], Built], check: Check) -> tuple[Record, tuple[Built, Any] | None]:
    """Builds a contender and checks its results.

    Returns its record, and it and its results if it may be timed.
    """
    record: Record = {"status": "timed", "reason": None}
    try:
        built = builder()
        compiled, free = built.compile_seconds, machine.available_bytes()
        if compiled is not None:
            record["compile_s"] = four_digits(compiled)
        if built.needs_bytes > SHARE_OF_MEMORY * free:
            if compiled is not None:  # then its need is known without running it
                record["temp_bytes"] = built.temp_bytes()
            needs, there = (f"{x / 2**30:.1f} GiB" for x in (built.needs_bytes, free))
            reason = f"needs {needs} of {there} free, more than {SHARE_OF_MEMORY:.0%}"
            return record | {"status": "does not fit", "reason": reason}, None
        got = built.result()
        record["temp_bytes"] = built.temp_bytes()
        findings = check(built, got)
    except Exception as error:  # a peer may fail in any way it likes; the others go on
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return record | {"status": "failed", "reason": reason}, None
    record["errors"] = {finding.output: finding.facts() for finding in findings}
    if wrong := [str(finding) for finding in findings if finding.wrong]:
        return record | {"status": "wrong", "reason": "; ".join(wrong)}, None
    return record, (built, got)

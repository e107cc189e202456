"""Runs workloads against contenders and returns everything that was measured, as plain data.

The results, all of them JSON: `machine`, `versions`, `command`, `date`; `load_before`, the
machine's load when the run began (near 0 if it was quiet); `peaks`, a matrix product for every
dtype; and `workloads`, each with its facts and a record for every contender that takes part in it:

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from benchmarks.contenders import Contender, Entrant
from benchmarks.gate import Gate, WrongPattern, summary
from benchmarks.peak import MatrixProduct, matrix_size
from benchmarks.reference import is_whole
from benchmarks.timing import Budget, Samples, interquartile, measure
from benchmarks.workloads import Inputs, Workload

SHARE_OF_MEMORY = 0.4
"""A contender that would take more of what is free is not run."""

MOST_PAIRS = 2**24
"""Workloads with more scores than this are checked on a sample."""


def budget(seconds: float) -> Budget:
    """How to time on this device, spending about `seconds` on a workload."""
    if jax.default_backend() == "cpu":
        return Budget(seconds)
    return Budget(seconds, sample_seconds=0.02, pipelined=True)


def run(
    works: Sequence[Workload],
    contenders: Sequence[Contender],
    timing: Budget,
    *,
    name: str,
    header: Mapping[str, Any],
    matrix: int | None = None,
    save: Callable[[dict[str, Any]], None] = lambda results: None,
    say: Callable[[str], None] = lambda phase: None,
) -> dict[str, Any]:
    """Measures every workload. `save` gets the results so far after each; `say` the phase."""
    say("matrix product")
    size = matrix or matrix_size()
    products = [
        MatrixProduct(x, size, timing.pipelined)
        for x in sorted({w.dtype for w in works}, key=lambda x: x.value)
    ]
    results: dict[str, Any] = {
        "format": 1,
        "name": name,
        **header,
        "load_before": machine.load_average(),
        "contenders": [c.name for c in contenders],
        "peaks": {},
        "workloads": [],
    }
    with _no_compilation_cache():
        for work in works:
            record = measure_workload(work, contenders, timing, say)
            say("matrix product")
            for product in products:
                product.measure()
                results["peaks"][product.dtype.value] = product.facts()
            results["workloads"].append(record)
            save(results)
    return results


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Compile times must be real: nothing comes from an earlier run's cache on disk."""
    flag = "jax_enable_compilation_cache"
    before = getattr(jax.config, flag)
    jax.config.update(flag, False)
    try:
        yield
    finally:
        jax.config.update(flag, before)


def measure_workload(
    work: Workload,
    contenders: Sequence[Contender],
    timing: Budget,
    say: Callable[[str], None] = lambda phase: None,
) -> dict[str, Any]:
    """Builds, checks and times every contender on one workload."""
    gates: dict[Workload, tuple[Inputs, Gate]] = {}
    records: dict[str, dict[str, Any]] = {}
    runners: dict[str, Entrant] = {}
    samples: dict[str, list[np.ndarray]] = {}
    for contender in contenders:
        asked = contender.asked(work)
        if asked is None:
            continue
        if asked not in gates:
            say("float64 reference")
            inputs = asked.inputs()
            gates[asked] = inputs, Gate(asked, inputs, MOST_PAIRS)
        say(f"checking {contender.name}")
        records[contender.name], passed = _admit(contender, asked, *gates[asked])
        if passed is not None:
            runners[contender.name], sample = passed
            if asked == work:
                samples[contender.name] = sample
    if samples and not is_whole(work, MOST_PAIRS):
        for who, error in gates[work][1].dissenters(samples).items():
            records[who] |= {"status": "wrong", "reason": f"against the others, {error}"}
            del runners[who]
    del gates
    timed = measure(runners, timing, lambda done, of: say(f"round {done} of {of}"))
    for who, seconds in timed.items():
        records[who] |= _times(seconds)
    runners.clear()
    gc.collect()
    return {**work.facts(), "contenders": records}


def _admit(
    contender: Contender, work: Workload, inputs: Inputs, gate: Gate
) -> tuple[dict[str, Any], tuple[Entrant, list[np.ndarray]] | None]:
    """Builds a contender and checks its results. Returns its record, and it if it may be timed."""
    reason = contender.supports(work)
    if reason is not None:
        return {"status": "unsupported", "reason": reason}, None
    try:
        built = contender.build(work, inputs)
    except Exception as error:  # a peer may fail in any way it likes; the others go on
        return _failed(error), None
    record: dict[str, Any] = {"status": "timed", "reason": None}
    if built.compile_seconds is not None:
        record["compile_s"] = float(f"{built.compile_seconds:.4g}")
    free = machine.available_bytes()
    if built.needs_bytes > SHARE_OF_MEMORY * free:
        needs, there = (f"{x / 2**30:.1f} GiB" for x in (built.needs_bytes, free))
        reason = f"needs {needs} of {there} free, more than {SHARE_OF_MEMORY:.0%}"
        record |= {"status": "does not fit", "reason": reason}
        if built.compile_seconds is not None:  # then its need is known without running it
            record["temp_bytes"] = built.temp_bytes()
        return record, None
    try:
        got = built.run()
        built.wait(got)
        outputs = built.outputs(got)
        record["temp_bytes"] = built.temp_bytes()
        errors = gate.errors(outputs, built.read_off)
    except WrongPattern as error:
        return record | {"status": "wrong", "reason": str(error)}, None
    except Exception as error:
        return record | _failed(error), None
    record["errors"] = summary(errors)
    wrong = [str(e) for e in errors if e.too_large]
    if wrong:
        return record | {"status": "wrong", "reason": "; ".join(wrong)}, None
    return record, (built, gate.sample(outputs))


def _failed(error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [""]
    return {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:300]}"}


def _times(samples: Samples) -> dict[str, Any]:
    def rounded(x: float) -> float:
        return float(f"{x:.4g}")

    seconds = samples.seconds
    return {
        "calls": samples.calls,
        "samples_s": [rounded(x) for x in seconds],
        "median_s": rounded(median(seconds)),
        "min_s": rounded(min(seconds)),
        "iqr_s": rounded(interquartile(seconds)),
    }

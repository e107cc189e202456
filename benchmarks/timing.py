"""What is ready to be timed, and interleaved wall-clock timing of it.

A machine's speed drifts, so contenders take turns: each round times every contender once, in an
order that rotates, and a ratio is taken within a round. A sample is one call, or as many as fill
a millisecond or two. Before a short sample there is a pause and an untimed call, so that the
caches are this contender's and the previous contender's threads have stopped spinning.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Compile times must be real: nothing comes from an earlier run's cache on disk.
jax.config.update("jax_enable_compilation_cache", False)

SHORT = 0.02
"""Seconds; shorter samples are preceded by a pause and an untimed call."""

PAUSE = 0.002
"""Seconds of that pause."""


@dataclass(frozen=True)
class Built:
    """A computation that is ready to run."""

    run: Callable[[], Any]
    """Starts one computation and returns its results, perhaps before they are there."""
    wait: Callable[[Any], object] = jax.block_until_ready
    """Blocks until what `run` returned is there."""
    temp_bytes: Callable[[], int | None] = lambda: None
    """Peak bytes beyond inputs and results, where it can be known; may run the computation once."""
    compile_seconds: float | None = None
    """Tracing, lowering and compiling; None where nothing is compiled."""
    outputs: Callable[[Any], list[np.ndarray]] = list
    """What `run` returned as float32: out [b t h e], and for a gradient dq, dk, dv like q, k, v."""
    needs_bytes: int = 0
    """Bytes the computation takes on a device in all, known or estimated before it is run."""
    read_off: Callable[[int], Any] | None = None
    """Which weights of how many first queries it keeps, a `gate.Pattern`, where it drops some."""

    def result(self) -> Any:
        """Of one run."""
        got = self.run()
        self.wait(got)
        return got


def build(f: Callable[..., Any], *arrays: Any, donated: int | None = None) -> Built:
    """`f` of these arrays, or of pytrees of them, compiled for exactly their shapes.

    donated: which argument `f` updates in place, if any; it returns the new one and a result. Each
      run starts with what the one before left, the first with a copy.
    """
    begin = time.perf_counter()
    compiled = jax.jit(f, donate_argnums=donated).lower(*arrays).compile()
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    temp = getattr(memory, "temp_size_in_bytes", None)
    needs = [getattr(memory, f"{x}_size_in_bytes", 0) for x in ("argument", "output", "temp")]
    held = list(arrays)
    if donated is not None:
        held[donated] = jax.tree.map(jnp.copy, arrays[donated])

    def run() -> Any:
        got = compiled(*held)
        if donated is not None:
            held[donated], got = got
        return got

    return Built(run, temp_bytes=lambda: temp, compile_seconds=seconds, needs_bytes=sum(needs))


@dataclass(frozen=True)
class Budget:
    """How long to measure one workload."""

    seconds: float = 3.0
    """Spent on rounds, once the fewest rounds are done."""
    fewest: int = 5
    most: int = 60
    sample_seconds: float = field(default_factory=lambda: 0.02 if _runs_behind() else 0.002)
    """A sample repeats calls until it lasts about this long."""


def _runs_behind() -> bool:
    """Whether the device runs behind the host: then calls are started, and the last waited for."""
    return jax.default_backend() != "cpu"


def orders(names: Sequence[Any], rounds: int) -> Iterator[list[Any]]:
    """Who goes when: rotations, every other one reversed.

    In as many rounds as twice the names each has each place twice, and of any two each goes first
    equally often.
    """
    for r in range(rounds):
        turn = [names[(r // 2 + i) % len(names)] for i in range(len(names))]
        yield turn if r % 2 == 0 else turn[::-1]


def measure(runners: Mapping[str, Built], budget: Budget) -> dict[str, dict[str, Any]]:
    """Times warmed-up contenders against each other.

    Returns `samples_s`, seconds per call for every round, and `calls` to a sample, of each.
    """
    if not runners:
        return {}
    gc.collect()
    gc.disable()
    try:
        once = {name: _timed(runner, 1) for name, runner in runners.items()}
        for name in (name for name, x in once.items() if x < SHORT):
            once[name] = min(_timed(runners[name], 4, settle=True) for _ in range(3))
        calls = {name: math.ceil(budget.sample_seconds / x) for name, x in once.items()}
        short = {name: once[name] * calls[name] < SHORT for name in runners}
        a_round = sum(x * calls[name] + (x + PAUSE) * short[name] for name, x in once.items())
        rounds = min(budget.most, max(budget.fewest, int(budget.seconds / a_round)))
        turns = orders(list(runners), rounds)
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        if min(once.values()) >= SHORT:  # then the estimates were a round, in the first order
            seconds = {name: [x] for name, x in once.items()}
            next(turns)
        for name in (name for turn in turns for name in turn):
            seconds[name].append(_timed(runners[name], calls[name], settle=short[name]))
    finally:
        gc.enable()
    return {
        name: {"calls": calls[name], "samples_s": list(map(four_digits, seconds[name]))}
        for name in runners
    }


def _timed(runner: Built, calls: int, settle: bool = False) -> float:
    """Seconds per call."""
    if settle:
        time.sleep(PAUSE)
        runner.result()
    call = runner.run if _runs_behind() else runner.result
    begin = time.perf_counter()
    for _ in range(calls - 1):
        call()
    runner.result()
    return (time.perf_counter() - begin) / calls


def four_digits(x: float) -> float:
    return float(f"{x:.4g}")


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs, both measured in that round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))

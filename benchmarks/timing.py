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
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    """Bytes the computation takes in all, known or estimated before it is run."""
    read_off: Callable[[int], Any] | None = None
    """Which weights of how many first queries it keeps, a `gate.Pattern`, where it drops some."""

    def result(self) -> Any:
        """Of one run."""
        got = self.run()
        self.wait(got)
        return got


def build(f: Callable[..., Any], *arrays: Any, donated: int | None = None) -> Built:
    """`f` of these arrays, or of pytrees of them, compiled for exactly their shapes.

    donated: which argument `f` updates in place, if any; it returns the new one and a result.
    """
    begin = time.perf_counter()
    compiled = jax.jit(f, donate_argnums=donated).lower(*arrays).compile()
    seconds = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    temp = None if memory is None else int(memory.temp_size_in_bytes)
    run = lambda: compiled(*arrays)
    if donated is not None:
        run = _in_turn(compiled, arrays, donated)
    return Built(run, temp_bytes=lambda: temp, compile_seconds=seconds)


def _in_turn(f: Callable[..., Any], arrays: tuple[Any, ...], donated: int) -> Callable[[], Any]:
    """Runs that each start with what the one before left, the first with a copy."""
    held = list(arrays)
    held[donated] = jax.tree.map(jnp.copy, arrays[donated])

    def run() -> Any:
        held[donated], out = f(*held)
        return out

    return run


@dataclass(frozen=True)
class Budget:
    """How long to measure one workload."""

    seconds: float = 3.0
    """Spent on rounds, once the fewest rounds are done."""
    fewest: int = 5
    most: int = 60
    sample_seconds: float = 0.002
    """A sample repeats calls until it lasts about this long."""
    pipelined: bool = False
    """Start all calls of a sample and wait once: for a device that runs behind the host."""


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one for every round."""

    seconds: tuple[float, ...]
    calls: int
    """Calls to a sample."""


def orders(count: int, rounds: int) -> Iterator[tuple[int, ...]]:
    """Who goes when: rotations, every other one reversed.

    In every 2 * count rounds each contender has each place twice, and of any two each goes
    first equally often.
    """
    for r in range(rounds):
        turn = (r // 2) % max(count, 1)
        forward = tuple((turn + i) % count for i in range(count))
        yield forward if r % 2 == 0 else forward[::-1]


def measure(
    runners: Mapping[str, Built],
    budget: Budget,
) -> dict[str, Samples]:
    """Times warmed-up contenders against each other; every one has a sample in every round."""
    if not runners:
        return {}
    names = list(runners)
    with _no_collection():
        once = {name: _estimate(runner, budget) for name, runner in runners.items()}
        calls = {name: max(1, math.ceil(budget.sample_seconds / x)) for name, x in once.items()}
        lasts = {name: x * calls[name] for name, x in once.items()}
        a_round = sum(x + (once[name] + PAUSE) * (x < SHORT) for name, x in lasts.items())
        rounds = min(budget.most, max(budget.fewest, int(budget.seconds / a_round)))
        turns = list(orders(len(names), rounds))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        if min(once.values()) >= SHORT:  # then the estimates were a round, in the first order
            seconds = {name: [x] for name, x in once.items()}
            turns = turns[1:]
        for order in turns:
            for i in order:
                name = names[i]
                if lasts[name] < SHORT:
                    _settle(runners[name])
                seconds[name].append(_timed(runners[name], calls[name], budget.pipelined))
    return {name: Samples(tuple(seconds[name]), calls[name]) for name in names}


def _estimate(runner: Built, budget: Budget) -> float:
    """Seconds per call."""
    once = _timed(runner, 1, budget.pipelined)
    if once < SHORT:
        _settle(runner)
        once = min(_timed(runner, 4, budget.pipelined) for _ in range(3))
    return once


def _settle(runner: Built) -> None:
    time.sleep(PAUSE)
    runner.wait(runner.run())


def _timed(runner: Built, calls: int, pipelined: bool) -> float:
    """Seconds per call."""
    run, wait = runner.run, runner.wait
    got = None
    begin = time.perf_counter()
    if pipelined:
        for _ in range(calls):
            got = run()
        wait(got)
    else:
        for _ in range(calls):
            wait(run())
    return (time.perf_counter() - begin) / calls


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def interquartile(seconds: Sequence[float]) -> float:
    """The middle half's width."""
    if len(seconds) < 2:
        return 0.0
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return high - low


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs, both measured in that round."""
    if len(ours) != len(theirs):
        raise ValueError(
            f"a paired ratio needs the same rounds of both, got {len(ours)} and {len(theirs)}"
        )
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_gflops(samples: Mapping[str, Sequence[float]], size: int) -> float | None:
    """The faster of the products of square matrices, each by its median."""
    return max((2 * size**3 / median(x) / 1e9 for x in samples.values() if x), default=None)

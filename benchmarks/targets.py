"""What jaxattn set out to reach, and whether a results file shows that it did.

Only limits are written here; every measured number comes from the results.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from benchmarks.masks import Window
from benchmarks.options import Bias, DenseMask, Option
from benchmarks.results import Results
from benchmarks.sets import (
    CAUSAL,
    CAUSAL_GRADIENT,
    DECODING,
    FORWARD,
    GRADIENT,
    PACKED,
    STRUCTURED,
    few,
    with_options,
)
from benchmarks.workloads import Kind, Workload, over

OURS = "jaxattn"
PLAIN = "jaxattn, plain"
COMPAT = "jaxattn.compat"
MIB = 2**20

Measured: TypeAlias = tuple[str, float | None]
"""A workload and its number: None where it was not measured, infinity where ours failed."""


@dataclass(frozen=True)
class Target:
    """A limit that the largest of some measured numbers must stay at or below."""

    what: str
    limit: float
    form: str
    """How to print the limit and the number, such as "{:.1f} MiB"."""
    measure: Callable[[Results], list[Measured]]
    group: str = "default"
    """The set of workloads that shows it."""


@dataclass(frozen=True)
class Verdict:
    """A target beside the worst number measured for it."""

    what: str
    limit: str
    measured: str | None
    """None where nothing was measured."""
    worst: str | None
    """The workload with that number."""
    met: bool | None
    """None where that cannot be told, because some of its workloads were not measured."""


def judge(target: Target, results: Results) -> Verdict:
    """Compares what the results show with the limit."""
    limit = target.form.format(target.limit)
    measured = target.measure(results)
    numbers = [(number, work) for work, number in measured if number is not None]
    if not numbers:
        return Verdict(target.what, limit, None, None, None)
    number, worst = max(numbers)
    met = number <= target.limit
    if met and len(numbers) < len(measured):
        met = None
    shown = "no right answer" if math.isinf(number) else target.form.format(number)
    return Verdict(target.what, limit, shown, worst, met)


def _names(lengths: Iterable[int], work: Workload) -> list[str]:
    return [w.name for w in over(lengths, work)]


def _ours(results: Results, work: str, number: float | None, who: str = OURS) -> Measured:
    """The number if our contender was timed; infinity if it was tried and gave no right answer."""
    status = results.record(work, who).get("status")
    if status in ("wrong", "failed", "does not fit"):
        return work, math.inf
    return work, number


def _ratios(
    works: Sequence[str], other: str, who: str = OURS
) -> Callable[[Results], list[Measured]]:
    return lambda results: [_ours(results, w, results.ratio(w, who, other), who) for w in works]


def _mebibytes(works: Sequence[str]) -> Callable[[Results], list[Measured]]:
    def measure(results: Results) -> list[Measured]:
        found = [(w, results.temp_bytes(w, OURS)) for w in works]
        return [_ours(results, w, None if x is None else x / MIB) for w, x in found]

    return measure


def _growth(works: Sequence[tuple[str, str]]) -> Callable[[Results], list[Measured]]:
    def measure(results: Results) -> list[Measured]:
        found = [(b, results.temp_bytes(a, OURS), results.temp_bytes(b, OURS)) for a, b in works]
        return [
            _ours(results, w, large / small if small and large else None)
            for w, small, large in found
        ]

    return measure


def _compile(results: Results) -> list[Measured]:
    return [
        _ours(results, w["name"], results.compile_seconds(w["name"], OURS)) for w in results.works
    ]


def _faster(what: str, limit: float, works: Sequence[str], other: str) -> Target:
    return Target(f"{what}, time over {other}'s", limit, "{:.3f}", _ratios(works, other))


def _option(what: str, limit: float, works: Sequence[str], who: str, other: str) -> Target:
    return Target(what, limit, "{:.3f}", _ratios(works, other, who), "options")


_TINY = _names((9, 16, 32, 64, 128), FORWARD)
_LONG, _LONG_CAUSAL = _names((2048, 4096), FORWARD), _names((2048, 4096), CAUSAL)
_STEP, _STEP_CAUSAL = _names((2048,), GRADIENT), _names((2048,), CAUSAL_GRADIENT)
_WINDOW = _names((8192,), replace(FORWARD, mask=Window(left=511)))
_BOTH_8K = _names((8192,), FORWARD) + _names((8192,), CAUSAL)
_BOTH_16K = _names((16384,), FORWARD) + _names((16384,), CAUSAL)

TARGETS = (
    _faster("Forward, full, T = 9 to 128", 1.05, _TINY, "jax.nn"),
    _faster("Forward, full, T = 512", 0.7, _names((512,), FORWARD), "jax.nn"),
    _faster("Forward, full, T = 2048 and 4096", 1 / 3, _LONG, "jax.nn"),
    _faster("Forward, causal, T = 2048 and 4096", 1 / 4, _LONG_CAUSAL, "jax.nn"),
    _faster("Forward, full, T = 2048 and 4096", 1.3, _LONG, "torch SDPA"),
    _faster("Forward, causal, T = 2048 and 4096", 1.3, _LONG_CAUSAL, "torch SDPA"),
    _faster("Gradient, full, T = 2048", 1 / 2.5, _STEP, "jax.nn"),
    _faster("Gradient, causal, T = 2048", 1 / 4, _STEP_CAUSAL, "jax.nn"),
    _faster("Gradient, full, T = 2048", 1.5, _STEP, "torch SDPA"),
    _faster("Gradient, causal, T = 2048", 1.5, _STEP_CAUSAL, "torch SDPA"),
    _faster("Forward, window of 512, T = 8192", 1 / 15, _WINDOW, "jax.nn"),
    Target("Forward, T = 8192, temporary memory", 40, "{:.1f} MiB", _mebibytes(_BOTH_8K)),
    Target("Forward, T = 16384, temporary memory", 64, "{:.1f} MiB", _mebibytes(_BOTH_16K)),
    Target(
        "Forward, temporary memory at T = 16384 over 8192 (linear: at most 2, and 5 % to spare)",
        2.1,
        "{:.2f}",
        _growth(list(zip(_BOTH_8K, _BOTH_16K, strict=True))),
    ),
    Target("Compile time of any workload", 3, "{:.2f} s", _compile),
)
"""float32, batch 1, 12 heads, 64 features; times are compared round by round."""


def _with(options: Iterable[Option], t: int) -> list[str]:
    return [w.name for w in with_options(options, over((t,), FORWARD)[0])]


_FEW = (9, 32, 128)
_DROP_IN = [*_names(_FEW, FORWARD), *_names(_FEW, CAUSAL)]
_DROP_IN += [name for t in _FEW for name in _with((Bias(), DenseMask()), t)]
_PACKED = [*_names((8192,), PACKED), *_names((8192,), replace(PACKED, kind=Kind.GRADIENT))]

OPTION_TARGETS = (
    *(
        _option(f"Forward, {w}, T = 4096, time over plain's", 1.35, _with([o], 4096), OURS, PLAIN)
        for w, o in zip(("ALiBi", "soft cap", "relative bias"), STRUCTURED, strict=True)
    ),
    Target(
        "Forward, structured scores, temporary memory at T = 8192 over 4096 (linear: at most 2, "
        "and 5 % to spare)",
        2.1,
        "{:.2f}",
        _growth(list(zip(_with(STRUCTURED, 4096), _with(STRUCTURED, 8192), strict=True))),
        "options",
    ),
    _option("Forward, 8 segments, T = 8192, time over plain's", 0.25, _PACKED[:1], OURS, PLAIN),
    _option("Gradient, 8 segments, T = 8192, time over plain's", 0.25, _PACKED[1:], OURS, PLAIN),
    _option("compat, forward, T = 9 to 128, time over jax.nn's", 1.05, _DROP_IN, COMPAT, "jax.nn"),
    _option(
        "compat, forward, full, T = 2048, time over jax.nn's",
        1 / 3,
        _names((2048,), FORWARD),
        COMPAT,
        "jax.nn",
    ),
    _option(
        "compat, forward, causal, T = 2048, time over jax.nn's",
        1 / 4,
        _names((2048,), CAUSAL),
        COMPAT,
        "jax.nn",
    ),
)
"""As above. What an option costs is a ratio to the same call without it, in the same rounds."""

# Without the first, one query in float32: it is in the default set too.
_DECODING = [w.name for w in few(DECODING)][1:]
QUERIES_TARGETS = tuple(
    Target(
        f"Forward, 8 and 64 queries over 8192 keys, and 1 to 64 in bfloat16, time over {other}'s",
        limit,
        "{:.3f}",
        _ratios(_DECODING, other),
        "queries",
    )
    for other, limit in (("torch SDPA", 1.15), ("jax.nn", 1.0))
)
"""Batch 1, 12 heads, 64 features, no mask."""


def verdicts(results: Results, targets: Sequence[Target] | None = None) -> list[Verdict]:
    """Those of a set of which nothing was measured are left out."""
    targets = (*TARGETS, *OPTION_TARGETS, *QUERIES_TARGETS) if targets is None else targets
    judged = [(target.group, judge(target, results)) for target in targets]
    shown = {group for group, verdict in judged if verdict.measured is not None}
    return [verdict for group, verdict in judged if group in shown]

"""What jaxattn set out to reach, and whether a results file shows that it did.

Only limits are written here; every measured number comes from the results.
"""

from collections.abc import Sequence

from benchmarks.options import COMPAT, JAX_NN, OURS, PLAIN, SDPA, STRUCTURED
from benchmarks.results import Results
from benchmarks.tables import Number, Target, Verdict, judge, ratio, used


def _growth(small: int, large: int) -> Number:
    """Memory at one length over that at another."""

    def number(results: Results, work: str) -> float | None:
        before = work.replace(f"t{large}", f"t{small}")
        ours, theirs = (results.temp_bytes(x, OURS) for x in (work, before))
        return ours / theirs if ours and theirs else None

    return number


def _over(what: str, limit: float, works: Sequence[str], other: str, who: str = OURS):
    name = other.removeprefix("jaxattn, ")
    return Target(f"{what}, time over {name}'s", limit, works, ratio(other, who), who=who)


def _at(computation: str, *lengths: int) -> list[str]:
    """The names of workloads."""
    return [f"{computation}-t{t}" for t in lengths]


_LONG, _LONG_CAUSAL = _at("forward-full", 2048, 4096), _at("forward-causal", 2048, 4096)
_STEP, _STEP_CAUSAL = _at("gradient-full", 2048), _at("gradient-causal", 2048)
_AT_8K, _AT_16K = ([f"forward-{x}-t{t}" for x in ("full", "causal")] for t in (8192, 16384))
_LINEAR = "linear: at most 2, and 5 % to spare"

DEFAULT = (
    _over("Forward, full, T = 9 to 128", 1.05, _at("forward-full", 9, 16, 32, 64, 128), JAX_NN),
    _over("Forward, full, T = 512", 0.7, _at("forward-full", 512), JAX_NN),
    _over("Forward, full, T = 2048 and 4096", 1 / 3, _LONG, JAX_NN),
    _over("Forward, causal, T = 2048 and 4096", 1 / 4, _LONG_CAUSAL, JAX_NN),
    _over("Forward, full, T = 2048 and 4096", 1.3, _LONG, SDPA),
    _over("Forward, causal, T = 2048 and 4096", 1.3, _LONG_CAUSAL, SDPA),
    _over("Gradient, full, T = 2048", 1 / 2.5, _STEP, JAX_NN),
    _over("Gradient, causal, T = 2048", 1 / 4, _STEP_CAUSAL, JAX_NN),
    _over("Gradient, full, T = 2048", 1.5, _STEP, SDPA),
    _over("Gradient, causal, T = 2048", 1.5, _STEP_CAUSAL, SDPA),
    _over("Forward, window of 512, T = 8192", 1 / 15, _at("forward-window512", 8192), JAX_NN),
    Target("Forward, T = 8192, temporary memory", 40, _AT_8K, used, "{:.1f} MiB"),
    Target("Forward, T = 16384, temporary memory", 64, _AT_16K, used, "{:.1f} MiB"),
    Target(
        f"Forward, temporary memory at T = 16384 over 8192 ({_LINEAR})",
        2.1,
        _AT_16K,
        _growth(8192, 16384),
        "{:.2f}",
    ),
    Target(
        "Compile time of any workload",
        3,
        (),
        lambda results, work: results.compile_seconds(work, OURS),
        "{:.2f} s",
    ),
)
"""float32, batch 1, 12 heads, 64 features; times are compared round by round."""

_OPTIONS_FULL = [f"forward-full-{x}" for x in ("bias", "densemask")]
_DROP_IN = [
    name
    for computation in ("forward-full", "forward-causal", *_OPTIONS_FULL)
    for name in _at(computation, 9, 32, 128)
]
OPTIONS = (
    *(
        _over(f"Forward, {x.title}, T = 4096", 1.35, _at(f"forward-full-{x}", 4096), PLAIN)
        for x in STRUCTURED
    ),
    Target(
        f"Forward, structured scores, temporary memory at T = 8192 over 4096 ({_LINEAR})",
        2.1,
        [f"forward-full-{x}-t8192" for x in STRUCTURED],
        _growth(4096, 8192),
        "{:.2f}",
    ),
    *(
        _over(f"{x}, 8 segments, T = 8192", 0.25, _at(f"{x.lower()}-segments8", 8192), PLAIN)
        for x in ("Forward", "Gradient")
    ),
    _over("compat, forward, T = 9 to 128", 1.05, _DROP_IN, JAX_NN, COMPAT),
    *(
        _over(f"compat, forward, {x}, T = 2048", y, _at(f"forward-{x}", 2048), JAX_NN, COMPAT)
        for x, y in (("full", 1 / 3), ("causal", 1 / 4))
    ),
)
"""As above. What an option costs is a ratio to the same call without it, in the same rounds."""

# Without one query in float32: it is in the default set too.
_DECODING = [f"forward-full-t{t}-s8192" for t in ("8", "64")]
_DECODING += [f"forward-full-t{t}-s8192-bf16" for t in (1, 8, 64)]
_FEW = "Forward, 8 and 64 queries over 8192 keys, and 1 to 64 in bfloat16"
QUERIES = (
    _over(_FEW, 1.15, _DECODING, SDPA),
    _over(_FEW, 1.0, _DECODING, JAX_NN),
)
"""Batch 1, 12 heads, 64 features, no mask."""


def verdicts(results: Results) -> list[Verdict]:
    """Those of a set of which nothing was measured are left out."""
    judged = [[judge(x, results) for x in targets] for targets in (DEFAULT, OPTIONS, QUERIES)]
    shown = (of_set for of_set in judged if any(x.measured is not None for x in of_set))
    return [verdict for of_set in shown for verdict in of_set]

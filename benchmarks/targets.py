"""What jaxattn set out to reach, and whether a results file shows that it did.

Only limits are written here; every measured number comes from the results.
"""

from collections.abc import Sequence

from benchmarks.options import COMPAT, JAX_NN, OURS, PLAIN, SDPA, STRUCTURED
from benchmarks.results import MIB, Results
from benchmarks.tables import Target, Verdict, judge, ratio


def _over(what: str, limit: float, works: Sequence[str], other: str, who: str = OURS) -> Target:
    name = other.removeprefix("jaxattn, ")
    return Target(f"{what}, time over {name}'s", limit, works, ratio(other, who), who=who)


def _memory(what: str, limit: float, works: Sequence[str]) -> Target:
    number = lambda results, work: (x := results.temp_bytes(work, OURS)) and x / MIB
    return Target(f"{what}, temporary memory", limit, works, number, "{:.1f} MiB")


def _growth(what: str, small: int, large: int, works: Sequence[str]) -> Target:
    """Memory at one length over that at another."""

    def number(results: Results, work: str) -> float | None:
        before = work.replace(f"t{large}", f"t{small}")
        ours, theirs = (results.temp_bytes(x, OURS) for x in (work, before))
        return ours / theirs if ours and theirs else None

    what += f", temporary memory at T = {large} over {small}"
    return Target(f"{what} (linear: at most 2, and 5 % to spare)", 2.1, works, number, "{:.2f}")


_SHORT = [f"forward-full-t{t}" for t in (9, 16, 32, 64, 128)]
_LONG, _LONG_CAUSAL = ([f"forward-{x}-t{t}" for t in (2048, 4096)] for x in ("full", "causal"))
_AT_8K, _AT_16K = ([f"forward-{x}-t{t}" for x in ("full", "causal")] for t in (8192, 16384))
_compiling = lambda results, work: results.compile_seconds(work, OURS)

DEFAULT = (
    _over("Forward, full, T = 9 to 128", 1.05, _SHORT, JAX_NN),
    _over("Forward, full, T = 512", 0.7, ["forward-full-t512"], JAX_NN),
    _over("Forward, full, T = 2048 and 4096", 1 / 3, _LONG, JAX_NN),
    _over("Forward, causal, T = 2048 and 4096", 1 / 4, _LONG_CAUSAL, JAX_NN),
    _over("Forward, full, T = 2048 and 4096", 1.3, _LONG, SDPA),
    _over("Forward, causal, T = 2048 and 4096", 1.3, _LONG_CAUSAL, SDPA),
    _over("Gradient, full, T = 2048", 1 / 2.5, ["gradient-full-t2048"], JAX_NN),
    _over("Gradient, causal, T = 2048", 1 / 4, ["gradient-causal-t2048"], JAX_NN),
    _over("Gradient, full, T = 2048", 1.5, ["gradient-full-t2048"], SDPA),
    _over("Gradient, causal, T = 2048", 1.5, ["gradient-causal-t2048"], SDPA),
    _over("Forward, window of 512, T = 8192", 1 / 15, ["forward-window512-t8192"], JAX_NN),
    _memory("Forward, T = 8192", 40, _AT_8K),
    _memory("Forward, T = 16384", 64, _AT_16K),
    _growth("Forward", 8192, 16384, _AT_16K),
    Target("Compile time of any workload", 3, (), _compiling, "{:.2f} s"),
)
"""float32, batch 1, 12 heads, 64 features; times are compared round by round."""

_DROP_INS = ("full", "causal", "full-bias", "full-densemask")
_DROP_IN = [f"forward-{x}-t{t}" for x in _DROP_INS for t in (9, 32, 128)]
_COSTS = {x.title: [f"forward-full-{x}-t{t}" for t in (4096, 8192)] for x in STRUCTURED}

OPTIONS = (
    *(_over(f"Forward, {x}, T = 4096", 1.35, [at], PLAIN) for x, (at, _) in _COSTS.items()),
    _growth("Forward, structured scores", 4096, 8192, [at for _, at in _COSTS.values()]),
    _over("Forward, 8 segments, T = 8192", 0.25, ["forward-segments8-t8192"], PLAIN),
    _over("Gradient, 8 segments, T = 8192", 0.25, ["gradient-segments8-t8192"], PLAIN),
    _over("compat, forward, T = 9 to 128", 1.05, _DROP_IN, JAX_NN, COMPAT),
    _over("compat, forward, full, T = 2048", 1 / 3, ["forward-full-t2048"], JAX_NN, COMPAT),
    _over("compat, forward, causal, T = 2048", 1 / 4, ["forward-causal-t2048"], JAX_NN, COMPAT),
)
"""As above. What an option costs is a ratio to the same call without it, in the same rounds."""

# Without one query in float32: it is in the default set too.
_DECODING = [f"forward-full-t{x}-s8192" for x in (8, 64)]
_DECODING += [f"forward-full-t{x}-s8192-bf16" for x in (1, 8, 64)]
_FEW = "Forward, 8 and 64 queries over 8192 keys, and 1 to 64 in bfloat16"
QUERIES = (_over(_FEW, 1.15, _DECODING, SDPA), _over(_FEW, 1.0, _DECODING, JAX_NN))
"""Batch 1, 12 heads, 64 features, no mask."""


def verdicts(results: Results) -> list[Verdict]:
    """Those of a set of which nothing was measured are left out."""
    judged = [[judge(x, results) for x in targets] for targets in (DEFAULT, OPTIONS, QUERIES)]
    shown = (of_set for of_set in judged if any(x.measured is not None for x in of_set))
    return [verdict for of_set in shown for verdict in of_set]

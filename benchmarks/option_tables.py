"""What options cost, and how the drop-in compares, as Markdown tables of a results file."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import Results
from benchmarks.tables import mebibytes, milliseconds, table, times
from benchmarks.targets import COMPAT, OURS, PLAIN

OPTIONS = (
    "Median milliseconds of a call of jaxattn; how many times as long it takes as the same call "
    "without the option; how many times as long as jaxattn another takes (above 1, jaxattn is "
    "faster; blank: it has no such option, or it did not fit): medians of the ratios of "
    "interleaved rounds. Temporary memory of the compiled program. The soft cap is 30, "
    "the relative bias has 32 buckets, dropout drops 0.1 of the weights, a dense mask hides half "
    "of the pairs, and segments are eight documents of equal length."
)

DROP_IN = (
    "`jaxattn.compat.dot_product_attention`, called as `jax.nn.dot_product_attention` is. Median "
    "milliseconds, and its time over jax.nn's, round by round (below 1, it is faster)."
)

_WORDS = {
    "alibi": "ALiBi",
    "softcap30": "soft cap",
    "relative32": "relative bias",
    "bias": "dense bias",
    "densemask": "dense mask",
    "sinks": "sinks",
    "dropout0.1": "dropout",
    "segments8": "8 segments",
}


def what(work: Mapping[str, Any]) -> str | None:
    """The option of a workload, or its segments, in words; None for neither."""
    option = work.get("option") or (work["mask"] if work["mask"].startswith("segments") else None)
    return None if option is None else _WORDS.get(option, option)


def options(results: Results) -> str:
    """A row for every workload with an option; empty if there is none."""
    works = [w for w in results.works if what(w) and results.seconds(w["name"], PLAIN)]
    others = _timed(results, works, without=(OURS, PLAIN, COMPAT))
    head = ["Option", "Computation", "T", f"{OURS}, ms", "over plain"]
    head += [*(f"{c}, times as long" for c in others), f"{OURS}, MiB", "jax.nn, MiB"]
    rows = []
    for work in sorted(works, key=lambda w: (w["kind"], w["queries"])):
        name = work["name"]
        row = [what(work) or "", work["kind"], str(work["queries"])]
        row += [milliseconds(results.seconds(name, OURS)), times(results.ratio(name, OURS, PLAIN))]
        row += [times(results.ratio(name, c, OURS)) for c in others]
        row += [mebibytes(results.temp_bytes(name, c)) for c in (OURS, "jax.nn")]
        rows.append(row)
    return table(head, rows, left=2) if rows else ""


def drop_in(results: Results) -> str:
    """A row for every computation that `jaxattn.compat` was timed on, a column for every length."""
    works = [w for w in results.works if results.samples(w["name"], COMPAT)]
    lengths = sorted({w["queries"] for w in works})
    found: dict[str, dict[int, str]] = {}
    for work in works:
        name = work["name"]
        cell = milliseconds(results.seconds(name, COMPAT))
        if ratio := times(results.ratio(name, COMPAT, "jax.nn")):
            cell += f" ({ratio})"
        found.setdefault(what(work) or work["mask"], {})[work["queries"]] = cell
    rows = [[key, *(cells.get(t, "") for t in lengths)] for key, cells in found.items()]
    return table(["Forward", *(f"T = {t}" for t in lengths)], rows, left=1) if rows else ""


def _timed(results: Results, works: Sequence[Any], without: Sequence[str]) -> list[str]:
    everyone = [c for c in results.contenders if c not in without]
    return [c for c in everyone if any(results.samples(w["name"], c) for w in works)]

"""A results file as Markdown. Every number comes from the file."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import header, option_tables
from benchmarks.results import Results
from benchmarks.tables import mebibytes, milliseconds, table, times
from benchmarks.targets import COMPAT, OURS, PLAIN, Verdict, verdicts

PLOTS = {
    "time": "Time against length",
    "memory": "Temporary memory against length",
    "share": "Share of a matrix product's speed against length",
    "options": "Time with each option",
}
"""The plots of a report, and what they show; each is NAME-<key>.png and .svg."""

_CAPTIONS = {
    "time": "Median of a call; both axes logarithmic.",
    "memory": "Both axes logarithmic. Hollow: compiled, so its need is known, but not run, as it "
    "would not fit.",
    "share": "100 % is a large square matrix product measured in the same run.",
    "options": "Every call over jaxattn's own without the option, in the same rounds. A contender "
    "that is not on a line has no such option, or was not run.",
}

HEADLINE_LENGTHS = (9, 128, 512, 2048, 4096, 8192, 16384)


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """The report. `plots` are the keys of `PLOTS` that were drawn."""
    parts = [f"# Benchmarks: {results.data['name']}", _about(results)]
    if summary := headline(results):
        parts += ["## Summary", _SUMMARY, summary]
    judged = verdicts(results)
    if judged:
        parts += ["## Targets", _targets(judged)]
    if cost := option_tables.options(results):
        parts += ["## Options", option_tables.OPTIONS, cost]
    if drop_in := option_tables.drop_in(results):
        parts += ["## In place of jax.nn", option_tables.DROP_IN, drop_in]
    for key in plots:
        name = f"{results.data['name']}-{key}"
        parts += [f"## {PLOTS[key]}", f"![{PLOTS[key]}]({name}.png)", _CAPTIONS[key]]
    parts += ["## Time", _TIME, _times(results)]
    parts += ["## Temporary memory and compile time", _MEMORY, _memory(results)]
    parts += ["## Speed", _SPEED.format(peaks=_peaks(results)), _speeds(results)]
    if missing := _not_timed(results):
        parts += ["## Not timed", missing]
    parts += ["## How it was measured", _METHOD]
    return "\n\n".join(parts) + "\n"


def headline(results: Results) -> str:
    """A short table for a README: batch 1, 12 heads, 64 features, float32, some lengths.

    Empty where the results hold no such workload.
    """
    others = [c for c in results.contenders if c not in (OURS, *_ASIDE)]
    head = ["Computation", "T", f"{OURS}, ms", *(f"{c}, times as long" for c in others)]
    head += [f"{OURS}, MiB", *(f"{c}, MiB" for c in others if _any_memory(results, c))]
    rows = []
    for work in results.works:
        plain = {"batch": 1, "heads": 12, "kv_heads": 12, "features": 64, "dtype": "float32"}
        if any(work[k] != v for k, v in plain.items()) or work["queries"] != work["keys"]:
            continue
        if work["queries"] not in HEADLINE_LENGTHS or option_tables.what(work):
            continue
        name = work["name"]
        row = [f"{work['kind']}, {work['mask']}", str(work["queries"])]
        row.append(milliseconds(results.seconds(name, OURS)))
        row += [_times_as_long(results, name, c) for c in others]
        row.append(mebibytes(results.temp_bytes(name, OURS)))
        row += [mebibytes(results.temp_bytes(name, c)) for c in others if _any_memory(results, c)]
        rows.append(row)
    return table(head, rows, left=1) if rows else ""


_ASIDE = (PLAIN, COMPAT, "Flax NNX", "torch Flex")
"""Contenders that stand in tables of their own, or do what another does."""

_SUMMARY = (
    "float32, batch 1, 12 heads, 64 features, T tokens. Median milliseconds of a call; how many "
    "times as long as jaxattn another takes (above 1, jaxattn is faster), the median of the "
    "ratios of interleaved rounds; temporary memory of the compiled program."
)
_TIME = (
    "Median milliseconds of a call, and in brackets how many times as long as jaxattn it takes "
    "(the median of the rounds' ratios: above 1, jaxattn is faster). ± is half the interquartile "
    "range of jaxattn's samples."
)
_MEMORY = (
    "Temporary memory is what the compiled program allocates beyond its inputs and results "
    "(`memory_analysis().temp_size_in_bytes`). Compile time is tracing, lowering and compiling, "
    "with cold caches."
)
_SPEED = (
    "GFLOP/s, and in brackets the share of a large square matrix product of the same dtype, "
    "measured in the same run ({peaks})."
)
_METHOD = """\
- Before it is timed, every contender's output, and every gradient, is compared with float64
  NumPy; a contender that is off by more than its dtype's rounding allows gets no time.
- Contenders take turns, in an order that rotates: each round times every one of them once. A
  sample is one call or, for short calls, as many as fill about 2 ms (20 ms on a GPU). Before a
  short sample there is a pause and an untimed call.
- FLOPs: a multiply and an add are two, and only the pairs that the mask allows count (causal:
  half). Forward is 2 · pairs · (d + e); a gradient, which is forward and backward, 3.5 times that.
- A gradient returns the output too, so that nobody leaves the forward pass out.
- Inputs are random normal numbers, already on the device. PyTorch gets its own layout,
  [b, h, t, d] contiguous, and a window's mask, beforehand; JAX contenders read [b, t, h, d].
- A contender that would need more than 40 % of the memory that is free is not run."""


def _about(results: Results) -> str:
    data = results.data
    machine = data["machine"]
    instructions = ", ".join(machine["cpu_instructions"])
    cpu = f"{machine['cpu']}, {machine['cores']} cores" + (instructions and f" ({instructions})")
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    where = f"{machine['accelerator']}; host: {cpu}" if machine["accelerator"] else cpu
    load = data.get("load_before")
    quiet = "" if load is None else f"; load average before it: {load}"
    where = f"{where}, {memory}, {machine['system']} {machine['architecture']}"
    return header.of_report(data, where, f"Matrix product: {_peaks(results)}") + quiet


def _peaks(results: Results) -> str:
    return "; ".join(
        f"{dtype}, {facts['size']} x {facts['size']}: {results.peak(dtype) or 0:,.0f} GFLOP/s"
        for dtype, facts in results.data["peaks"].items()
    )


def _targets(judged: Sequence[Verdict]) -> str:
    words = {True: "met", False: "**not met**", None: "not (all) measured"}
    rows = [
        [v.what, f"≤ {v.limit}", v.measured or "", f"`{v.worst}`" if v.worst else "", words[v.met]]
        for v in judged
        if v.measured is not None
    ]
    head = ["Target", "Limit", "Measured, worst", "At", "Verdict"]
    left_out = len(judged) - len(rows)
    more = f"\n\nNothing was measured for {left_out} more targets." if left_out else ""
    return table(head, rows, left=1) + more


def _times(results: Results) -> str:
    others = [c for c in _taking_part(results) if c != OURS]
    rows = []
    for work in results.works:
        name = work["name"]
        spread = results.spread(name, OURS)
        row = [f"`{name}`", milliseconds(results.seconds(name, OURS))]
        row.append("" if spread is None else f"{spread / 2:.0%}")
        for other in others:
            cell = milliseconds(results.seconds(name, other)) or _why(results, name, other)
            if ratio := _times_as_long(results, name, other):
                cell += f" ({ratio})"
            row.append(cell)
        row.append(str(len(results.samples(name, OURS)) or ""))
        rows.append(row)
    return table(["Workload", OURS, "±", *others, "Rounds"], rows, left=1)


def _memory(results: Results) -> str:
    shown = [c for c in _taking_part(results) if _any_memory(results, c)]
    compiled = [c for c in _taking_part(results) if _any_compile(results, c)]
    rows = []
    for work in results.works:
        name = work["name"]
        row = [f"`{name}`", *(mebibytes(results.temp_bytes(name, c)) for c in shown)]
        for c in compiled:
            seconds = results.compile_seconds(name, c)
            row.append("" if seconds is None else f"{seconds:.2f}")
        rows.append(row)
    head = ["Workload", *(f"{c}, MiB" for c in shown), *(f"{c}, compile s" for c in compiled)]
    return table(head, rows, left=1)


def _speeds(results: Results) -> str:
    shown = _taking_part(results)
    rows = []
    for work in results.works:
        row = [f"`{work['name']}`", f"{work['flops'] / 1e9:,.3g}"]
        for c in shown:
            gflops, share = results.gflops(work["name"], c), results.share(work["name"], c)
            cell = "" if gflops is None else f"{gflops:,.0f}"
            row.append(cell if share is None else f"{cell} ({share:.0%})")
        rows.append(row)
    return table(["Workload", "GFLOP", *shown], rows, left=1)


def _not_timed(results: Results) -> str:
    return "\n".join(
        f"- `{work['name']}`, {name}: {record['status']}: {record['reason']}"
        for work in results.works
        for name, record in work["contenders"].items()
        if record["status"] != "timed"
    )


def _why(results: Results, work: str, contender: str) -> str:
    record: Mapping[str, Any] = results.record(work, contender)
    return record.get("status", "")


def _times_as_long(results: Results, work: str, other: str) -> str:
    return times(results.ratio(work, other, OURS))


def _taking_part(results: Results) -> list[str]:
    """Those with a time in some workload, or the reason why not; the plain one is no workload's."""
    there = {c for w in results.works for c in w["contenders"]}
    return [c for c in results.contenders if c != PLAIN and c in there]


def _any_compile(results: Results, contender: str) -> bool:
    return any(results.compile_seconds(w["name"], contender) is not None for w in results.works)


def _any_memory(results: Results, contender: str) -> bool:
    return any(results.temp_bytes(w["name"], contender) is not None for w in results.works)

"""The report of a results file of `python -m benchmarks`. Every number comes from the file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks import machine, plots
from benchmarks.options import COMPAT, FLAX, FLEX, JAX_NN, OURS, PLAIN
from benchmarks.results import Results, option_of
from benchmarks.tables import Columns, Verdict, mebibytes, milliseconds, table, times
from benchmarks.targets import verdicts

TEMPLATE = Path(__file__).with_name("report.template.md")


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the report by name: Markdown and plots."""
    results, name = Results(data), data["name"]
    drawn = plots.plots(results)
    files = {f"{name}.md": markdown(results, tuple(drawn)).encode()}
    for key, plot in drawn.items():
        files |= {f"{name}-{key}.{kind}": plots.render(plot, kind) for kind in ("png", "svg")}
    return files


def markdown(results: Results, drawn: Sequence[str] = ()) -> str:
    """The template filled in, without the sections of what there is not.

    drawn: the plots that there are, of `plots.plots`; each is NAME-<key>.png and .svg.
    """
    name = results.data["name"]
    values = {
        "name": name,
        "about": _about(results),
        "summary": headline(results),
        "targets": _targets(verdicts(results)),
        "options": options(results),
        "drop_in": drop_in(results),
        "times": _times(results),
        "memory": _memory(results),
        "speeds": _speeds(results),
        "peaks": _peaks(results),
        "not_timed": _not_timed(results),
    }
    for key in ("time", "memory", "share", "options"):
        values[f"{key}_plot"] = f"{name}-{key}.png" if key in drawn else ""
    sections = map(Template, TEMPLATE.read_text().split("\n## "))
    there = (x for x in sections if all(values[key] for key in x.get_identifiers()))
    return "\n## ".join(section.substitute(values) for section in there)


def _about(results: Results) -> str:
    data = results.data
    its = data["machine"]
    instructions = ", ".join(its["cpu_instructions"])
    where = f"{its['cpu']}, {its['cores']} cores" + (instructions and f" ({instructions})")
    where = f"{its['accelerator']}; host: {where}" if its["accelerator"] else where
    where += f", {its['memory_bytes'] / 2**30:.0f} GiB, {its['system']} {its['architecture']}"
    load = data.get("load_before")
    quiet = "" if load is None else f"; load average before it: {load}"
    return machine.about(data, where, f"Matrix product: {_peaks(results)}") + quiet


def _peaks(results: Results) -> str:
    return "; ".join(
        f"{dtype}, {facts['size']} x {facts['size']}: {results.peak(dtype) or 0:,.0f} GFLOP/s"
        for dtype, facts in results.data["peaks"].items()
    )


HEADLINE_LENGTHS = (9, 128, 512, 2048, 4096, 8192, 16384)
_HEADLINE = {"batch": 1, "heads": 12, "kv_heads": 12, "features": 64, "dtype": "float32"}
_ASIDE = (OURS, PLAIN, COMPAT, FLAX, FLEX)
"""Contenders that stand in tables of their own, or do what another does."""


def headline(results: Results) -> str:
    """A short table for a README: batch 1, 12 heads, 64 features, float32, some lengths.

    Empty where the results hold no such workload.
    """
    works = [
        w
        for w in results.works
        if all(w[k] == v for k, v in _HEADLINE.items())
        and w["queries"] == w["keys"] in HEADLINE_LENGTHS
        and not option_of(w)
    ]
    others = [c for c in results.contenders if c not in _ASIDE]
    columns: Columns = {
        "Computation": lambda w: f"{w['kind']}, {w['mask']}",
        "T": lambda w: str(w["queries"]),
        f"{OURS}, ms": lambda w: milliseconds(results.seconds(w["name"], OURS)),
    }
    columns |= _each("times as long", others, lambda w, c: times(results.ratio(w, c, OURS)))
    return table(works, columns | _mebibytes(results, [OURS, *others]), left=1)


def _each(what: str, names: Sequence[str], cell: Callable[[str, str], str]) -> Columns:
    """A column for every contender, of the workload's name and it."""
    head = f", {what}" if what else ""
    return {f"{c}{head}": lambda w, c=c: cell(w["name"], c) for c in names}


def _mebibytes(results: Results, names: Sequence[str]) -> Columns:
    """A column for every contender whose memory is known somewhere."""
    known = lambda c: any(results.temp_bytes(w["name"], c) is not None for w in results.works)
    cell = lambda w, c: mebibytes(results.temp_bytes(w, c))
    return _each("MiB", [c for c in names if known(c)], cell)


def options(results: Results) -> str:
    """A row for every workload with an option; empty if there is none."""
    works = [w for w in results.works if option_of(w) and results.seconds(w["name"], PLAIN)]
    timed = lambda c: any(results.samples(w["name"], c) for w in works)
    others = [c for c in results.contenders if c not in (OURS, PLAIN, COMPAT) and timed(c)]
    columns: Columns = {
        "Option": option_of,
        "Computation": lambda w: w["kind"],
        "T": lambda w: str(w["queries"]),
        f"{OURS}, ms": lambda w: milliseconds(results.seconds(w["name"], OURS)),
        "over plain": lambda w: times(results.ratio(w["name"], OURS, PLAIN)),
    }
    columns |= _each("times as long", others, lambda w, c: times(results.ratio(w, c, OURS)))
    columns |= _mebibytes(results, (OURS, JAX_NN))
    return table(sorted(works, key=lambda w: (w["kind"], w["queries"])), columns, left=2)


def drop_in(results: Results) -> str:
    """A row for every computation that `jaxattn.compat` was timed on, a column for every length."""
    works = [w for w in results.works if results.samples(w["name"], COMPAT)]
    lengths = sorted({w["queries"] for w in works})
    found: dict[str, dict[int, str]] = {}
    for work in works:
        cell = _with_ratio(results, work["name"], COMPAT, JAX_NN)
        found.setdefault(option_of(work) or work["mask"], {})[work["queries"]] = cell
    columns: Columns = {"Forward": lambda row: row[0]}
    columns |= {f"T = {t}": lambda row, t=t: row[1].get(t, "") for t in lengths}
    return table(list(found.items()), columns, left=1)


def _with_ratio(results: Results, work: str, contender: str, other: str) -> str:
    """Milliseconds, or why there are none, and in brackets the ratio to another."""
    seconds = milliseconds(results.seconds(work, contender))
    ratio = times(results.ratio(work, contender, other))
    cell = seconds or results.record(work, contender).get("status", "")
    return f"{cell} ({ratio})" if ratio else cell


def _targets(judged: Sequence[Verdict]) -> str:
    words = {True: "met", False: "**not met**", None: "not (all) measured"}
    columns: Columns = {
        "Target": lambda v: v.what,
        "Limit": lambda v: f"≤ {v.limit}",
        "Measured, worst": lambda v: v.measured,
        "At": lambda v: f"`{v.worst}`",
        "Verdict": lambda v: words[v.met],
    }
    measured = [v for v in judged if v.measured is not None]
    left_out = len(judged) - len(measured)
    more = f"\n\nNothing was measured for {left_out} more targets." if left_out else ""
    return table(measured, columns, left=1) + more


def _times(results: Results) -> str:
    others = [c for c in _taking_part(results) if c != OURS]
    spread = lambda name: "" if (x := results.spread(name, OURS)) is None else f"{x / 2:.0%}"
    columns: Columns = {
        "Workload": lambda w: f"`{w['name']}`",
        OURS: lambda w: milliseconds(results.seconds(w["name"], OURS)),
        "±": lambda w: spread(w["name"]),
    }
    columns |= _each("", others, lambda w, c: _with_ratio(results, w, c, OURS))
    columns["Rounds"] = lambda w: str(len(results.samples(w["name"], OURS)) or "")
    return table(results.works, columns, left=1)


def _memory(results: Results) -> str:
    everyone = _taking_part(results)
    seconds = lambda w, c: "" if (x := results.compile_seconds(w, c)) is None else f"{x:.2f}"
    compiled = [c for c in everyone if any(seconds(w["name"], c) for w in results.works)]
    columns: Columns = {"Workload": lambda w: f"`{w['name']}`"}
    columns |= _mebibytes(results, everyone) | _each("compile s", compiled, seconds)
    return table(results.works, columns, left=1)


def _speeds(results: Results) -> str:
    def cell(work: str, contender: str) -> str:
        gflops, share = results.gflops(work, contender), results.share(work, contender)
        found = "" if gflops is None else f"{gflops:,.0f}"
        return found if share is None else f"{found} ({share:.0%})"

    columns: Columns = {"Workload": lambda w: f"`{w['name']}`"}
    columns["GFLOP"] = lambda w: f"{w['flops'] / 1e9:,.3g}"
    return table(results.works, columns | _each("", _taking_part(results), cell), left=1)


def _not_timed(results: Results) -> str:
    return "\n".join(
        f"- `{work['name']}`, {name}: {record['status']}: {record['reason']}"
        for work in results.works
        for name, record in work["contenders"].items()
        if record["status"] != "timed"
    )


def _taking_part(results: Results) -> list[str]:
    """Those with a time in some workload, or the reason why not; the plain one is no workload's."""
    there = {c for w in results.works for c in w["contenders"]}
    return [c for c in results.contenders if c != PLAIN and c in there]

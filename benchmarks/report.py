"""The report of a results file of `python -m benchmarks`. Every number comes from the file."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from benchmarks import machine, plots
from benchmarks.options import COMPAT, FLAX, FLEX, JAX_NN, OURS, PLAIN
from benchmarks.results import Results, option_of
from benchmarks.tables import Columns, mebibytes, milliseconds, table, times
from benchmarks.targets import verdicts

TEMPLATE = Path(__file__).with_name("report.template.md")
LENGTHS = (9, 128, 512, 2048, 4096, 8192, 16384)
USUAL = {"batch": 1, "heads": 12, "kv_heads": 12, "features": 64, "dtype": "float32"}
ASIDE = (OURS, PLAIN, COMPAT, FLAX, FLEX)
"""Contenders that stand in tables of their own, or do what another does."""
WORKLOAD: Columns = {"Workload": lambda w: f"`{w['name']}`"}
TOKENS: Columns = {"T": lambda w: str(w["queries"])}


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the report by name: Markdown and plots."""
    results, name = Results(data), data["name"]
    files = {f"{name}.md": markdown(results).encode()}
    for key, plot in plots.plots(results).items():
        files |= {f"{name}-{key}.{kind}": plots.render(plot, kind) for kind in ("png", "svg")}
    return files


def markdown(results: Results) -> str:
    """The template filled in, without the sections of what there is not."""
    data, works, name = results.data, results.works, results.data["name"]
    everyone = [c for c in results.contenders if c != PLAIN]
    each = partial(_each, works, everyone)
    memory = WORKLOAD | each(results.temp_bytes, mebibytes, ", MiB")
    memory |= each(results.compile_seconds, lambda x: f"{x:.2f}" if x else "", ", compile s")
    speeds = WORKLOAD | {"GFLOP": lambda w: f"{w['flops'] / 1e9:,.3g}"}
    both = lambda work, who: (results.gflops(work, who), results.share(work, who))
    speeds |= each(both, lambda x: f"{x[0]:,.0f} ({x[1]:.0%})" if all(x) else "")
    peaks = "; ".join(
        f"{dtype}, {facts['size']} x {facts['size']}: {results.peak(dtype):,.0f} GFLOP/s"
        for dtype, facts in data["peaks"].items()
    )
    values = {
        "name": name,
        "about": _about(data, peaks),
        "summary": headline(results),
        "targets": _targets(results),
        "options": options(results),
        "drop_in": drop_in(results),
        "times": _times(results),
        "memory": table(works, memory, left=1),
        "speeds": table(works, speeds, left=1),
        "peaks": peaks,
        "not_timed": "\n".join(
            f"- `{work['name']}`, {name}: {record['status']}: {record['reason']}"
            for work in works
            for name, record in work["contenders"].items()
            if record["status"] != "timed"
        ),
    }
    values |= {f"{key}_plot": f"{name}-{key}.png" for key in plots.plots(results)}
    sections = map(Template, TEMPLATE.read_text().split("\n## "))
    there = (x for x in sections if all(values.get(key) for key in x.get_identifiers()))
    return "\n## ".join(section.substitute(values) for section in there)


def _each(works: Sequence[Any], names: Sequence[str], number: Any, form: Any, head="") -> Columns:
    """A column for every contender of whom there is something to say.

    number: a function of a workload's name and a contender; form: how it is printed.
    """
    columns = {f"{c}{head}": lambda w, c=c: form(number(w["name"], c)) for c in names}
    return {name: column for name, column in columns.items() if any(map(column, works))}


def _beside(results: Results, work: str, who: str, other: str = OURS) -> str:
    """Milliseconds, or why there are none, and in brackets the ratio to another."""
    ratio = times(results.ratio(work, who, other))
    seconds = milliseconds(results.seconds(work, who))
    return (
        f"{seconds} ({ratio})" if ratio else seconds or results.record(work, who).get("status", "")
    )


def headline(results: Results) -> str:
    """A short table for a README, of some lengths; empty where there is no such workload."""
    usual = [w for w in results.works if USUAL.items() <= w.items() and not option_of(w)]
    works = [w for w in usual if w["queries"] == w["keys"] in LENGTHS]
    others = [c for c in results.contenders if c not in ASIDE]
    columns = {"Computation": lambda w: f"{w['kind']}, {w['mask']}"} | TOKENS
    columns |= _each(works, [OURS], results.seconds, milliseconds, ", ms")
    columns |= _each(works, others, partial(results.ratio, other=OURS), times, ", times as long")
    columns |= _each(works, [OURS, *others], results.temp_bytes, mebibytes, ", MiB")
    return table(works, columns, left=1)


def options(results: Results) -> str:
    """A row for every workload with an option; empty if there is none."""
    works = [w for w in results.works if option_of(w) and results.seconds(w["name"], PLAIN)]
    works.sort(key=lambda w: (w["kind"], w["queries"]))
    others = [c for c in results.contenders if c not in (OURS, PLAIN, COMPAT)]
    columns = {"Option": option_of, "Computation": lambda w: w["kind"]} | TOKENS
    columns |= _each(works, [OURS], results.seconds, milliseconds, ", ms")
    columns["over plain"] = lambda w: times(results.ratio(w["name"], OURS, PLAIN))
    columns |= _each(works, others, partial(results.ratio, other=OURS), times, ", times as long")
    columns |= _each(works, [OURS, JAX_NN], results.temp_bytes, mebibytes, ", MiB")
    return table(works, columns, left=2)


def drop_in(results: Results) -> str:
    """A row for every computation that `jaxattn.compat` was timed on, a column for every length."""
    cells = {
        (option_of(w) or w["mask"], w["queries"]): _beside(results, w["name"], COMPAT, JAX_NN)
        for w in results.works
        if results.samples(w["name"], COMPAT)
    }
    columns: Columns = {"Forward": str}
    for t in sorted({t for _, t in cells}):
        columns[f"T = {t}"] = lambda what, t=t: cells.get((what, t), "")
    return table(list(dict.fromkeys(what for what, _ in cells)), columns, left=1)


def _spread(samples: Sequence[float]) -> str:
    """Half the interquartile range, relative to the median."""
    low, middle, high = np.percentile(samples or np.nan, (25, 50, 75))
    return f"{(high - low) / 2 / middle:.0%}" if samples else ""


def _times(results: Results) -> str:
    ours = lambda w: results.samples(w["name"], OURS)
    others = [c for c in results.contenders if c not in (OURS, PLAIN)]
    columns = WORKLOAD | _each(results.works, [OURS], results.seconds, milliseconds)
    columns |= {"±": lambda w: _spread(ours(w))}
    columns |= _each(results.works, others, partial(_beside, results), str)
    columns |= {"Rounds": lambda w: str(len(ours(w)) or "")}
    return table(results.works, columns, left=1)


def _targets(results: Results) -> str:
    words = {True: "met", False: "**not met**", None: "not (all) measured"}
    columns: Columns = {
        "Target": lambda v: v.what,
        "Limit": lambda v: f"≤ {v.limit}",
        "Measured, worst": lambda v: v.measured,
        "At": lambda v: f"`{v.worst}`",
        "Verdict": lambda v: words[v.met],
    }
    judged = verdicts(results)
    measured = [v for v in judged if v.measured is not None]
    left_out = len(judged) - len(measured)
    more = f"\n\nNothing was measured for {left_out} more targets." if left_out else ""
    return table(measured, columns, left=1) + more


def _about(data: Mapping[str, Any], peaks: str) -> str:
    its = data["machine"]
    where = f"{its['cpu']}, {its['cores']} cores"
    if its["cpu_instructions"]:
        where += f" ({', '.join(its['cpu_instructions'])})"
    where = f"{its['accelerator']}; host: {where}" if its["accelerator"] else where
    where += f", {its['memory_bytes'] / 2**30:.0f} GiB, {its['system']} {its['architecture']}"
    load = f"; load average before it: {data['load_before']}"
    return machine.about(data, where, f"Matrix product: {peaks}") + load

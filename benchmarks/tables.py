"""Markdown tables, numbers as they stand in them, and targets beside what was measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from benchmarks.options import OURS
from benchmarks.results import MIB, Results, save, write_report

Columns: TypeAlias = dict[str, Callable[[Any], str]]
"""The heads of a table, and what stands under each for a row."""


def table(rows: Sequence[Any], columns: Columns, *, left: int) -> str:
    """Markdown, its first `left` columns flush left and the others right; empty without rows."""
    rule = [":--" if i < left else "--:" for i in range(len(columns))]
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in (columns, rule, *cells)]
    return "\n".join(lines) if rows else ""


def _three_digits(scale: float, x: float | None) -> str:
    if x is None:
        return ""
    x *= scale
    return f"{x:,.{0 if x >= 100 else 1 if x >= 10 else 2 if x >= 1 else 3}f}"


milliseconds = partial(_three_digits, 1e3)
mebibytes = partial(_three_digits, 1 / MIB)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


Number: TypeAlias = Callable[[Results, str], float | None]
"""Of a workload by name; None where it was not measured."""


@dataclass(frozen=True)
class Target:
    """A limit that the largest of some measured numbers must stay at or below."""

    what: str
    limit: float
    works: Sequence[str]
    """The workloads it is about; none for all of them."""
    number: Number
    form: str = "{:.3f}"
    """How to print the limit and the number."""
    who: str = OURS


class Verdict(NamedTuple):
    """A target beside the worst number measured for it; None where nothing was."""

    what: str
    limit: str
    measured: str | None = None
    worst: str | None = None
    """The workload with that number."""
    met: bool | None = None
    """None too where that cannot be told, because some of its workloads were not measured."""


def judge(target: Target, results: Results) -> Verdict:
    """Compares what the results show with the limit."""
    limit, numbers = target.form.format(target.limit), []
    works = target.works or [w["name"] for w in results.works]
    for work in works:
        if results.record(work, target.who).get("status") in ("wrong", "failed", "does not fit"):
            numbers.append((math.inf, work))  # it was tried, and gave no right answer
        elif (number := target.number(results, work)) is not None:
            numbers.append((number, work))
    if not numbers:
        return Verdict(target.what, limit)
    number, worst = max(numbers)
    met = None if number <= target.limit and len(numbers) < len(works) else number <= target.limit
    shown = "no right answer" if math.isinf(number) else target.form.format(number)
    return Verdict(target.what, limit, shown, worst, met)


def ratio(other: str, who: str = OURS) -> Number:
    """Time over another's, round by round."""
    return lambda results, work: results.ratio(work, who, other)


class Line(NamedTuple):
    """A target or claim in words, what was found, and whether it holds."""

    text: str
    found: str
    holds: bool


def lines_table(lines: Sequence[Line], *head: str, left: int) -> str:
    cells = (lambda x: x.text, lambda x: x.found, lambda x: "yes" if x.holds else "**no**")
    return table(lines, dict(zip(head, cells, strict=True)), left=left)


def conclude(data: Mapping[str, Any], path: Path, lines: Sequence[Line]) -> int:
    """Saves the results, writes their report, and prints what holds.

    Returns an exit status: 0 if all hold, else 1.
    """
    save(data, path)
    write_report(data, path.parent)
    for text, found, holds in lines:
        print(f"{'holds' if holds else 'FAILS'}: {text}: {found}")
    return 0 if all(line.holds for line in lines) else 1

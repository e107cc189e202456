"""A plot of what options cost: a row for each, a mark for everyone who has it.

`dots` computes, `draw_dots` takes what it computed and a figure.
"""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.option_tables import what
from benchmarks.results import Results
from benchmarks.style import OTHER, STYLES
from benchmarks.targets import COMPAT, OURS, PLAIN


@dataclass(frozen=True)
class Row:
    """One option: everyone's time over jaxattn's without it."""

    label: str
    values: tuple[tuple[str, float], ...]
    """(contender, ratio)"""


@dataclass(frozen=True)
class DotPanel:
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Dots:
    """Panels that share their horizontal axis."""

    panels: tuple[DotPanel, ...]


def dots(results: Results) -> Dots:
    """A panel for forward and one for gradient, each at the length with the most options.

    All have the same rows, in the order of jaxattn's times in the first.
    """
    found: list[tuple[str, dict[str, Row]]] = []
    for kind in ("forward", "gradient"):
        works = [
            w
            for w in results.works
            if w["kind"] == kind and what(w) and results.samples(w["name"], PLAIN)
        ]
        lengths = [w["queries"] for w in works]
        if not lengths:
            continue
        length = max(lengths, key=lambda t: (lengths.count(t), t))
        rows = [_row(results, w) for w in works if w["queries"] == length]
        found.append((f"{kind}, {length:,} tokens", {row.label: row for row in rows}))
    labels: dict[str, None] = {}
    for _, by_label in found:
        labels |= dict.fromkeys(row.label for row in sorted(by_label.values(), key=_ours))
    return Dots(
        tuple(
            DotPanel(title, tuple(by_label.get(x, Row(x, ())) for x in labels))
            for title, by_label in found
        )
    )


def _ours(row: Row) -> float:
    return dict(row.values).get(OURS, 0)


def _row(results: Results, work: Any) -> Row:
    everyone = [c for c in results.contenders if c not in (PLAIN, COMPAT)]
    ratios = [(c, results.ratio(work["name"], c, PLAIN)) for c in everyone]
    return Row(what(work) or "", tuple((c, x) for c, x in ratios if x is not None))


def draw_dots(figure: Figure, plot: Dots) -> None:
    axes = figure.subplots(1, len(plot.panels), sharex=True, sharey=True, squeeze=False).ravel()
    for ax, panel in zip(axes, plot.panels, strict=True):
        _draw_panel(ax, panel)
        ax.set_title(panel.title.capitalize(), pad=10)
    figure.supxlabel("times as long as jaxattn without the option", fontsize=12, color="#222222")
    shown = {c for panel in plot.panels for row in panel.rows for c, _ in row.values}
    named = [c for c in STYLES if c in shown] + sorted(shown - set(STYLES))
    figure.legend(
        handles=[_mark(c) for c in named],
        loc="outside upper left",
        ncols=len(named),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.6,
        fontsize=11.5,
    )


def _draw_panel(ax: Axes, panel: DotPanel) -> None:
    ax.set_xscale("log")
    ax.axvline(1, color="#888888", linewidth=1.2, zorder=2)
    for y, row in enumerate(panel.rows):
        values = [x for _, x in row.values]
        if values:
            ax.plot([min(values), max(values)], [y, y], color="#D5D5D5", linewidth=2, zorder=2)
        for contender, x in row.values:
            style = STYLES.get(contender, OTHER)
            ours = contender == OURS
            ax.plot(
                x,
                y,
                marker=style.marker,
                markersize=style.size + 2,
                color=style.colour,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=5 if ours else 4,
            )
    ax.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows])
    ax.set_ylim(len(panel.rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.margins(x=0.06)


def _mark(contender: str) -> Line2D:
    style = STYLES.get(contender, OTHER)
    return Line2D(
        [],
        [],
        linestyle="none",
        marker=style.marker,
        color=style.colour,
        markersize=style.size + 2,
        markeredgecolor="white",
        label=contender,
    )

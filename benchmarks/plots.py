"""Plots of a results file against length: time, temporary memory, share of a matrix product.

`curves` computes, `draw` takes what it computed and a figure; only `render` makes bytes.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.option_plot import Dots, dots, draw_dots
from benchmarks.results import Results
from benchmarks.style import LOOK, OTHER, STYLES
from benchmarks.tables import MIB
from benchmarks.targets import COMPAT, OURS, PLAIN


@dataclass(frozen=True)
class Curve:
    """One contender's line: a value at every length, and whether it was run there."""

    contender: str
    lengths: tuple[int, ...]
    values: tuple[float, ...]
    ran: tuple[bool, ...]


@dataclass(frozen=True)
class Panel:
    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Plot:
    """Panels that share their axes."""

    title: str
    unit: str
    panels: tuple[Panel, ...]
    logarithmic: bool


def plots(results: Results) -> dict[str, Plot | Dots]:
    """Every plot that the results have points for, by its key in `report.PLOTS`."""

    def time(work: str, contender: str) -> float | None:
        seconds = results.seconds(work, contender)
        return None if seconds is None else seconds * 1e3

    def memory(work: str, contender: str) -> float | None:
        count = results.temp_bytes(work, contender)
        return None if not count else count / MIB

    def share(work: str, contender: str) -> float | None:
        found = results.share(work, contender)
        return None if found is None else found * 100

    found: dict[str, Plot | Dots] = {
        "time": Plot("Time of a call", "ms", curves(results, time), True),
        "memory": Plot("Temporary memory", "MiB", curves(results, memory), True),
        "share": Plot("Share of a matrix product's speed", "%", curves(results, share), False),
        "options": dots(results),
    }
    return {key: plot for key, plot in found.items() if plot.panels}


FEWEST_LENGTHS = 6
"""A curve through fewer is not worth a panel; the tables have the numbers."""


def curves(results: Results, value: Callable[[str, str], float | None]) -> tuple[Panel, ...]:
    """A panel for forward and gradient, full and causal: the shapes measured at most lengths."""
    panels = []
    for kind in ("forward", "gradient"):
        for mask in ("full", "causal"):
            works = _longest_family(results, kind, mask)
            lines = []
            for contender in results.contenders:
                if contender in (PLAIN, COMPAT):
                    continue
                points = [
                    (w["queries"], x, bool(results.samples(w["name"], contender)))
                    for w in works
                    if (x := value(w["name"], contender)) is not None
                ]
                if points:
                    lines.append(Curve(contender, *zip(*sorted(points), strict=True)))
            if any(len(line.lengths) >= FEWEST_LENGTHS for line in lines):
                panels.append(Panel(f"{kind}, {mask}", tuple(lines)))
    return tuple(panels)


def _longest_family(results: Results, kind: str, mask: str) -> list[Any]:
    """The workloads that differ in length alone, of the first shape with the most lengths."""
    families: dict[tuple, list[Any]] = {}
    for work in results.works:
        same = work["queries"] == work["keys"] and not work.get("option")
        if same and work["kind"] == kind and work["mask"] == mask:
            shape = tuple(work[x] for x in ("batch", "heads", "kv_heads", "features", "dtype"))
            families.setdefault(shape, []).append(work)
    return max(families.values(), key=len, default=[])


def draw(figure: Figure, plot: Plot) -> None:
    """The panels two to a row, on the same axes, each line labelled at the right."""
    columns = min(2, len(plot.panels))
    rows = -(-len(plot.panels) // columns)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, panel in zip(axes, plot.panels, strict=False):
        for curve in sorted(panel.curves, key=lambda c: c.contender == OURS):
            _draw_curve(ax, curve)
        ax.set_title(panel.title.capitalize(), pad=10)
    for ax in axes[len(plot.panels) :]:
        ax.set_visible(False)
    _scale(axes[0], plot)
    for i, ax in enumerate(axes):
        if i % columns == 0:
            ax.set_ylabel(f"{plot.title}, {plot.unit}")
        if i + columns >= len(plot.panels):
            ax.set_xlabel("tokens")
            ax.tick_params(labelbottom=True)
    figure.draw_without_rendering()
    for ax, panel in zip(axes, plot.panels, strict=False):
        _label(ax, panel.curves)


def _draw_curve(ax: Axes, curve: Curve) -> None:
    style = STYLES.get(curve.contender, OTHER)
    ours = curve.contender == OURS
    ax.plot(
        curve.lengths,
        curve.values,
        color=style.colour,
        linewidth=style.width,
        linestyle=style.line,
        zorder=4 if ours else 3,
    )
    for ran, face in ((True, style.colour), (False, "white")):
        points = [
            (t, y)
            for t, y, r in zip(curve.lengths, curve.values, curve.ran, strict=True)
            if r is ran
        ]
        if points:
            ax.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker=style.marker,
                markersize=style.size,
                markerfacecolor=face,
                markeredgecolor=style.colour if face == "white" else "white",
                markeredgewidth=1.4 if face == "white" else 0.6,
                zorder=5 if ours else 4,
            )


def _scale(ax: Axes, plot: Plot) -> None:
    """Both axes of every panel, which share them; room at the right for labels."""
    lines = [c for panel in plot.panels for c in panel.curves]
    lengths = sorted({t for c in lines for t in c.lengths})
    ax.set_xscale("log", base=2)
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.3)
    marks = [t for t in lengths if t & (t - 1) == 0]
    every = max(1, -(-len(marks) // 6))
    ax.xaxis.set_major_locator(FixedLocator(sorted(marks[::-1][::every]) or lengths))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:,.0f}"))
    if plot.logarithmic:
        ax.set_yscale("log")
        ax.margins(y=0.07)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    else:
        ax.set_ylim(0, max(100, 1.05 * max(max(c.values) for c in lines)))


def _label(ax: Axes, lines: Sequence[Curve]) -> None:
    """Names in a column beside the longest line, pushed apart where they would overlap."""
    ends = [(c, ax.transData.transform((c.lengths[-1], c.values[-1]))) for c in lines]
    ends.sort(key=lambda end: end[1][1])
    column = max(float(at[0]) for _, at in ends)
    gap = ax.figure.dpi * 15 / 72
    heights = _apart([float(at[1]) for _, at in ends], gap, floor=ax.bbox.y0 + gap / 2)
    for (curve, at), height in zip(ends, heights, strict=True):
        style = STYLES.get(curve.contender, OTHER)
        points = 72 / ax.figure.dpi
        ax.annotate(
            curve.contender,
            xy=(curve.lengths[-1], curve.values[-1]),
            xytext=(11 + (column - at[0]) * points, (height - at[1]) * points),
            textcoords="offset points",
            va="center",
            ha="left",
            color=style.colour,
            fontsize=11.5,
            fontweight="bold" if curve.contender == OURS else "normal",
            annotation_clip=False,
        ).set_in_layout(False)


def _apart(heights: Sequence[float], gap: float, floor: float = -math.inf) -> list[float]:
    """Ascending heights moved as little as keeps neighbours `gap` apart and above `floor`."""
    blocks: list[list[float]] = []  # [sum of (height - its place in the block), members]
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1:
            (low, m), (high, n) = blocks[-2:]
            if low / m + m * gap <= high / n:
                break
            blocks[-2:] = [[low + high - n * m * gap, m + n]]
    found = [total / n + i * gap for total, n in blocks for i in range(int(n))]
    return [max(height, floor + i * gap) for i, height in enumerate(found)]


def figure_bytes(make: Callable[[], Figure], kind: str) -> bytes:
    """A figure as `png` or `svg`, the same bytes every time."""
    with matplotlib.rc_context(LOOK):
        content = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        make().savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()


def render(plot: Plot | Dots, kind: str) -> bytes:
    """The plot as `png` or `svg`."""
    return figure_bytes(lambda: _figure(plot), kind)


def _figure(plot: Plot | Dots) -> Figure:
    if isinstance(plot, Dots):
        lines = max(len(panel.rows) for panel in plot.panels)
        figure = Figure(figsize=(11, 1.7 + 0.43 * lines), layout="constrained")
        draw_dots(figure, plot)
    else:
        rows = -(-len(plot.panels) // 2)
        figure = Figure(figsize=(11, 0.6 + 3.7 * rows), layout="constrained")
        draw(figure, plot)
    return figure

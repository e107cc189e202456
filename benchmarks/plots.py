"""Plots of a results file: time, temporary memory and share against length, and cost of options.

`plots` computes, `draw` and `draw_dots` take what it computed and a figure; only `render` makes
bytes.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.options import COMPAT, FLAX, FLEX, JAX_NN, OURS, PLAIN, SDPA
from benchmarks.results import MIB, Results, option_of

Look = dict[str, Any]
"""How a contender looks, in matplotlib's words."""


def look(colour: str, marker: str, width: float = 1.6, size: float = 5.5, line: Any = "-") -> Look:
    """Contenders are told apart by marker and label as much as by colour."""
    of_line = {"color": colour, "linewidth": width, "linestyle": line}
    return of_line | {"marker": marker, "markersize": size}


DASHES = (0, (2.2, 2.2))
# Okabe and Ito's palette, which colour-blind readers can tell apart.
LOOKS = {
    OURS: look("#0072B2", "o", 2.6, 7),
    JAX_NN: look("#E06A00", "s", 1.8, 6),
    FLAX: look("#9B4F96", "D", 1.8, 4, DASHES),
    "jax.nn cuDNN": look("#8A6D00", "v"),
    SDPA: look("#007A5A", "^", size=6.5),
    FLEX: look("#56B4E9", "P", size=6.5),
}
OTHER = look("#555555", "x")

Curve = list[tuple[int, float, bool]]
"""A value at every length, and whether the contender was run there."""


@dataclass(frozen=True)
class Plot:
    """Panels by title, that share their axes: the curves of contenders."""

    label: str
    panels: dict[str, dict[str, Curve]]
    logarithmic: bool = True


@dataclass(frozen=True)
class Dots:
    """Panels by title, that share their axis: the ratios of every contender by option."""

    panels: dict[str, dict[str, dict[str, float]]]


def plots(results: Results) -> dict[str, Plot | Dots]:
    """Every plot that the results have points for, by its key in file names."""
    scaled = lambda f, factor: lambda w, c: None if not (x := f(w, c)) else x * factor
    time, share = scaled(results.seconds, 1e3), scaled(results.share, 100)
    memory = scaled(results.temp_bytes, 1 / MIB)
    found: dict[str, Plot | Dots] = {
        "time": Plot("Time of a call, ms", curves(results, time)),
        "memory": Plot("Temporary memory, MiB", curves(results, memory)),
        "share": Plot("Share of a matrix product's speed, %", curves(results, share), False),
        "options": dots(results),
    }
    return {key: plot for key, plot in found.items() if plot.panels}


FEWEST_LENGTHS = 6
"""A curve through fewer is not worth a panel; the tables have the numbers."""


def curves(
    results: Results, value: Callable[[str, str], float | None]
) -> dict[str, dict[str, Curve]]:
    """A panel for forward and gradient, full and causal: the shapes measured at most lengths."""
    panels: dict[str, dict[str, Curve]] = {}
    for kind, mask in product(("forward", "gradient"), ("full", "causal")):
        lines = {}
        for contender in (c for c in results.contenders if c not in (PLAIN, COMPAT)):
            line = [
                (w["queries"], x, bool(results.samples(w["name"], contender)))
                for w in _longest_family(results, kind, mask)
                if (x := value(w["name"], contender)) is not None
            ]
            lines |= {contender: sorted(line)} if line else {}
        if any(len(line) >= FEWEST_LENGTHS for line in lines.values()):
            panels[f"{kind}, {mask}"] = lines
    return panels


def _longest_family(results: Results, kind: str, mask: str) -> list[Any]:
    """The workloads that differ in length alone, of the first shape with the most lengths."""
    families: dict[tuple, list[Any]] = {}
    for work in results.works:
        same = work["queries"] == work["keys"] and not work.get("option")
        if same and work["kind"] == kind and work["mask"] == mask:
            shape = tuple(work[x] for x in ("batch", "heads", "kv_heads", "features", "dtype"))
            families.setdefault(shape, []).append(work)
    return max(families.values(), key=len, default=[])


def dots(results: Results) -> Dots:
    """A panel for forward and one for gradient, each at the length with the most options.

    All have the same rows, in the order of jaxattn's times in the first. A row has everyone's time
    over jaxattn's without the option.
    """
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("forward", "gradient"):
        works = [w for w in results.works if w["kind"] == kind and option_of(w)]
        works = [w for w in works if results.samples(w["name"], PLAIN)]
        lengths = [w["queries"] for w in works]
        length = max(lengths, key=lambda t: (lengths.count(t), t), default=0)
        rows = {
            option_of(w): {
                c: x
                for c in results.contenders
                if c not in (PLAIN, COMPAT) and (x := results.ratio(w["name"], c, PLAIN))
            }
            for w in works
            if w["queries"] == length
        }
        if rows:
            by_ours = sorted(rows.items(), key=lambda row: row[1].get(OURS, 0))
            panels[f"{kind}, {length:,} tokens"] = dict(by_ours)
    labels = dict.fromkeys(label for rows in panels.values() for label in rows)
    return Dots({title: {x: rows.get(x, {}) for x in labels} for title, rows in panels.items()})


def draw(figure: Figure, plot: Plot) -> None:
    """The panels two to a row, on the same axes, each line labelled at the right."""
    columns = min(2, len(plot.panels))
    rows = -(-len(plot.panels) // columns)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (title, lines) in zip(axes, plot.panels.items(), strict=False):
        for contender in sorted(lines, key=lambda c: c == OURS):
            _draw_curve(ax, contender, lines[contender])
        ax.set_title(title.capitalize(), pad=10)
    for ax in axes[len(plot.panels) :]:
        ax.set_visible(False)
    _scale(axes[0], plot)
    for i, ax in enumerate(axes):
        if i % columns == 0:
            ax.set_ylabel(plot.label)
        if i + columns >= len(plot.panels):
            ax.set_xlabel("tokens")
            ax.tick_params(labelbottom=True)
    figure.draw_without_rendering()
    for ax, lines in zip(axes, plot.panels.values(), strict=False):
        _label(ax, lines)


def _draw_curve(ax: Axes, contender: str, curve: Curve) -> None:
    its, front = LOOKS.get(contender, OTHER), contender == OURS
    line: Look = its | {"marker": ""}
    ax.plot(*list(zip(*curve, strict=True))[:2], **line, zorder=3 + front)
    marks, colour = its | {"linestyle": "none"}, its["color"]
    hollow = {"markeredgecolor": colour, "markeredgewidth": 1.4, "markerfacecolor": "white"}
    solid = {"markeredgecolor": "white", "markeredgewidth": 0.6, "markerfacecolor": colour}
    for ran, face in ((True, solid), (False, hollow)):
        if at := [(t, y) for t, y, r in curve if r is ran]:
            ax.plot(*zip(*at, strict=True), **marks, **face, zorder=4 + front)


def ticks(axis: Axis, form: str, at: Sequence[float] | None = None) -> None:
    """No minor ticks; major ones as `form` prints them, where they are given."""
    if at is not None:
        axis.set_major_locator(FixedLocator(at))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter(form))


def _scale(ax: Axes, plot: Plot) -> None:
    """Both axes of every panel, which share them; room at the right for labels."""
    points = [x for lines in plot.panels.values() for line in lines.values() for x in line]
    lengths = sorted({t for t, _, _ in points})
    ax.set_xscale("log", base=2)
    ax.set_xlim(lengths[0] / 1.3, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.3)
    marks = [t for t in lengths if t & (t - 1) == 0]
    every = max(1, -(-len(marks) // 6))
    ticks(ax.xaxis, "{x:,.0f}", sorted(marks[::-1][::every]) or lengths)
    if plot.logarithmic:
        ax.set_yscale("log")
        ax.margins(y=0.07)
        ticks(ax.yaxis, "{x:,.10g}")
    else:
        ax.set_ylim(0, max(100, 1.05 * max(y for _, y, _ in points)))


def _label(ax: Axes, lines: dict[str, Curve]) -> None:
    """Names in a column beside the longest line, pushed apart where they would overlap."""
    ends = [(c, line[-1][:2], ax.transData.transform(line[-1][:2])) for c, line in lines.items()]
    ends.sort(key=lambda end: end[2][1])
    column = max(float(at[0]) for _, _, at in ends)
    gap, points = ax.figure.dpi * 15 / 72, 72 / ax.figure.dpi
    heights = _apart([float(at[1]) for _, _, at in ends], gap, floor=ax.bbox.y0 + gap / 2)
    for (contender, end, at), height in zip(ends, heights, strict=True):
        ax.annotate(
            contender,
            xy=end,
            xytext=(11 + (column - at[0]) * points, (height - at[1]) * points),
            textcoords="offset points",
            va="center",
            color=LOOKS.get(contender, OTHER)["color"],
            fontsize=11.5,
            fontweight="bold" if contender == OURS else "normal",
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


def draw_dots(figure: Figure, plot: Dots) -> None:
    """A row for each option, a mark for everyone who has it."""
    axes = figure.subplots(1, len(plot.panels), sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (title, rows) in zip(axes, plot.panels.items(), strict=True):
        _draw_rows(ax, rows)
        ax.set_title(title.capitalize(), pad=10)
    figure.supxlabel("times as long as jaxattn without the option", fontsize=12, color="#222222")
    shown = {c for rows in plot.panels.values() for row in rows.values() for c in row}
    named = [c for c in LOOKS if c in shown] + sorted(shown - set(LOOKS))
    handles = [Line2D([], [], **_mark(c), label=c) for c in named]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(named),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.6,
        fontsize=11.5,
    )


def _mark(contender: str) -> Look:
    its = LOOKS.get(contender, OTHER)
    larger = {"markersize": its["markersize"] + 2, "markeredgecolor": "white"}
    return its | larger | {"linestyle": "none"}


def _draw_rows(ax: Axes, rows: dict[str, dict[str, float]]) -> None:
    ax.set_xscale("log")
    ax.axvline(1, color="#888888", linewidth=1.2, zorder=2)
    for y, values in enumerate(rows.values()):
        if values:
            ends = [min(values.values()), max(values.values())]
            ax.plot(ends, [y, y], color="#D5D5D5", linewidth=2, zorder=2)
        for contender, x in values.items():
            front = contender == OURS
            ax.plot(x, y, **_mark(contender), markeredgewidth=0.6, zorder=4 + front)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ticks(ax.xaxis, "{x:g}", [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])
    ax.margins(x=0.06)


def render(plot: Plot | Dots, kind: str) -> bytes:
    """The plot as `png` or `svg`."""
    if isinstance(plot, Dots):
        height = 1.7 + 0.43 * max(map(len, plot.panels.values()))
        return figure_bytes(lambda figure: draw_dots(figure, plot), kind, height)
    height = 0.6 + 3.7 * -(-len(plot.panels) // 2)
    return figure_bytes(lambda figure: draw(figure, plot), kind, height)


def figure_bytes(draw: Callable[[Figure], None], kind: str, height: float) -> bytes:
    """A figure as `png` or `svg`, the same bytes every time. height: in inches."""
    with style.context(Path(__file__).with_name("plots.mplstyle")):
        figure = Figure(figsize=(11, height), layout="constrained")
        draw(figure)
        content = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()

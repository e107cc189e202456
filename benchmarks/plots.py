"""Plots of a results file: time, temporary memory and share against length, and cost of options.

`plots` computes, `draw` takes what it computed and a figure; only `render` makes bytes.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.options import FLAX, FLEX, JAX_NN, OURS, PLAIN, SDPA
from benchmarks.results import MIB, Results, option_of

Look = dict[str, Any]
"""How a contender looks, in matplotlib's words."""


def look(colour: str, marker: str, width: float = 1.6, size: float = 5.5, line: Any = "-") -> Look:
    """Contenders are told apart by marker as much as by colour."""
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


@dataclass(frozen=True)
class Plot:
    """Panels by title, that share their axes; what draws one of them; inches."""

    panels: dict[str, dict[str, Any]]
    draw: Callable[[Axes, dict[str, Any]], None]
    height: float


def plots(results: Results) -> dict[str, Plot]:
    """Every plot that the results have points for, by its key in file names."""
    curves, share = partial(_curves, results), "Share of a matrix product's speed, %"
    found = {
        "time": curves("Time of a call, ms", results.seconds, 1e3),
        "memory": curves("Temporary memory, MiB", results.temp_bytes, 1 / MIB),
        "share": curves(share, results.share, 100, scale="linear"),
        "options": _dots(results),
    }
    return {key: plot for key, plot in found.items() if plot.panels}


FEWEST_LENGTHS = 6
"""Curves through fewer are not worth a panel; the tables have the numbers."""
Value: TypeAlias = Callable[[str, str], float | None]
"""Of a workload and a contender."""
SHAPE = ("batch", "heads", "kv_heads", "features", "dtype")


def _largest(works: Sequence[Any], agree: Sequence[str], **facts: Any) -> list[Any]:
    """Of the workloads with these facts the most that agree in others."""
    families: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for work in works:
        if facts.items() <= work.items():
            families[tuple(work[x] for x in agree)].append(work)
    return max(families.values(), key=len, default=[])


def _curves(results: Results, label: str, value: Value, factor: float, scale="log") -> Plot:
    """A panel for each kind and mask, of the shape measured at most lengths.

    A contender's curve is a value at every length, and whether it was run there.
    """
    panels: dict[str, dict[str, Any]] = {}
    square = [w for w in results.works if w["queries"] == w["keys"]]
    for kind, mask in product(("forward", "gradient"), ("full", "causal")):
        works = _largest(square, SHAPE, kind=kind, mask=mask, option=None)
        curves = {
            contender: sorted(
                (w["queries"], x * factor, bool(results.samples(w["name"], contender)))
                for w in works
                if (x := value(w["name"], contender)) is not None
            )
            for contender in LOOKS
        }
        if any(len(curve) >= FEWEST_LENGTHS for curve in curves.values()):
            panels[f"{kind}, {mask}"] = {c: curve for c, curve in curves.items() if curve}
    return Plot(panels, partial(_draw_curves, label, scale), 0.9 + 3.9 * -(-len(panels) // 2))


def _dots(results: Results) -> Plot:
    """A panel for forward and one for gradient, each at the length with the most options.

    A row for each option, in the order of jaxattn's times, has everyone's time over jaxattn's
    without the option.
    """
    panels: dict[str, dict[str, Any]] = defaultdict(dict)
    ours = lambda w: results.ratio(w["name"], OURS, PLAIN) or 0
    works = sorted((w for w in results.works if option_of(w) and ours(w)), key=ours)
    for kind in ("forward", "gradient"):
        for work in _largest(works, ["queries"], kind=kind):
            ratios = {c: results.ratio(work["name"], c, PLAIN) for c in LOOKS}
            row = {c: x for c, x in ratios.items() if x is not None}
            panels[f"{kind}, {work['queries']:,} tokens"][option_of(work)] = row
    return Plot(panels, _draw_dots, 1.7 + 0.43 * max(map(len, panels.values()), default=0))


def draw(figure: Figure, plot: Plot) -> None:
    """The panels two to a row, under one legend."""
    columns, rows = min(2, len(plot.panels)), -(-len(plot.panels) // 2)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for ax, (title, panel) in zip(axes, plot.panels.items(), strict=False):
        plot.draw(ax, panel)
        ax.set_title(title.capitalize(), pad=10)
        ax.label_outer()
        handles |= {line.get_label(): line for line in ax.lines}
    for ax in axes[len(plot.panels) :]:
        ax.set_axis_off()
    shown = [handles[c] for c in LOOKS if c in handles]
    figure.legend(handles=shown, loc="outside upper left", ncols=len(shown), frameon=False)


def _draw_curves(label: str, scale: str, ax: Axes, curves: dict[str, Any]) -> None:
    for contender in sorted(curves, key=OURS.__eq__):  # ours in front
        its = LOOKS[contender]
        tokens, values, ran = map(np.array, zip(*curves[contender], strict=True))
        ax.plot(tokens, values, **its, label=contender)
        hollow = {"linestyle": "", "markerfacecolor": "white", "markeredgecolor": its["color"]}
        ax.plot(tokens[~ran], values[~ran], **its | hollow, markeredgewidth=1.4)
    ax.set(yscale=scale, xlabel="Tokens", ylabel=label)
    ax.set_xscale("log", base=2)
    ticks(ax.xaxis, "{x:,.0f}")
    ticks(ax.yaxis, "{x:,.10g}")
    if scale == "linear":
        ax.axhline(100, color="#888888", linewidth=1.2)
        ax.set_ylim(bottom=0)


def _draw_dots(ax: Axes, rows: dict[str, dict[str, float]]) -> None:
    """A row for each option, a mark for everyone who has it."""
    ends = zip(*((min(x.values()), max(x.values())) for x in rows.values()), strict=True)
    ax.hlines(list(rows), *ends, color="#D5D5D5", linewidth=2, zorder=1)
    ax.axvline(1, color="#888888", linewidth=1.2)
    for contender in sorted(LOOKS, key=OURS.__eq__):
        dots: Look = LOOKS[contender] | {"linestyle": "", "label": contender}
        dots["markersize"] += 2
        at = [(x[contender], option) for option, x in rows.items() if contender in x]
        if at:
            ax.plot(*zip(*at, strict=True), **dots)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set(xscale="log", xlabel="Times as long as jaxattn without the option")
    ticks(ax.xaxis, "{x:g}", [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])


def ticks(axis: Axis, form: str, at: Sequence[float] | None = None) -> None:
    """No minor ticks; major ones as `form` prints them, where they are given."""
    if at is not None:
        axis.set_major_locator(FixedLocator(at))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter(form))


def render(plot: Plot, kind: str) -> bytes:
    """The plot as `png` or `svg`."""
    return figure_bytes(partial(draw, plot=plot), kind, plot.height)


def figure_bytes(draw: Callable[[Figure], None], kind: str, height: float) -> bytes:
    """A figure as `png` or `svg`, the same bytes every time. height: in inches."""
    with style.context(Path(__file__).with_name("plots.mplstyle")):
        figure = Figure(figsize=(11, height), layout="constrained")
        draw(figure)
        content = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()

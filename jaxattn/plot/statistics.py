"""Statistics of heads: a table, and how they go from layer to layer."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Real
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text

from jaxattn.plot.arrays import Numbers, shaped
from jaxattn.plot.matrix import number

INK, SOFT = "#1a1a1a", "#666666"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d00")
"""Told apart by those who see few colours too; Okabe and Ito 2008, but for a darker yellow."""
LEAST = 8.5  # points from a name to the next


class Table(NamedTuple):
    """What `table` drew: the bars and the numbers of every statistic."""

    bars: dict[str, BarContainer]
    texts: dict[str, list[Text]]


def table(
    ax: Axes,
    statistics: Mapping[str, Real[Numbers, "layers heads"]],
    *,
    order: str | None = None,
    most: int = 24,
    digits: int = 2,
) -> Table:
    """Statistics by head: each a number, and a bar that is full at the largest of all heads.

    order: the name of the statistic by which heads go, from the largest; if None, as they are.
    most: how many heads are shown. digits: behind the point.
    Raises:
      ValueError: the shapes disagree, there is nothing, or no statistic is called `order`.
    """
    arrays = _alike(statistics)
    if order is not None and order not in arrays:
        raise ValueError(f"order names a statistic, got {order!r}; take one of {', '.join(arrays)}")
    shape = next(iter(arrays.values())).shape
    every = np.arange(shape[0] * shape[1])
    chosen = every if order is None else np.argsort(-arrays[order], axis=None, kind="stable")
    chosen = chosen[:most]
    places = np.arange(len(chosen))
    bars, texts = {}, {}
    for column, (name, array) in enumerate(arrays.items()):
        flat, peak = array.ravel()[chosen], np.abs(array[np.isfinite(array)]).max(initial=0) or 1
        parts = np.nan_to_num(np.abs(flat) / peak, posinf=1)
        bars[name] = ax.barh(places, 0.5 * parts, 0.7, left=column + 0.4, color=COLORS[0])
        words = [number(float(x), digits) if np.isfinite(x) else "—" for x in flat]
        texts[name] = [
            ax.text(column + 0.36, float(y), word, ha="right", va="center_baseline", size=7.5)
            for y, word in zip(places, words, strict=True)
        ]
        ax.text(
            column + 0.45,
            -0.75,
            name,
            size=8,
            weight="bold",
            va="bottom",
            ha="center",
            parse_math=False,
        )
    names = [f"layer {i // shape[1]}, head {i % shape[1]}" for i in map(int, chosen)]
    ax.set(xlim=(0, len(arrays)), ylim=(len(chosen) - 0.5, -0.6), xticks=[])
    ax.set_yticks(places, names, size=7.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return Table(bars, texts)


class Layers(NamedTuple):
    """What `layers` drew of every statistic: the line of means, and the dots of heads."""

    lines: dict[str, Line2D]
    dots: dict[str, PathCollection]


def layers(ax: Axes, statistics: Mapping[str, Real[Numbers, "layers heads"]]) -> Layers:
    """Statistics of one unit over the layers: a dot to a head, a line through their means.

    statistics: at most 8, each named at the end of its line.
    Raises:
      ValueError: the shapes disagree, or there are none or too many.
    """
    arrays = _alike(statistics)
    if len(arrays) > len(COLORS):
        raise ValueError(
            f"colours tell at most {len(COLORS)} statistics apart, got {len(arrays)}; draw fewer"
        )
    count = len(next(iter(arrays.values())))
    places = np.arange(count)
    lines, dots, ends = {}, {}, {}
    for (name, array), color in zip(arrays.items(), COLORS, strict=False):
        known = (~np.isnan(array)).sum(axis=1)
        mean = np.where(known > 0, np.nansum(array, axis=1) / np.maximum(known, 1), np.nan)
        dots[name] = ax.scatter(
            np.repeat(places, array.shape[1]), array, s=9, color=color, alpha=0.35, linewidths=0
        )
        (lines[name],) = ax.plot(places, mean, color=color, linewidth=1.6)
        ends[name] = mean[np.isfinite(mean)][-1] if known.any() else 0.0
    ax.set_xlim(-0.4, count - 0.6)
    ax.set_xlabel("Layer")
    ax.set_xticks(places[:: -(-count // 12)])
    ax.spines[["top", "right"]].set_visible(False)
    _name_ends(ax, lines, ends)
    return Layers(lines, dots)


def _name_ends(ax: Axes, lines: Mapping[str, Line2D], ends: Mapping[str, float]) -> None:
    """Names lines at their right ends, moved apart where they would meet."""
    height = ax.get_window_extent().height / ax.figure.dpi * 72
    low, high = ax.get_ylim()
    before = -np.inf
    for name in sorted(ends, key=lambda name: ends[name]):
        at = (ends[name] - low) / (high - low) * height
        before = max(at, before + LEAST)
        ax.annotate(
            name,
            (1, 0),
            xytext=(4, before),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            size=7.5,
            color=lines[name].get_color(),
            annotation_clip=False,
            parse_math=False,
        )


def _alike(statistics: Mapping[str, Numbers]) -> dict[str, np.ndarray]:
    """Statistics of the same heads."""
    if not statistics:
        raise ValueError("there is no statistic; pass at least one, as {'entropy': [layers heads]}")
    rule = "pass one number for every head"
    arrays = {name: shaped(x, name, "layers heads", rule) for name, x in statistics.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"statistics must be of the same layers and heads, got shapes {shapes}")
    return arrays

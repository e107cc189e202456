"""Arrays onto an `Axes`: no files, no training, no figure layout.

Masked is not zero: what a query may not see is NaN, which every colour map here paints in the same
neutral grey.
"""

from collections import Counter
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.container import BarContainer
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch
from matplotlib.text import Text

MASKED = "#cccccc"
INK, SOFT, ACCENT = "#1a1a1a", "#666666", "#d55e00"
UNIT = Normalize(0, 1)


def colors(name: str) -> Colormap:
    """The colour map of that name, with masked cells in the neutral tone."""
    return mpl.colormaps[name].with_extremes(bad=MASKED)


def centred(*arrays: np.ndarray) -> Normalize:
    """One norm for all `arrays`: centred on 0, out to the largest finite |value|.

    That end is rounded up to two significant digits, so that what the colour bar prints is exact.
    """
    peak = max(float(np.abs(a[np.isfinite(a)]).max()) for a in arrays)
    step = 10.0 ** (np.floor(np.log10(peak)) - 1)
    end = float(f"{np.ceil(peak / step) * step:.2g}")
    return Normalize(-end, end)


def divided(norm: Normalize, by: float) -> Normalize:
    """The same norm for values that were divided by `by`: every colour stays where it is."""
    low, high = limits(norm.vmin, norm.vmax)
    return Normalize(low / by, high / by)


def limits(low: float | None, high: float | None) -> tuple[float, float]:
    """The ends of a norm, which must have both."""
    if low is None or high is None:
        raise ValueError(f"a norm must have both ends, got {low} to {high}; set vmin and vmax")
    return float(low), float(high)


def hide(values: Float[np.ndarray, "t s"], allowed: Bool[np.ndarray, "t s"] | None) -> np.ndarray:
    """`values` with NaN where `allowed` is False, and where a value is infinite."""
    keep = np.isfinite(values) if allowed is None else allowed
    return np.where(keep, values, np.nan)


def readable(tokens: Sequence[str]) -> list[str]:
    """Labels: a space as ·, a newline as ⏎, and repeated tokens numbered in their order."""
    total, seen, labels = Counter(tokens), Counter(), []
    for token in tokens:
        seen[token] += 1
        label = token.replace(" ", "·").replace("\n", "⏎")
        labels.append(f"{label} ({seen[token]})" if total[token] > 1 else label)
    return labels


def label_tokens(
    ax: Axes,
    tokens: Sequence[str],
    rows: bool = True,
    columns: bool = True,
    upright: bool = False,
) -> None:
    """Names the rows and the columns of a map of queries and keys, or leaves an axis bare.

    upright: columns read upwards, for columns narrower than slanted words need.
    """
    labels, places = readable(tokens), range(len(tokens))
    ax.tick_params(length=0, pad=3)
    ax.set_yticks(places if rows else [], labels if rows else [])
    ax.set_xticks(
        places if columns else [],
        labels if columns else [],
        rotation=90 if upright else 45,
        ha="right",
        va="center" if upright else "top",
        rotation_mode="anchor",
    )


def draw_cells(
    ax: Axes, values: Float[np.ndarray, "t s"], norm: Normalize, cmap: str, gutter: float = 0.0
) -> AxesImage:
    """One cell to a value, NaN in the neutral tone; `gutter` is the white line between, in pt.

    The cells fill the axes: give square axes for square cells.
    """
    image = ax.imshow(values, cmap=colors(cmap), norm=norm, aspect="auto", interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    if gutter:
        for i in range(1, values.shape[0]):
            ax.axhline(i - 0.5, color="white", linewidth=gutter)
        for j in range(1, values.shape[1]):
            ax.axvline(j - 0.5, color="white", linewidth=gutter)
    return image


def draw_values(ax: Axes, image: AxesImage, digits: int, size: float = 7.0) -> list[Text]:
    """Prints each value in its cell, black or white by the luminance of the cell; NaN is empty."""
    values = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    texts = []
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            r, g, b, _ = image.cmap(image.norm(value))
            luminance = 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2
            ink = "black" if luminance > 0.18 else "white"
            label = number(value, digits)
            texts.append(ax.text(j, i, label, ha="center", va="center", color=ink, size=size))
    return texts


def number(value: float, digits: int) -> str:
    """`value` to `digits` decimals, with a true minus sign and without "-0"."""
    label = f"{value:.{digits}f}"
    return label.lstrip("-") if float(label) == 0 else label.replace("-", "−")


def draw_weights(
    ax: Axes,
    weights: Float[np.ndarray, "t s"],
    tokens: Sequence[str],
    allowed: Bool[np.ndarray, "t s"] | None = None,
    values: bool = True,
    gutter: float = 0.8,
) -> AxesImage:
    """Queries down, keys across, viridis on [0, 1]; what the mask hides is blank, not zero."""
    image = draw_cells(ax, hide(weights, allowed), UNIT, "viridis", gutter)
    if values:
        draw_values(ax, image, digits=2)
    label_tokens(ax, tokens)
    return image


def draw_logits(
    ax: Axes,
    logits: Float[np.ndarray, "t s"],
    tokens: Sequence[str],
    norm: Normalize,
    digits: int | None = 1,
    gutter: float = 0.8,
) -> AxesImage:
    """Queries down, keys across, blue below 0, red above, blank at -inf; no values if no digits."""
    image = draw_cells(ax, hide(logits, None), norm, "RdBu_r", gutter)
    if digits is not None:
        draw_values(ax, image, digits)
    label_tokens(ax, tokens)
    return image


def draw_features(
    ax: Axes, features: Float[np.ndarray, "t d"], tokens: Sequence[str] | None, norm: Normalize
) -> AxesImage:
    """One row to a token, one column to a feature, blue below 0 and red above."""
    image = draw_cells(ax, features, norm, "RdBu_r")
    if tokens is not None:
        label_tokens(ax, tokens, columns=False)
    return image


def draw_scale(cax: Axes, image: AxesImage, label: str = "", across: bool = False) -> Colorbar:
    """The colour bar of one group of maps, its range printed at its ends."""
    low, high = limits(*image.get_clim())
    bar = cax.figure.colorbar(
        image, cax=cax, orientation="horizontal" if across else "vertical", ticks=[low, high]
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    ends = [f"{end:.3g}".replace("-", "−") for end in (low, high)]
    if not across and low < 0 < high:
        bar.set_ticks([low, 0, high], labels=[ends[0], "0", ends[1]])
    else:
        bar.set_ticks([low, high], labels=ends)
    bar.ax.tick_params(length=0, pad=2, labelsize=7)
    if across:  # the numbers stay within the bar
        first, last = bar.ax.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
    bar.set_label(label)
    return bar


def draw_decades(cax: Axes, image: AxesImage, label: str) -> Colorbar:
    """The level colour bar of a logarithmic norm, a number at each decade; it ends at decades."""
    bar = draw_scale(cax, image, across=True)
    low, high = (round(np.log10(end)) for end in limits(*image.get_clim()))
    ticks = [10.0**power for power in range(low, high + 1)]
    bar.set_ticks(ticks, labels=[f"≤ {ticks[0]:g}", *(f"{tick:g}" for tick in ticks[1:])])
    bar.ax.minorticks_off()
    bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
    bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    bar.set_label(label)
    return bar


def draw_marginal(ax: Axes, values: Float[np.ndarray, "m c"], rows: bool = False) -> StepPatch:
    """The mean of each column of a map as a step, on a band from the least to the greatest.

    values: those of one column to a row; NaN is left out. The axes are to lie along the map, whose
    extent they get. rows: of each row of the map instead, downwards.
    """
    low, mean, high = (f(values, axis=1) for f in (np.nanmin, np.nanmean, np.nanmax))
    edges = np.arange(len(values) + 1) - 0.5
    way = "horizontal" if rows else "vertical"
    ax.stairs(high, edges, baseline=low, orientation=way, fill=True, color="#c9dcec")
    line = ax.stairs(mean, edges, baseline=None, orientation=way, color="#0072b2", linewidth=0.8)
    if rows:
        ax.set_ylim(edges[-1], edges[0])
        ax.set_yticks([])
    else:
        ax.set_xlim(edges[0], edges[-1])
        ax.set_xticks([])
    return line


def draw_chances(
    ax: Axes, words: Sequence[str], chances: Float[np.ndarray, " word"], marked: str
) -> BarContainer:
    """A horizontal bar to a word on [0, 1]; the marked word is bold, filled and has a pointer."""
    bars = ax.barh(range(len(words)), chances, height=0.66, color="#dde3ea", edgecolor="#7a8794")
    names = [f"▸ {word}" if word == marked else word for word in words]
    ax.set_yticks(range(len(words)), names)
    ax.set_ylim(len(words) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.tick_params(axis="y", length=0)
    for i, (word, chance) in enumerate(zip(words, chances, strict=True)):
        label = "< 0.001" if chance < 0.0005 else f"{chance:.3f}"
        inside = chance > 0.75
        text = ax.text(
            chance - 0.03 if inside else chance + 0.03,
            i,
            label,
            va="center",
            ha="right" if inside else "left",
            color="white" if inside and word == marked else INK,
            size=7.5,
        )
        if word == marked:
            text.set_fontweight("bold")
            bars[i].set(facecolor=ACCENT, edgecolor=ACCENT)
            ax.get_yticklabels()[i].set_fontweight("bold")
    return bars


def draw_losses(ax: Axes, losses: Float[np.ndarray, " count"], best: float) -> Line2D:
    """The loss at every step on a logarithmic axis, and the lowest that any model could reach."""
    (line,) = ax.plot(losses, color="#0072b2", linewidth=1.4)
    ax.set_yscale("log")
    ax.set_xlim(0, len(losses))
    ax.set_ylim(best / 1.6, 1.2 * losses.max())
    ax.axhline(best, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    ax.text(len(losses), best / 1.08, "best possible", ha="right", va="top", color=SOFT, size=7.5)
    ticks = [0.03, 0.1, 0.3, 1, 3]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="Training step", ylabel="Loss (nats a token)")
    return line


def draw_choices(
    ax: Axes,
    chances: Float[np.ndarray, "first word"],
    firsts: Sequence[str],
    words: Sequence[str],
) -> AxesImage:
    """The probability of each next word (across) after each first word (down), on [0, 1]."""
    image = draw_cells(ax, chances, UNIT, "viridis", gutter=0.8)
    draw_values(ax, image, digits=2)
    label_tokens(ax, firsts, columns=False)
    ax.set_xticks(range(len(words)), words, rotation=45, ha="right", rotation_mode="anchor")
    ax.set(xlabel="Next word", ylabel="First word")
    return image


def draw_peak(ax: Axes, weights: Float[np.ndarray, "t s"], row: int) -> PathCollection:
    """A dot on the largest weight of one row."""
    i = row % len(weights)
    return ax.scatter([weights[i].argmax()], [i], s=9, c=ACCENT, edgecolors="white", linewidths=0.7)

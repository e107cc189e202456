"""What only these figures draw, onto an `Axes`; the rest is `jaxattn.plot`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.container import BarContainer
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from jaxattn import plot

INK, SOFT, ACCENT = "#1a1a1a", "#666666", "#d55e00"


def draw_matrix(
    ax: Axes, values: Float[np.ndarray, "t s"], norm: Normalize, digits: int
) -> AxesImage:
    """Cells with their values in them, NaN blank."""
    image = plot.cells(ax, values, norm, gutter=0.8)
    plot.values(ax, image, digits)
    return image


def draw_features(
    ax: Axes, features: Float[np.ndarray, "t d"], tokens: Sequence[str] | None, norm: Normalize
) -> AxesImage:
    """One row to a token, one column to a feature, blue below 0 and red above."""
    image = plot.cells(ax, features, norm)
    if tokens is not None:
        plot.tokens(ax, tokens, columns=False)
    return image


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
    image = draw_matrix(ax, chances, plot.norms.unit(), digits=2)
    plot.tokens(ax, firsts, words)
    ax.set(xlabel="Next word", ylabel="First word")
    return image


def draw_peak(ax: Axes, weights: Float[np.ndarray, "t s"], row: int) -> PathCollection:
    """A dot on the largest weight of one row."""
    i = row % len(weights)
    return ax.scatter([weights[i].argmax()], [i], s=9, c=ACCENT, edgecolors="white", linewidths=0.7)

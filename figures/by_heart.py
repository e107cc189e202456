"""A model that knows the licence by heart: where its heads look, and how far it gets."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures import data, reading
from figures.draw import ACCENT, INK, SOFT
from figures.emergence import heading, name
from figures.page import Page
from figures.reading import COPIED, LEARNT, PART_NAMES, PASSAGE, PROMPT, TEXT, WINDOW, Recital
from jaxattn import plot

ROOTS = plot.norms.power(0.5)  # of the maps: the root of the weight, so that small ones are seen
COLORS = ("#004d80", "#3d9bd1", "#f0b95a", "#d9d9d9")  # of the parts, from near to far
DPI = 260  # 5 pixels to a cell of the small maps
TOP, SIDE, STEP = 1.42, 0.94, (0.99, 1.145)  # of the maps of all heads
BAR = 0.075  # the height of the bars below them
LARGE, LEFT = 3.95, 4.88  # the side of the large map, and where it begins
BELOW = 6.62  # where the panel of the loss begins
AROUND = 55  # the characters that are shown before and after the mistake
MEAN = 32  # the characters that a step of the curve of the loss is the mean of


def by_heart() -> Figure:
    """A character model recites the licence: where its 16 heads look, and where it goes wrong."""
    seen = reading.recital()
    own = 100 * seen.heads.parts[..., :2].sum(axis=-1).mean(axis=1)
    page = Page(9.0, 8.55, dpi=DPI)
    page.title(
        f"By heart: {seen.mistake - PROMPT:,} characters, one wrong turn where clauses are alike, "
        f"{seen.resumed:,} more",
        f"4 layers of 4 heads have learnt {LEARNT:,} characters. Layer 1 gives the word it "
        f"reads {own[0]:.0f} % of its weight, the others {own[1:].min():.0f} to "
        f"{own[1:].max():.0f} %; all keys alike: {100 * seen.level['parts'][:2].sum():.0f} %.",
    )
    note = (
        f"Bars and percent: means over all of them; a character sees the {WINDOW} up to it. "
        "Maps: weights within one passage. Grey: masked."
    )
    page.text(0.15, 0.76, note, size=8.5, color=SOFT)
    grid(page, seen)
    closest(page, seen)
    losses(page, seen)
    fork(page, seen)
    return page.figure


def grid(page: Page, seen: Recital) -> None:
    """The map of every head, layers down, and below each the parts of its weight."""
    heading(
        page,
        0.5,
        TOP - 0.2,
        "Every head",
        "percent: weight on the word that it reads; below: entropy, nats",
    )
    parts = seen.heads.parts
    for layer, head in np.ndindex(parts.shape[:2]):
        left, top = 0.5 + head * STEP[0], TOP + layer * STEP[1]
        ax = page.axes(left, top, SIDE, SIDE)
        draw_map(ax, seen.heads.rows[layer, head])
        words = f"{100 * parts[layer, head, :2].sum():.0f} %\n{seen.heads.entropy[layer, head]:.1f}"
        ax.text(len(PASSAGE) - 2, 1, words, size=7.5, ha="right", va="top")
        draw_parts(page.axes(left, top + SIDE + 0.025, SIDE, BAR), parts[layer, head])
        if layer == 0:
            page.text(left + SIDE / 2, top - 0.05, f"head {head + 1}", size=7.5, ha="center")
        if head == 0:
            middle = top + SIDE / 2
            page.text(0.38, middle, f"layer {layer + 1}", size=7.5, rotation=90, va="center")
    x, y = 0.5, TOP + 4 * STEP[1]
    for part, color in zip(PART_NAMES, COLORS, strict=True):
        page.box(x, y, 0.1, 0.1, facecolor=color, linewidth=0)
        page.text(x + 0.15, y + 0.05, part, size=7.5, va="center")
        x += 0.34 + 0.058 * len(part)


def closest(page: Page, seen: Recital) -> None:
    """The head that looks most at the word that is read, large, every character labelled."""
    own = seen.heads.parts[..., :2].sum(axis=-1)
    layer, head = divmod(int(own.argmax()), own.shape[1])
    words = f"{name((layer, head))}: {100 * own.max():.0f} %"
    heading(page, LEFT, TOP, "The head that keeps most to the word", words)
    ax = page.axes(LEFT, TOP, LARGE, LARGE)
    image = draw_map(ax, seen.heads.rows[layer, head])
    for set_labels in (ax.set_xticks, ax.set_yticks):
        set_labels(range(len(PASSAGE)), [c.replace(" ", "·") for c in PASSAGE], size=7)
    ax.tick_params(length=0, pad=2)
    ax.set_xlabel("Key (columns)", labelpad=2)
    ax.set_ylabel("Query (rows)", labelpad=3)
    bar = plot.colorbar(page.axes(LEFT + 2.05, TOP + 0.35, 1.7, 0.09), image, across=True)
    bar.set_label("Weight, coloured by its root", size=7.5)
    words = (
        f"No head copies: what came next after the same {COPIED} characters before\n"
        f"gets a mean weight of at most {seen.heads.copied.max():.3f}; all keys alike: "
        f"{seen.level['copied']:.3f}."
    )
    page.text(LEFT, TOP + LARGE + 0.55, words, size=8, va="top", linespacing=1.4)


def draw_map(ax: Axes, weights: np.ndarray) -> AxesImage:
    """The weights of one head, and what is masked."""
    return plot.cells(ax, plot.hide(weights, data.causal(len(weights))), ROOTS)


def draw_parts(ax: Axes, parts: np.ndarray) -> None:
    """The parts of the weight as one bar, from near to far."""
    ends = np.cumsum(parts)
    ax.barh([0] * len(parts), parts, left=ends - parts, height=1, color=COLORS)
    ax.set(xlim=(0, 1), ylim=(-0.5, 0.5))
    ax.set_axis_off()


def losses(page: Page, seen: Recital) -> None:
    """What each character costs along the whole licence."""
    words = (
        f"nats a character, means of {MEAN}; learnt: {seen.training.learnt:.2f}, "
        f"held back: {seen.training.held_back:.1f}"
    )
    heading(page, 0.5, BELOW, "Loss along the licence", words)
    ax = page.axes(0.5, BELOW, 8.2, 0.8)
    count = len(seen.nats) // MEAN
    means = seen.nats[: count * MEAN].reshape(count, MEAN).mean(axis=1)
    ax.axvspan(LEARNT, len(TEXT), color="#f6ead7", linewidth=0)
    ax.stairs(means, 1 + MEAN * np.arange(count + 1), baseline=None, color=INK, linewidth=0.8)
    ax.axvline(seen.mistake, color=ACCENT, linewidth=1.2)
    ax.text(seen.mistake + 60, 15, "first mistake", size=7.5, color=ACCENT, va="top")
    ax.text(LEARNT + 60, 2e-3, "held back", size=7.5, color=SOFT)
    ax.set(xlim=(0, len(TEXT)), yscale="log", ylim=(1e-3, 20))
    ax.set_yticks([0.01, 1], ["0.01", "1"])
    ax.minorticks_off()
    places = [0, 2000, 4000, 6000, LEARNT, len(TEXT)]
    ax.set_xticks(places, [f"{place:,}" for place in places])


def fork(page: Page, seen: Recital) -> None:
    """What the licence says where the model is wrong first, and what the model says."""
    top, at = BELOW + 1.3, seen.mistake
    reach = len(seen.heads.parts) * (WINDOW - 1)
    words = (
        f"the {seen.alike} characters before it stand in two clauses; "
        f"{len(seen.heads.parts)} layers together reach {reach} back"
    )
    heading(page, 0.5, top, "First mistake", words, ACCENT)
    said = seen.recited[at - PROMPT :][:AROUND]
    mono: dict[str, Any] = {"size": 8, "family": "DejaVu Sans Mono", "va": "center"}
    for row, (who, after) in enumerate((("licence", TEXT[at:][:AROUND]), ("model", said))):
        y = top + 0.1 + row * 0.2
        page.text(0.5, y, who, size=7.5, color=SOFT, va="center")
        page.text(4.78, y, "…" + TEXT[at - AROUND : at].rstrip(), ha="right", **mono)
        page.text(4.85, y, after.rstrip() + "…", color=ACCENT if row else INK, **mono)

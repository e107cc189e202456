"""Induction heads forming, on one page: the curves of training, and the maps of the two heads."""

from collections.abc import Mapping
from math import lgamma, log

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from figures import data, induction
from figures.data import Emergence
from figures.draw import ACCENT, INK, SOFT
from figures.induction import LENGTH, PERIOD, SEQUENCES, VOCABULARY, Numbers
from figures.page import Page
from jaxattn import plot

BLUE, BAND, OTHER, BARS = "#0072b2", "#f6ead7", "#999999", "#8795a3"
DASHES = ("-", (0, (2.5, 1.2)))  # of the lines of layers 1 and 2
SIDE, LEFTS = 1.92, (4.55, 6.61)  # of the maps
TOP, GAP, HEIGHT = 1.27, 0.42, 1.25  # of the panels with curves
BOTTOM = TOP + 4 * HEIGHT + 3 * GAP
STEPS = (30, 100, 300, 1000, induction.COUNT)  # that are named, from where the axes begin
HALVES = (0, 0.5, 1), ("0", "0.5", "1")
PLACES = (0, PERIOD, LENGTH - 1)  # that are named on axes of positions


def emergence() -> Figure:
    """A transformer in training: induction heads form, and repeated tokens are foretold."""
    seen = data.emergence()
    loss = dict(zip(seen.training.steps, seen.training.statistics.loss.repeated, strict=True))
    start, end = seen.change
    page = Page(9.0, BOTTOM + 0.5)
    page.title(
        f"Induction heads form in steps {start} to {end}: "
        f"a repeated token then costs {loss[end]:.1f} nats, not {loss[start]:.1f}",
        f"Two layers of {induction.HEADS} heads, without an MLP, learn to read random tokens that "
        f"repeat. Curves: means over {SEQUENCES} held-out sequences, {PERIOD} tokens twice.",
    )
    note = (
        "Shaded: the induction score rises from a tenth to three quarters of its last. "
        "Maps: one sequence, repeating at the lines; grey: masked."
    )
    page.text(0.15, 0.76, note, size=8.5, color=SOFT)
    curves(page, seen)
    maps(page, seen)
    foretold(page, seen)
    return page.figure


def curves(page: Page, seen: Emergence) -> None:
    """Loss and the three statistics of every head, against the training step."""
    steps, statistics = seen.training.steps, seen.training.statistics
    headings = (
        ("Loss", "nats a token"),
        ("Previous-token score", "weight of the token before"),
        ("Induction score", "weight of what came next the first time"),
        ("Entropy", "nats a query"),
    )
    panels = []
    for i, words in enumerate(headings):
        ax = page.axes(0.5, TOP + i * (HEIGHT + GAP), 3.42, HEIGHT)
        ax.axvspan(*seen.change, color=BAND, linewidth=0)
        ax.set(xscale="log", xlim=(STEPS[0], STEPS[-1]))
        ax.minorticks_off()
        ax.set_xticks(STEPS, map(str, STEPS) if i == 3 else [""] * len(STEPS))
        heading(page, 0.5, TOP + i * (HEIGHT + GAP), *words)
        panels.append(ax)
    loss, previous, copying, entropy = panels
    entropy.set_xlabel("Training step")

    loss.plot(steps, statistics.loss.new, color=SOFT, linewidth=1.2)
    loss.plot(steps, statistics.loss.repeated, color=INK, linewidth=1.8)
    loss.set(ylim=(0, 5.5), yticks=(0, 2, 4))
    guess = log(VOCABULARY)
    draw_level(loss, guess)
    label(loss, guess - 0.25, f"a guess: log {VOCABULARY} = {guess:.2f}", va="top")
    label(loss, 4.6, "new tokens")
    label(loss, 0.35, "repeated tokens", color=INK)

    draw_heads(previous, steps, statistics.previous, {seen.previous: BLUE})
    draw_heads(copying, steps, statistics.induction, {seen.induction: ACCENT})
    both = {seen.previous: BLUE, seen.induction: ACCENT}
    draw_heads(entropy, steps, statistics.entropy, both)
    for ax in (previous, copying):
        ax.set_ylim(0, 1.05)
        ax.set_yticks(*HALVES)
    label(previous, 0.83, name(seen.previous), color=BLUE, at=1300)
    label(copying, 0.72, name(seen.induction), color=ACCENT)
    for layer in (0, 1):
        y = 0.8 - 0.18 * layer
        previous.plot([34, 46], [y, y], color=OTHER, linewidth=1, linestyle=DASHES[layer])
        previous.text(50, y, f"other heads of layer {layer + 1}", size=7.5, color=SOFT, va="center")

    uniform = lgamma(LENGTH + 1) / LENGTH  # the mean of log 1, ..., log LENGTH
    draw_level(entropy, uniform)
    label(entropy, uniform + 0.1, f"all keys alike: {uniform:.2f}")
    entropy.set(ylim=(0, 4), yticks=(0, 1, 2, 3))


def name(head: tuple[int, int]) -> str:
    """A head, counted from 1."""
    return f"layer {head[0] + 1}, head {head[1] + 1}"


def heading(page: Page, left: float, top: float, title: str, note: str, color: str = INK) -> None:
    """The title of a panel, and beside it in grey what it shows."""
    text = page.text(left, top - 0.07, title, size=9, weight="bold", color=color, va="bottom")
    beside = {"xycoords": text, "textcoords": "offset points", "va": "bottom"}
    page.sheet.annotate(note, (1, 0), xytext=(5, 0.5), size=7.5, color=SOFT, **beside)


def label(ax: Axes, y: float, words: str, color: str = SOFT, va: str = "bottom", at: float = 2400):
    """Words that end at the step `at`."""
    ax.text(at, y, words, size=7.5, color=color, ha="right", va=va)


def draw_level(ax: Axes, y: float) -> None:
    """A dashed line across the axes."""
    ax.axhline(y, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))


def draw_heads(
    ax: Axes,
    steps: Int[np.ndarray, " n"],
    values: Float[Numbers, "n layer h"],
    marked: Mapping[tuple[int, int], str],
) -> None:
    """A line for each head: grey, dashed for layer 2, but in its colour if it is marked."""
    for head in np.ndindex(values.shape[1:]):
        line = {"color": OTHER, "linewidth": 0.9, "linestyle": DASHES[head[0]]}
        if head in marked:
            line = {"color": marked[head], "linewidth": 1.8, "zorder": 3}
        ax.plot(steps, values[:, *head], **line)


def maps(page: Page, seen: Emergence) -> None:
    """The weights of the two heads before and after training, on one scale."""
    image = None
    heads = (
        ("Previous-token head", seen.previous, BLUE),
        ("Induction head", seen.induction, ACCENT),
    )
    for row, (role, head, color) in enumerate(heads):
        top = TOP + row * (SIDE + GAP)
        heading(page, LEFTS[0], top, role, name(head), color)
        for column, when in enumerate(("before training", "after training")):
            ax = page.axes(LEFTS[column], top, SIDE, SIDE)
            image = draw_map(ax, seen.maps[row, column])
            ax.text(LENGTH - 3, 2, when, size=8, ha="right", va="top")
            ax.set_yticks(PLACES if column == 0 else [])
            ax.set_xticks(PLACES, map(str, PLACES) if row else [""] * len(PLACES))
            ax.set_ylabel("" if column else "Query (rows)")
            ax.set_xlabel("Key (columns)" if row else "")
    assert image is not None
    bar = page.axes(LEFTS[1] + SIDE + 0.07, TOP, 0.09, 2 * SIDE + GAP)
    plot.colorbar(bar, image, "Weight")


def draw_map(ax: Axes, weights: Float[np.ndarray, "t s"]) -> AxesImage:
    """The weights of one head, and a line where the tokens begin again."""
    image = plot.cells(ax, plot.hide(weights, data.causal(LENGTH)), plot.norms.unit())
    ax.tick_params(length=2.5, pad=2)
    for line in (ax.axhline, ax.axvline):
        line(PERIOD - 0.5, color="white", linewidth=0.6)
    return image


def foretold(page: Page, seen: Emergence) -> None:
    """The probability of the right next token, all along the sequence of the maps.

    The first query of the repeat is the least sure: its token stood at 0, where the previous-token
    head can only look at that token itself, so what key 0 holds looks like what came next too.
    """
    top, width = BOTTOM - HEIGHT, LEFTS[1] + SIDE - LEFTS[0]
    heading(page, LEFTS[0], top, "Right next token", "its probability; line: before training")
    ax = page.axes(LEFTS[0], top, width, HEIGHT)
    ax.bar(range(LENGTH), seen.chances[1], width=0.8, color=BARS)
    ax.plot(seen.chances[0], color=INK, linewidth=1)
    ax.axvline(PERIOD - 0.5, color=SOFT, linewidth=0.6)
    ax.set(xlim=(-0.5, LENGTH - 0.5), ylim=(0, 1.3), xticks=PLACES, xlabel="Query")
    ax.set_yticks(*HALVES)
    for i, words in enumerate(("first time round", "second time round")):
        ax.text((i + 0.5) * PERIOD - 0.5, 1.1, words, size=7.5, ha="center", color=SOFT)

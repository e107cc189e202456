"""Composes the figures and writes them: the only module here that writes files.

Sizes are in inches; a figure is as wide as a page or a README shows it, so type keeps its size.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import data, draw
from figures.by_heart import by_heart
from figures.emergence import emergence
from figures.every_head import minilm, of_checkpoint
from figures.long import long_map
from figures.model import NEXT
from figures.page import Page
from figures.story import walkthrough
from jaxattn import plot

ROW = 0.115  # the height of a row that carries a 7.5 pt label
STYLE = Path(__file__).with_name("style.mplstyle")


def embeddings() -> Figure:
    """X: one embedding of 768 numbers for each of the nine tokens."""
    walk = data.walkthrough()
    page = Page(9.0, 4.95)
    page.title(
        "X: every token becomes a row of 768 numbers",
        "9 × 768, wrapped into three bands of 256 columns. "
        "The numbers start at random and are moved by training.",
    )
    norm, image = plot.norms.centred(walk.x), None
    for i in range(3):
        first = i * 256
        ax = page.axes(0.9, 0.9 + i * 1.3, 7.4, 9 * ROW)
        image = draw.draw_features(ax, walk.x[:, first : first + 256], walk.tokens, norm)
        number_columns(ax, first, 256, every=64)
    assert image is not None
    plot.colorbar(page.axes(8.45, 0.9, 0.1, 2.6 + 9 * ROW), image)
    return page.figure


def number_columns(ax: Axes, first: int, count: int, every: int) -> None:
    """Numbers the columns from `first`, at the left edge of every `every`-th and at the end."""
    places = range(0, count + 1, every)
    ax.set_xticks([place - 0.5 for place in places], [str(first + place) for place in places])
    ax.tick_params(axis="x", length=2.5, labelsize=7)


def projections() -> Figure:
    """Q, K and V of one head, on one scale."""
    walk = data.walkthrough()
    build, aero = walk.q[walk.shown, -1], walk.k[walk.shown, 0]
    cosine = build @ aero / np.linalg.norm(build) / np.linalg.norm(aero)
    page = Page(9.0, 4.6)
    page.title(
        f"Q, K and V of head {walk.shown + 1}: the query of “build” points along the key of “Aero”",
        "Each 9 × 64 = (9 × 768) · (768 × 64), on one colour scale. "
        f"The cosine of the two framed rows is {cosine:.3f}.",
    )
    parts = {name: getattr(walk, name.lower())[walk.shown] for name in "QKV"}
    norm, image = plot.norms.centred(*parts.values()), None
    for i, (name, part) in enumerate(parts.items()):
        top = 0.9 + i * 1.2
        ax = page.axes(1.05, top, 64 * ROW, 9 * ROW)
        image = draw.draw_features(ax, part, walk.tokens, norm)
        page.text(0.15, top + 4.5 * ROW, name, size=13, weight="bold", va="center")
    page.box(1.05, 0.9 + 8 * ROW, 64 * ROW, ROW, **FRAME)
    page.box(1.05, 0.9 + 1.2, 64 * ROW, ROW, **FRAME)
    assert image is not None
    plot.colorbar(page.axes(8.52, 0.9, 0.1, 2.4 + 9 * ROW), image)
    return page.figure


def scores() -> Figure:
    """Raw, scaled and masked scores and the weights of one head, with every number."""
    walk = data.walkthrough()
    h, cell = walk.shown, 0.35
    side = 9 * cell
    page = Page(9.0, 8.65)
    page.title(
        f"From scores to weights in head {h + 1}: “build” gives most of its attention to “Aero”",
        "Dividing by √64 = 8 changes no colour, because the colour scale is divided by 8 with it. "
        "Grey: masked.",
    )
    raw = plot.norms.centred(walk.raw[h])
    scaled = plot.norms.divided(raw, 8)
    weights = plot.hide(walk.weights[h], walk.allowed)
    matrices = (walk.raw[h], walk.scaled[h], plot.hide(walk.masked[h], None), weights)
    norms = (raw, scaled, scaled, plot.norms.unit())
    names = (
        ("1", r"$Q\,K^\mathsf{T}$", "raw scores"),
        ("2", r"$Q\,K^\mathsf{T}/\sqrt{64}$", "scaled scores"),
        ("3", r"mask", "no token sees a later one"),
        ("4", r"softmax", "weights: every row sums to 1"),
    )
    for i, (count, name, note) in enumerate(names):
        left, top = 0.95 + (i % 2) * (side + 0.98), 1.2 + (i // 2) * (side + 0.42)
        ax = page.axes(left, top, side, side)
        image = draw.draw_matrix(ax, matrices[i], norms[i], digits=1 if i < 3 else 2)
        plot.tokens(ax, walk.tokens, rows=i % 2 == 0, columns=i // 2 == 1)
        ax.set_ylabel("Query (rows)" if i % 2 == 0 else "")
        ax.set_xlabel("Key (columns)" if i // 2 == 1 else "")
        page.text(left, top - 0.09, f"{count}  {name}", size=9.5, weight="bold")
        page.text(left + side, top - 0.09, note, size=8, color=draw.SOFT, ha="right")
        plot.colorbar(page.axes(left + side + 0.08, top, 0.09, side), image)
    return page.figure


def heads() -> Figure:
    """The weights of all 12 heads, on one scale."""
    walk = data.walkthrough()
    side, step = 1.68, 2.02
    page = Page(9.0, 7.7)
    page.title(
        "Twelve heads read one sentence in twelve ways",
        "One colour scale. Grey: masked. A dot marks the key to which “build” attends most. "
        f"Head {walk.shown + 1} is the one in the other figures.",
    )
    image = None
    for h in range(data.HEADS):
        row, column = divmod(h, 4)
        left, top = 0.95 + column * (side + 0.22), 1.05 + row * step
        ax = page.axes(left, top, side, side)
        weights = plot.hide(walk.weights[h], walk.allowed)
        image = plot.cells(ax, weights, plot.norms.unit(), gutter=0.4)
        plot.tokens(ax, walk.tokens, rows=column == 0, columns=row == 2)
        draw.draw_peak(ax, walk.weights[h], row=-1)
        weight = "bold" if h == walk.shown else "normal"
        page.text(left, top - 0.06, f"Head {h + 1}", size=8.5, weight=weight)
    page.text(0.15, 1.05 + 1.5 * step, "Query (rows)", rotation=90, va="center", ha="center")
    page.text(0.95 + 2 * side + 0.33, 7.52, "Key (columns)", ha="center")
    assert image is not None
    plot.colorbar(page.axes(8.44, 1.05, 0.1, 2 * step + side), image, "Weight")
    return page.figure


def outputs() -> Figure:
    """What each head puts out, and all of it side by side."""
    walk = data.walkthrough()
    width, height, gap = 1.83, 9 * ROW, 0.12
    page = Page(9.0, 6.55, dpi=400)
    page.title(
        "Every head puts out 9 × 64; side by side they are 9 × 768 again",
        "Each output is the head's weights times its V. One colour scale.",
    )
    norm, image = plot.norms.centred(walk.concat), None
    for h in range(data.HEADS):
        row, column = divmod(h, 4)
        left, top = 0.75 + column * (width + gap), 1.05 + row * 1.35
        ax = page.axes(left, top, width, height)
        image = draw.draw_features(ax, walk.mixed[h], walk.tokens if column == 0 else None, norm)
        page.text(left, top - 0.06, f"Head {h + 1}", size=8.5)
    total, top = 4 * width + 3 * gap, 5.2
    ax = page.axes(0.75, top, total, height)
    draw.draw_features(ax, walk.concat, walk.tokens, norm)
    number_columns(ax, 0, data.WIDTH, every=data.HEAD_WIDTH)
    page.text(0.75, top - 0.06, "All heads side by side", size=8.5, weight="bold")
    assert image is not None
    plot.colorbar(page.axes(8.51, 1.05, 0.09, top + height - 1.05), image)
    return page.figure


def next_word() -> Figure:
    """The one-head model before and after training: attention, next word, loss."""
    word = data.next_word()
    page = Page(9.0, 6.95)
    page.title(
        "Learning the next word: “build” learns to look back at “Aero”",
        f"A model of one head, trained for {len(word.losses)} steps on 12 sentences, "
        "this one among them. Grey: masked.",
    )
    side, lefts = 2.5, (0.95, 3.65)
    weights = (word.weights_before, word.weights_after)
    chances = (word.chances_before, word.chances_after)
    words = data.top_words(word.chances_after, 8)
    for i, when in enumerate(("Before training", "After training")):
        ax = page.axes(lefts[i], 1.1, side, side)
        shown = plot.hide(weights[i], word.allowed)
        image = draw.draw_matrix(ax, shown, plot.norms.unit(), digits=2)
        plot.tokens(ax, word.tokens, rows=i == 0)
        ax.set_xlabel("Key (columns)")
        ax.set_ylabel("Query (rows)" if i == 0 else "")
        ax.set_title(when, weight="bold")
        ax = page.axes(lefts[i], 4.72, side, 1.5)
        ax.set_title(f"Next word, {when.lower()}", weight="bold")
        draw.draw_chances(ax, words, data.chances_of(words, chances[i]), NEXT)
        if i:
            ax.set_yticks([])
        ax.set_xlabel("Probability")
    plot.colorbar(page.axes(lefts[1] + side + 0.08, 1.1, 0.09, side), image)
    ax = page.axes(7.25, 1.1, 1.55, side)
    draw.draw_losses(ax, word.losses, word.best)
    ax.set_title("Training", weight="bold")
    endings = [data.expected(first) for first in data.SUBJECTS]
    ax = page.axes(7.3, 4.72, 1.5, 1.5)
    draw.draw_choices(ax, data.chances_of(endings, word.swapped), data.SUBJECTS, endings)
    ax.set_title("Change the first word", weight="bold")
    return page.figure


FRAME = {"fill": False, "edgecolor": draw.INK, "linewidth": 1.1}
FIGURES: dict[str, Callable[[], Figure]] = {
    "walkthrough": walkthrough,
    "embeddings": embeddings,
    "projections": projections,
    "scores": scores,
    "heads": heads,
    "outputs": outputs,
    "next_word": next_word,
    "long_map": long_map,
    "induction": emergence,
    "reading": by_heart,
    "minilm": minilm,
}


def write(name: str, out: Path) -> list[Path]:
    """Draws the figure `name` into out/name.png and out/name.svg: the same bytes every time."""
    return save(FIGURES[name], name, out)


def write_model(folder: str, text: str, out: Path) -> list[Path]:
    """Draws every head of a checkpoint on a text, into out/model.png and out/model.svg."""
    return save(lambda: of_checkpoint(folder, text), "model", out)


def save(make: Callable[[], Figure], name: str, out: Path) -> list[Path]:
    """Draws a figure in the one style into two files."""
    out.mkdir(parents=True, exist_ok=True)
    with style.context(["default", STYLE]):
        figure = make()
        paths = [out / f"{name}.png", out / f"{name}.svg"]
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths

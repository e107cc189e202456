"""What every head of a checkpoint does with a text: all of them, one large, and their numbers."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from figures import survey
from figures.draw import SOFT
from figures.page import Page
from figures.survey import Survey
from jaxattn import plot

WIDTH = 9.0
TOP = 0.62  # where the maps of all heads begin
LARGE = 5.1, 4.6  # the width and height of the large map with its marginals
ROWS = 12  # of the table
COLUMNS = {"before": "previous", "after": "next", "first": "sink", "entropy": "entropy"}


def minilm() -> Figure:
    """Every head of a real model, all-MiniLM-L6-v2, on the sentence of the walk-through."""
    seen = survey.load()
    before = seen.statistics["previous"]
    back = divmod(int(before.argmax()), before.shape[1])
    sinks = int((seen.statistics["sink"] >= 0.5).sum())
    return compose(
        seen,
        f"MiniLM: one head looks one token back, one looks ahead, {sinks} of {before.size} rest "
        "on [CLS]",
        f"An encoder: every query sees every key. Layer {back[0]}, head {back[1]} gives the token "
        "before all of its weight. Layers and heads count from 0.",
        "after",
    )


def of_checkpoint(folder: str, text: str) -> Figure:
    """Every head of any checkpoint on any text."""
    seen = survey.survey(folder, text)
    layers, heads = seen.maps.shape[:2]
    best = {name: np.nanmax(seen.statistics[COLUMNS[name]]) for name in ("before", "after")}
    return compose(
        seen,
        f"{seen.name}: what {layers} × {heads} heads do with {len(seen.tokens)} tokens",
        "Where a query sees no key the map is grey. Layers and heads count from 0.",
        max(best, key=lambda name: best[name]),
    )


def compose(seen: Survey, title: str, note: str, column: str) -> Figure:
    """Lays out the three panels. column: by which the table goes; its first head is large."""
    layers, heads = seen.maps.shape[:2]
    numbers = {name: seen.statistics[field] for name, field in COLUMNS.items()}
    numbers = {name: array for name, array in numbers.items() if array.any()}  # none looks ahead
    shown = divmod(int(np.nan_to_num(numbers[column]).argmax()), heads)
    grid = 0.6 + layers * (WIDTH - 1.0) / heads
    page = Page(WIDTH, TOP + grid + LARGE[1])
    page.title(title, note)
    sizes = {"height_ratios": (TOP, grid, LARGE[1]), "width_ratios": (LARGE[0], WIDTH - LARGE[0])}
    parts = GridSpec(3, 2, **sizes)
    maps = np.where(seen.pairs > 0, seen.maps, np.nan)
    plot.heads(page.figure.add_subfigure(parts[1, :]), maps, seen.tokens)
    plot.head(
        page.figure.add_subfigure(parts[2, 0]),
        maps[shown],
        seen.received[shown],
        seen.entropy[shown],
        seen.tokens,
        title=f"Layer {shown[0]}, head {shown[1]}",
    )
    left, top = LARGE[0] + 1.03, TOP + grid
    page.text(LARGE[0] + 0.12, top + 0.27, f"Heads that see most of the token {column}", **BOLD)
    note = "Weight of a token by where it is; entropy in nats"
    page.text(LARGE[0] + 0.12, top + 0.47, note, size=7.5, color=SOFT)
    rows = min(layers * heads, ROWS)
    ax = page.axes(left, top + 0.77, WIDTH - left - 0.12, (LARGE[1] - 1.17) * rows / ROWS)
    plot.table(ax, numbers, order=column, most=rows)
    return page.figure


BOLD = {"size": 11, "weight": "bold"}

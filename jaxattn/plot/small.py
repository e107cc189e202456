"""All heads of a model, small, on one page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Real
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from jaxattn.observe.map import SHARE, Reduce
from jaxattn.plot import labels, matrix
from jaxattn.plot.arrays import COUNT, Numbers, Tokens, counted, shaped
from jaxattn.plot.labels import LEADING, SMALLEST
from jaxattn.plot.norms import power
from jaxattn.plot.page import MARGIN, SMALL, Page
from jaxattn.plot.picture import Picture, picture
from jaxattn.plot.scales import colorbar

SOFT = "#666666"
BAR, ROOM = 8.0, 40.0  # points, of the colour bar and its numbers
BEFORE, ABOVE, BELOW, LINE = 34.0, 30.0, 16.0, 10.0  # points around the maps, and of a label
GAP, TINY = 0.75, 6.0  # points, between maps, and of what is written above each
LONG = 8  # of so many of the longest names the width is taken


class Heads(NamedTuple):
    """What `heads` drew. images: [layer][head] as they are in the maps, whatever the order."""

    images: list[list[AxesImage]]
    bar: Colorbar


def heads(
    figure: Figure | SubFigure,
    maps: Real[Numbers, "layers heads rows columns"],
    tokens: Tokens | None = None,
    keys: Tokens | None = None,
    *,
    allowed: Bool[Numbers, "*#b t s"] | None = None,
    order: Real[Numbers, "layers heads"] | None = None,
    statistic: str = "the statistic",
    norm: Normalize | None = None,
    reduce: Reduce = SHARE,
) -> Heads:
    """The weights of every head, layers down and heads across, on one scale.

    Cells are square and have whole pixels, at least 4, or are pooled; maps are a hairline apart.

    tokens: named at the outer edges where there is room.
    order: a statistic of every head. Heads then go from its largest to its least, and each says
      which it is, counted from 0, and its statistic. statistic: what that is called.
    norm: if None, the root of the weight. The rest is as in `weights`.
    Raises:
      ValueError: the shapes or the counts of tokens disagree, or the figure is too small.
    """
    axes = "layers heads rows columns"
    whole = picture(maps, axes, "stack the maps of all layers", tokens, keys, allowed, reduce)
    count = whole.array.shape[:2]
    places = list(np.ndindex(count))
    if order is not None:
        ranks = shaped(order, "order", "layers heads", "pass one number for every head")
        if ranks.shape != count:
            raise ValueError(
                f"order has one number for each of the {count[0]} x {count[1]} heads, got shape "
                f"{ranks.shape}"
            )
        places = [divmod(int(i), count[1]) for i in np.argsort(-ranks, axis=None, kind="stable")]
    page = Page(figure)
    point = page.point
    before, above = (BEFORE if order is None else MARGIN) * point, ABOVE * point
    gap = max(round(GAP * point), 1)
    down = gap if order is None else gap + round(LINE * point)

    def fitted(edge: float) -> tuple[int, float, float]:
        """How many to pool, and the size of a map, with so much room for tokens at the edges."""
        wide = page.width - before - edge - (2 * BAR + ROOM) * point
        high = page.height - above - edge - BELOW * point
        return whole.fitted(wide / count[1] - gap, high / count[0] - down)

    edge = _widest(page, whole)
    if edge and _points(fitted(edge), whole) < LEADING * SMALLEST * point:
        edge = 0.0  # there is no room for them
    many, width, height = fitted(edge)
    left = before + edge
    seen, norm = whole.pooled(many), norm or power()
    images: dict[tuple[int, ...], AxesImage] = {}
    named: list[Text] = []
    for (row, column), head in zip(np.ndindex(count), places, strict=True):
        ax = page.axes(left + column * (width + gap), above + row * (height + down), width, height)
        images[head] = matrix.cells(ax, seen.array[head], norm)
        if edge:
            rows, columns = column == 0, row == count[0] - 1
            named += labels.tokens(ax, seen.tokens, seen.keys, rows=rows, columns=columns)
    for text in named:
        text.set_fontsize(min(other.get_fontsize() for other in named))
    step = width + gap, height + down
    if order is None:
        _number(page, count, (left, above), step, edge)
    else:
        _name(page, places, ranks, statistic, (left, above), step, width)
    bottom = above + count[0] * step[1] - down
    lowest = max([bottom, *(page.bottom(text) for text in named)])
    page.text(left, lowest + 5 * point, _caption(seen), size=SMALL, va="top", color=SOFT)
    side = left + count[1] * step[0] + BAR * point
    scale = colorbar(page.axes(side, above, BAR * point, bottom - above), images[0, 0])
    scale.set_label(seen.what(), size=SMALL)
    page.centre()
    return Heads([[images[i, j] for j in range(count[1])] for i in range(count[0])], scale)


def _widest(page: Page, whole: Picture) -> float:
    """The pixels of the longest label, if there are names; 0 if not."""
    if isinstance(whole.tokens, COUNT) or isinstance(whole.keys, COUNT):
        return 0.0
    names = {*labels.readable(whole.tokens), *labels.readable(whole.keys)}
    texts = [page.text(0.0, 0.0, name) for name in sorted(names, key=len)[-LONG:]]
    widest = max(text.get_window_extent().width for text in texts)
    page.remove(*texts)
    return widest + 4 * page.point


def _points(fitted: tuple[int, float, float], whole: Picture) -> float:
    """The pixels that a token has in a map of that size."""
    _, width, height = fitted
    return min(width / counted(whole.keys), height / counted(whole.tokens))


def _name(
    page: Page,
    heads: Sequence[tuple[int, ...]],
    ranks: Real[np.ndarray, "layers heads"],
    statistic: str,
    start: tuple[float, float],
    step: tuple[float, float],
    width: float,
) -> None:
    """Above every map which head it is, counted from 0, and its statistic if all have room."""
    names, values = [], []
    for head, (row, column) in zip(heads, np.ndindex(ranks.shape), strict=True):
        left, baseline = start[0] + column * step[0], start[1] + row * step[1] - 2.5 * page.point
        name = f"{head[0]}.{head[1]}"
        value = matrix.number(float(ranks[head]), 2)
        names.append(page.text(left, baseline, name, size=TINY))
        values.append(page.text(left, baseline, value, size=TINY, color=SOFT))
    widest = [max(text.get_window_extent().width for text in texts) for texts in (names, values)]
    space = 0.6 * TINY * page.point
    if sum(widest) + 2 * space > width:
        page.remove(*values)
    else:
        page.shift(values, widest[0] + space)
    heading = f"Layer.head, by {statistic}, the largest first"
    page.text(start[0], start[1] - 2 * LINE * page.point, heading, size=SMALL)


def _number(
    page: Page,
    count: tuple[int, ...],
    start: tuple[float, float],
    step: tuple[float, float],
    edge: float,
) -> None:
    """Numbers layers at the left, `edge` before the maps, and heads above."""
    left, top, line = *start, LINE * page.point
    middle = {"ha": "center", "va": "center"}
    for i in range(count[0]):
        x, y = left - edge - 0.7 * line, top + (i + 0.5) * step[1]
        page.text(x, y, f"{i}", size=SMALL, **middle)
    for j in range(count[1]):
        page.text(left + (j + 0.5) * step[0], top - 0.7 * line, f"{j}", size=SMALL, **middle)
    down, across = top + count[0] * step[1] / 2, left + count[1] * step[0] / 2
    page.text(left - edge - 2 * line, down, "Layer", size=9, rotation=90, **middle)
    page.text(across, top - 2 * line, "Head", size=9, **middle)


def _caption(seen: Picture) -> str:
    """What the rows and the columns of every map are."""
    queries, keys = (
        _ends(tokens, side) for tokens, side in zip(seen[1:3], seen.sides, strict=True)
    )
    if queries == keys:
        return f"Query (rows), key (columns): {queries}"
    return f"Query (rows): {queries}. Key (columns): {keys}"


def _ends(tokens: Tokens, side: int) -> str:
    """How many tokens there are, the first and the last, and how many are in a cell."""
    words = f"{counted(tokens):,} token{'s' if counted(tokens) > 1 else ''}"
    if not isinstance(tokens, COUNT):
        names = labels.readable([tokens[0], tokens[-1]])
        words += f", {names[0]} to {names[1]}" if len(tokens) > 1 else f", {names[0]}"
    return words + (f", {side} to a cell" if side > 1 else "")

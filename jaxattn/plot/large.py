"""One head, large, with what its keys receive and the entropy of its queries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Real
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import StepPatch

from jaxattn.observe.map import SHARE, Reduce
from jaxattn.plot import matrix
from jaxattn.plot.arrays import Numbers, Tokens, counted, shaped
from jaxattn.plot.maps import fill
from jaxattn.plot.marginals import folded, marginal
from jaxattn.plot.page import SMALL, Page
from jaxattn.plot.picture import picture
from jaxattn.plot.scales import colorbar

GAP, BESIDE, BAR, ROOM = 4.0, 34.0, 8.0, 44.0  # points: to a marginal, its width; a bar, its labels
SKEWED, DECADES = 30, 4  # from which ratio on a marginal is logarithmic, and how far down


class Head(NamedTuple):
    """What `head` drew."""

    map: AxesImage
    received: StepPatch | None
    entropy: StepPatch | None
    bar: Colorbar


def head(
    figure: Figure | SubFigure,
    map: Real[Numbers, "rows columns"],
    received: Real[Numbers, " s"] | None = None,
    entropy: Real[Numbers, " t"] | None = None,
    tokens: Tokens | None = None,
    keys: Tokens | None = None,
    *,
    allowed: Bool[Numbers, "rows columns"] | Bool[Numbers, "t s"] | None = None,
    norm: Normalize | None = None,
    reduce: Reduce = SHARE,
    title: str = "",
) -> Head:
    """The weights of one head, as large as the figure allows, with marginals and a colour bar.

    received: of every key, as `observe.Received` has it; above the map.
    entropy: of every query, in nats, as `observe.Entropy` has it; at the right.
    The rest is as in `weights`. Where a column of the map is of several keys, a marginal shows
    their mean, on a band from the least to the greatest.
    Raises:
      ValueError: the shapes or the counts of tokens disagree, or the figure is too small.
    """
    page = Page(figure)
    if tokens is None and entropy is not None:
        tokens = len(entropy)
        keys = len(received) if keys is None and received is not None else keys
    whole = picture(map, "rows columns", matrix.ONE, tokens, keys, allowed, reduce)
    of_keys = _one_each(received, whole.keys, "received", "keys")
    of_queries = _one_each(entropy, whole.tokens, "entropy", "queries")

    beside, gap, bar = (x * page.point for x in (BESIDE, GAP, BAR))
    above = page.margin + (16 * page.point if title else 0)
    if of_keys is not None:
        above += beside + gap + 11 * page.point
    elif of_queries is not None:
        above += 32 * page.point  # its numbers and its name
    after = 3 * gap + bar + ROOM * page.point + (beside + gap if of_queries is not None else 0)
    before, below = 50 * page.point, 50 * page.point
    ax = page.axes(before, above, page.width / 2, page.height / 2)
    image, width, height = None, 0.0, 0.0
    for _ in range(3):  # the size of labels goes by that of the map, and the other way round
        room = page.width - before - after, page.height - above - below
        many, width, height = whole.fitted(*room)
        page.move(ax, before, above, width, height)
        ax.clear()
        image = fill(ax, whole.pooled(many), norm)
        inner, outer = ax.get_window_extent(), ax.get_tightbbox()
        assert outer is not None
        before = inner.x0 - outer.x0 + page.margin
        below = inner.y0 - outer.y0 + page.margin
    assert image is not None
    right = before + width
    drawn: dict[str, StepPatch | None] = {"received": None, "entropy": None}
    if of_keys is not None:
        top = page.axes(before, above - gap - beside, width, beside)
        side = -(-len(of_keys) // matrix.held(image).shape[1])
        drawn["received"] = marginal(top, folded(of_keys, side))
        _scale_received(top, of_keys)
        page.text(before, above - gap - beside - 4 * page.point, "Attention received", size=SMALL)
    if of_queries is not None:
        side_axes = page.axes(right + gap, above, beside, height)
        side = -(-len(of_queries) // matrix.held(image).shape[0])
        drawn["entropy"] = marginal(side_axes, folded(of_queries, side), rows=True)
        _scale_entropy(side_axes, of_queries)
        right += gap + beside
    cax = page.axes(right + 3 * gap, above, bar, height)
    scale = colorbar(cax, image)
    scale.set_label(whole.pooled(many).what(), size=SMALL)
    if title:
        page.text(before, page.margin + 10 * page.point, title, size=11, weight="bold")
    page.centre()
    return Head(image, bar=scale, **drawn)


def _one_each(
    values: Numbers | None, names: Tokens, name: str, of: str
) -> Real[np.ndarray, " n"] | None:
    """A marginal, which must have one value for each."""
    if values is None:
        return None
    array = shaped(values, name, "n", "pick one head, as in received[:, 0]")
    if len(array) != counted(names):
        raise ValueError(
            f"{name} has one value for each of the {counted(names)} {of}, got {len(array)}; with a "
            f"map that is pooled, pass the tokens or how many there are"
        )
    return array


def _scale_received(ax: Axes, values: Real[np.ndarray, " n"]) -> None:
    """From 0; but decades, at most DECADES, where some keys receive far more than others."""
    known = values[np.isfinite(values)]
    low, high = float(known.min(initial=np.inf)), float(known.max(initial=0))
    if low >= 0 and high > SKEWED * low:
        last = np.ceil(np.log10(high))
        first = max(np.floor(np.log10(max(low, 1e-300))), last - DECADES)
        ends = 10.0**first, 10.0**last
        ax.set(yscale="log", ylim=ends)
        ax.set_yticks(ends, [f"{'≤ ' if low < ends[0] else ''}{ends[0]:g}", f"{ends[1]:g}"])
    else:
        _scale_from_zero(ax.set_ylim, ax.set_yticks, high)
    ax.minorticks_off()
    ax.tick_params(length=2.5, labelsize=SMALL)
    ax.get_yticklabels()[0].set_verticalalignment("bottom")  # away from the first query
    ax.spines[["top", "right"]].set_visible(False)


def _scale_entropy(ax: Axes, values: Real[np.ndarray, " n"]) -> None:
    """From 0, with the numbers above, where they meet no label of the map."""
    _scale_from_zero(ax.set_xlim, ax.set_xticks, float(np.nanmax(values, initial=0)))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("Entropy\n(nats)", size=SMALL)
    ax.tick_params(length=2.5, labelsize=SMALL, pad=2)
    ax.spines[["bottom", "right"]].set_visible(False)


def _scale_from_zero(limit: Callable[..., Any], ticks: Callable[..., Any], high: float) -> None:
    """From 0 to a number of one digit, and somewhat farther."""
    high = high if high > 0 else 1.0
    power = 10.0 ** np.floor(np.log10(high))
    tick = float(f"{np.floor(high / power) * power:.1g}")
    limit(0, 1.05 * high)
    ticks([0, tick], ["0", f"{tick:g}"])

"""The weights of one head on an `Axes`."""

from jaxtyping import Bool, Real
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage

from jaxattn.observe.map import SHARE, Reduce
from jaxattn.plot import labels, matrix
from jaxattn.plot.arrays import Numbers, Tokens
from jaxattn.plot.picture import Picture, picture

GUTTERS = ((16.0, 0.8), (8.0, 0.4))  # points to a cell from which lines are so wide
PRINTED, ROOM = 12, 17.0  # up to so many tokens values are printed, in cells of so many points


def weights(
    ax: Axes,
    weights: Real[Numbers, "rows columns"],
    tokens: Tokens | None = None,
    keys: Tokens | None = None,
    *,
    allowed: Bool[Numbers, "rows columns"] | Bool[Numbers, "t s"] | None = None,
    norm: Normalize | None = None,
    reduce: Reduce = SHARE,
) -> AxesImage:
    """Queries down, keys across, in square cells; what the mask hides is blank, not zero.

    Values are printed where there are at most 12 tokens and room. Cells that would be smaller than
    4 pixels, at the resolution of the figure, are pooled; the names of the axes then say how many
    queries and keys are in one.

    weights: exact, or a map as `observe.Map` makes it. NaN is blank.
    tokens: those of the queries, or how many there are; if None, as many as rows. With a map that
      is pooled these say where in it positions are.
    keys: those of the keys, if they are others.
    allowed: which keys each query may see, of the shape of the weights or of all tokens; if None,
      what is not NaN.
    norm: if None, linear on [0, 1] up to 32 tokens, and logarithmic from 0.0001 beyond.
    reduce: what a cell shows of several weights: SHARE or PEAK.
    Raises:
      ValueError: the shapes or the counts of tokens disagree.
    """
    whole = picture(weights, "rows columns", matrix.ONE, tokens, keys, allowed, reduce)
    box = ax.get_window_extent()
    return fill(ax, whole.pooled(whole.many(box.width, box.height)), norm)


def fill(ax: Axes, seen: Picture, norm: Normalize | None) -> AxesImage:
    """`weights` of what is checked, and pooled if need be."""
    box = ax.get_window_extent()
    rows, columns = seen.array.shape
    points = min(box.height / rows, box.width / columns) * 72 / ax.figure.dpi
    gutter = next((width for least, width in GUTTERS if points >= least), 0.0)
    image = matrix.cells(ax, seen.array, norm or seen.norm(), gutter=gutter)
    if max(rows, columns) <= PRINTED and points >= ROOM:
        matrix.values(ax, image, digits=2)
    ax.set_aspect("equal")
    ax.apply_aspect()
    labels.tokens(ax, seen.tokens, seen.keys)
    query, key = seen.axes()
    ax.set(xlabel=key, ylabel=query)
    return image

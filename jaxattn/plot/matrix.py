"""A matrix as cells, with its numbers in them."""

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Real
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.text import Text

from jaxattn.plot import norms
from jaxattn.plot.arrays import Numbers, numbers, shaped

MASKED = "#cccccc"
"""The colour of what a query may not see."""
ONE = "pick one head, as in weights[0]"


def colormap(name: str) -> Colormap:
    """The colour map of that name, with masked cells in the neutral tone."""
    return mpl.colormaps[name].with_extremes(bad=MASKED)


def hide(values: Real[Numbers, "*b t s"], allowed: Bool[Numbers, "*#b t s"] | None) -> np.ndarray:
    """`values` with NaN where `allowed` is False; without `allowed`, where a value is infinite."""
    array = numbers(values)
    return np.where(np.isfinite(array) if allowed is None else np.asarray(allowed), array, np.nan)


def cells(
    ax: Axes,
    values: Real[Numbers, "rows columns"],
    norm: Normalize,
    *,
    gutter: float = 0.0,
    cmap: str | None = None,
) -> AxesImage:
    """One cell to a value, row 0 at the top, NaN in the neutral tone.

    The cells fill the axes: give square axes for square cells.

    norm: one for all matrices that are compared (`plot.norms`).
    gutter: the white line between cells, in points.
    cmap: if None, viridis, or blue below and red above where the norm has a middle.
    """
    array = shaped(values, "values", "rows columns", ONE)
    name = cmap or ("RdBu_r" if norms.diverges(norm) else "viridis")
    image = ax.imshow(array, cmap=colormap(name), norm=norm, aspect="auto", interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    if gutter:
        for i in range(1, array.shape[0]):
            ax.axhline(i - 0.5, color="white", linewidth=gutter)
        for j in range(1, array.shape[1]):
            ax.axvline(j - 0.5, color="white", linewidth=gutter)
    return image


def values(ax: Axes, image: AxesImage, digits: int, size: float = 7.0) -> list[Text]:
    """Prints each value in its cell, black or white by the luminance of the cell; NaN is empty.

    size: of the numbers, in points.
    """
    texts = []
    for (i, j), value in np.ndenumerate(held(image)):
        if not np.isnan(value):
            r, g, b, _ = image.cmap(image.norm(value))
            luminance = 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2
            ink = "black" if luminance > 0.18 else "white"
            label = number(value, digits)
            texts.append(ax.text(j, i, label, ha="center", va="center", color=ink, size=size))
    return texts


def held(image: AxesImage) -> Real[np.ndarray, "rows columns"]:
    """What an image shows, NaN where it is masked."""
    return np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)


def number(value: float, digits: int) -> str:
    """`value` to `digits` decimals, with a true minus sign and without "-0"."""
    label = f"{value:.{digits}f}"
    return label.lstrip("-") if float(label) == 0 else label.replace("-", "−")

"""What belongs to the columns or the rows of a map, along it."""

import numpy as np
from jaxtyping import Real
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from jaxattn.plot.arrays import Numbers, numbers

LINE, BAND = "#0072b2", "#c9dcec"


def marginal(
    ax: Axes, values: Real[Numbers, "m c"] | Real[Numbers, " m"], *, rows: bool = False
) -> StepPatch:
    """The mean of each column of a map as a step, on a band from the least to the greatest.

    values: those of one column to a row, or one of each; NaN is left out. The axes are to lie along
      the map, whose extent they get.
    rows: of each row of the map instead, downwards.
    """
    array = numbers(values)
    array = array[:, None] if array.ndim == 1 else array
    low, high = np.fmin.reduce(array, axis=1), np.fmax.reduce(array, axis=1)
    count = (~np.isnan(array)).sum(axis=1)
    mean = np.where(count > 0, np.nansum(array, axis=1) / np.maximum(count, 1), np.nan)
    edges = np.arange(len(array) + 1) - 0.5
    way = "horizontal" if rows else "vertical"
    ax.stairs(high, edges, baseline=low, orientation=way, fill=True, color=BAND)
    line = ax.stairs(mean, edges, baseline=None, orientation=way, color=LINE, linewidth=0.8)
    if rows:
        ax.set_ylim(edges[-1], edges[0])
        ax.set_yticks([])
    else:
        ax.set_xlim(edges[0], edges[-1])
        ax.set_xticks([])
    return line


def folded(values: Real[Numbers, " n"], side: int) -> Real[np.ndarray, "m side"]:
    """Each run of `side` values as a row, the last filled up with NaN."""
    array = numbers(values)
    array = array.astype(np.result_type(array, np.float32))
    return np.pad(array, (0, -len(array) % side), constant_values=np.nan).reshape(-1, side)

"""`--png`: all heads on one page, or one head large."""

from typing import Any

import numpy as np

DPI = 200
SIDE = (0.6, 1.5)  # inches of a map in the grid
WIDEST = 12.0  # inches of the grid, while its maps have the least of these
LARGE = 8.0, 7.4  # inches of one head


def draw(reading: Any, layer: int | None = None, head: int | None = None) -> Any:
    """A matplotlib figure of a `jaxattn.viewer.Reading`."""
    from matplotlib.figure import Figure

    from jaxattn import plot

    maps = np.where(reading.pairs > 0, reading.maps, np.nan)
    if layer is None or head is None:
        layers, heads = maps.shape[:2]
        side = min(max(WIDEST / heads, SIDE[0]), SIDE[1])
        figure = Figure((side * heads + 1.5, side * layers + 1.0), dpi=DPI)
        plot.heads(figure, maps, reading.tokens)
        return figure
    figure = Figure(LARGE, dpi=DPI)
    plot.head(
        figure,
        maps[layer, head],
        reading.received[layer, head],
        reading.entropy[layer, head],
        reading.tokens,
        title=f"{reading.name}, layer {layer}, head {head}",
    )
    return figure

"""The colour bar of all maps of one norm."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.image import AxesImage

from jaxattn.plot.norms import ends

INSIDE = (0.1, 0.5)  # what a bar of a power names between its ends, in parts of the range


def colorbar(cax: Axes, image: AxesImage, label: str = "", *, across: bool = False) -> Colorbar:
    """The colour bar of one group of maps, its range printed at its ends.

    A logarithmic one has a number at each decade, and says of its floor that less is there too.

    cax: what it fills. across: whether it lies level.
    """
    norm = image.norm
    low, high = ends(norm)  # pyright: ignore[reportArgumentType]
    bar = cax.figure.colorbar(
        image, cax=cax, orientation="horizontal" if across else "vertical", ticks=[low, high]
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    text = lambda x: f"{x:.3g}".replace("-", "−")
    ticks, labels = [low, high], [text(low), text(high)]
    if isinstance(norm, LogNorm):
        first, last = np.log10(low), np.log10(high)
        between = range(int(np.floor(first + 0.3)) + 1, int(np.ceil(last - 0.3)))
        inner = [10.0**power for power in between]
        ticks = [low, *inner, high]
        labels = [f"≤ {low:g}", *(f"{tick:g}" for tick in inner), f"{high:g}"]
        if high > 1 >= low:
            labels[-1] = f"≥ {high:g}"
    elif isinstance(norm, PowerNorm):
        inner = [low + part * (high - low) for part in INSIDE]
        ticks, labels = [low, *inner, high], [labels[0], *map(text, inner), labels[-1]]
    elif not across and low < 0 < high:
        ticks, labels = [low, 0, high], [labels[0], "0", labels[-1]]
    bar.set_ticks(ticks, labels=labels)
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, pad=2, labelsize=7)
    if across:  # the numbers stay within the bar
        first, *_, last = bar.ax.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
    bar.set_label(label)
    return bar

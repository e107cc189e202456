"""A figure laid out in inches from its top left corner."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

from figures.draw import INK, SOFT


class Page:
    """A `Figure` of `width` by `height` inches; x runs right and y runs down, both in inches."""

    def __init__(self, width: float, height: float, dpi: int = 200):
        """`dpi` is that of the PNG, and of the maps in the SVG."""
        self.figure = Figure(figsize=(width, height), dpi=dpi)
        FigureCanvasAgg(self.figure)
        self.width, self.height = width, height
        self.sheet = self.figure.add_axes((0, 0, 1, 1))
        self.sheet.set(xlim=(0, width), ylim=(height, 0))
        self.sheet.set_axis_off()
        self.sheet.set_zorder(5)  # arrows and frames lie on top of the maps

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose data area is exactly that box."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, x: float, y: float, text: str, **style: Any) -> Text:
        """Text with its anchor at (x, y)."""
        return self.sheet.text(x, y, text, **style)

    def title(self, title: str, note: str) -> None:
        """The message of the figure at the top left, and what is drawn, in grey below."""
        self.text(0.15, 0.33, title, size=12, weight="bold")
        self.text(0.15, 0.58, note, size=8.5, color=SOFT)

    def box(self, left: float, top: float, width: float, height: float, **style: Any) -> Rectangle:
        """A rectangle."""
        box = Rectangle((left, top), width, height, **style)
        self.sheet.add_patch(box)
        return box

    def arrow(self, *points: tuple[float, float], head: bool = True, color: str = INK) -> None:
        """A line through the points, with an arrow head at the last."""
        xs, ys = zip(*points, strict=True)
        self.sheet.plot(xs[:-1], ys[:-1], color=color, linewidth=0.9, solid_capstyle="butt")
        self.sheet.add_patch(
            FancyArrowPatch(
                points[-2],
                points[-1],
                arrowstyle="-|>,head_width=2.2,head_length=4" if head else "-",
                shrinkA=0,
                shrinkB=0,
                mutation_scale=1,
                linewidth=0.9,
                color=color,
            )
        )

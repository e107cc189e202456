"""A figure, or a part of one, laid out in pixels from its top left corner.

Cells have whole pixels, so that all of a map are alike.
"""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

SMALL = 7.5  # points, of notes
MARGIN = 6.0  # points, around everything


class Page:
    """`figure` in pixels: x runs right and y runs down."""

    def __init__(self, figure: Figure | SubFigure):
        self.figure = figure
        self.width, self.height = figure.bbox.width, figure.bbox.height
        self.point = figure.dpi / 72
        self.margin = MARGIN * self.point
        self.drawn: list[Axes | Text] = []

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose data area is that box, moved to the next pixel."""
        ax = self.figure.add_axes((0, 0, 1, 1))
        self.move(ax, left, top, width, height)
        self.drawn.append(ax)
        return ax

    def move(self, ax: Axes, left: float, top: float, width: float, height: float) -> None:
        """Moves axes to a box."""
        x, y = self.figure.bbox.x0, self.figure.bbox.y0
        left = round(x + left) - x
        bottom = round(y + self.height - top - height) - y
        size = self.width, self.height, self.width, self.height
        box = (
            part / whole for part, whole in zip((left, bottom, width, height), size, strict=True)
        )
        ax.set_position(tuple(box))  # pyright: ignore[reportArgumentType]

    def text(self, x: float, y: float, text: str, **style: Any) -> Text:
        """Text with its anchor at (x, y); a $ in it is no mathematics."""
        drawn = self.figure.text(
            x / self.width, 1 - y / self.height, text, parse_math=False, **style
        )
        self.drawn.append(drawn)
        return drawn

    def remove(self, *artists: Axes | Text) -> None:
        """Takes away what was drawn."""
        for artist in artists:
            artist.remove()
            self.drawn.remove(artist)

    def shift(self, texts: Iterable[Text], right: float) -> None:
        """Moves texts to the right."""
        for text in texts:
            x, y = text.get_position()
            text.set_position((x + right / self.width, y))

    def bottom(self, text: Text) -> float:
        """How far down a text of any axes goes."""
        return self.figure.bbox.y1 - text.get_window_extent().y0

    def centre(self) -> None:
        """Moves all by whole pixels, so that as much is free at one side as at the other."""
        whole = Bbox.union([_extent(artist) for artist in self.drawn])
        box = self.figure.bbox
        right = round((box.x0 + box.x1 - whole.x0 - whole.x1) / 2) / self.width
        up = round((box.y0 + box.y1 - whole.y0 - whole.y1) / 2) / self.height
        for artist in self.drawn:
            if isinstance(artist, Axes):
                artist.set_position(artist.get_position(original=True).translated(right, up))
            else:
                x, y = artist.get_position()
                artist.set_position((x + right, y + up))


def _extent(artist: Axes | Text) -> BboxBase:
    """The pixels of what was drawn."""
    box = artist.get_tightbbox() if isinstance(artist, Axes) else artist.get_window_extent()
    assert box is not None
    return box

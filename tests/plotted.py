"""What the tests of `jaxattn.plot` draw, and ask of what was drawn."""

from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import StepPatch
from matplotlib.text import Text

HOSTILE = ["$x$", "$", "a b\nc", "", "\t\x00", "_under", "{", r"\frac", "<b>", "x" * 400, "#", "%s"]


def random_weights(*shape: int, causal: bool = False) -> np.ndarray:
    """Softmax of random numbers, in float64."""
    logits = 2 * np.random.default_rng(0).normal(size=shape)
    if causal:
        logits = np.where(np.tri(*shape[-2:], dtype=bool), logits, -np.inf)
    terms = np.exp(logits)
    return terms / terms.sum(axis=-1, keepdims=True)


def drawn(image: AxesImage) -> np.ndarray:
    """What the image holds, NaN where it is blank."""
    return np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)


def rgba(image: AxesImage, value) -> tuple:
    """The colour that a value has."""
    return tuple(image.cmap(image.norm(value)))


def size(text: Text) -> float:
    """Of a text, in points."""
    return float(text.get_fontsize())


def step(line: StepPatch | None) -> np.ndarray:
    """What a step shows."""
    assert line is not None
    return np.asarray(line.get_data()[0])


def scaled(norm, values: list[float]) -> np.ndarray:
    """Where on the colour map values are."""
    return np.asarray(norm(np.array(values)))


def words(labels) -> list[str]:
    return [label.get_text() for label in labels]


def by_hand(weights: np.ndarray, side: int) -> np.ndarray:
    """Cells of `side` by `side`, each the mean over queries of the sum over keys."""
    starts = [range(0, n, side) for n in weights.shape]
    cells = [
        [weights[i : i + side, j : j + side].sum(axis=1) for j in starts[1]] for i in starts[0]
    ]
    return np.array([[cell.mean() for cell in row] for row in cells])


def assert_legible(figure: Figure, *tight) -> None:
    """No text is cut, under 6 points, or on another, but of the `tight` axes, which may be full."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    labels = [text for ax in tight for text in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    boxes = [(text, text.get_window_extent()) for text in found]
    for text, box in boxes:
        assert size(text) >= 6, text
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
    level = [(text, box) for text, box in boxes if text.get_rotation() in (0, 90)]
    for (one, a), (two, b) in combinations(level, 2):
        inside = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        # Boxes have room for letters that go deep; rows of labels are a line apart.
        assert min(inside) <= 0.02 * figure.dpi or (one in labels and two in labels), (one, two)

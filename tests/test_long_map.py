"""The head that is observed over a long text, at lengths where every weight can be held."""

import numpy as np
import pytest
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_figures import assert_legible

from figures import long, make, recall
from figures.page import Page

T, CELLS = 331, 23  # primes: 23 cells of 15 queries each, the last of one
# The rounding of a logit, a sum of d products that are SHARP in all, is that of a weight too.
ROUNDING = recall.CONTEXT * recall.WIDTH * 2.0**-23 * recall.SHARP


def a_look() -> recall.Look:
    """Somewhat more than two readings of the beginning of the licence."""
    return recall.look(recall.again(recall.licence()[:149], T), CELLS)


def dense_weights(text: str) -> np.ndarray:
    """Every weight of the head, in float64."""
    q, k = (x.astype(float) for x in recall.codes(text))
    back = np.subtract.outer(np.arange(len(text)), np.arange(len(text)))
    logits = recall.SHARP * q @ k.T - 0.5 * np.log1p(np.maximum(back, 0))
    logits[:, 0] = recall.SINK
    terms = np.exp(np.where(back >= 0, logits, -np.inf))
    return terms / terms.sum(axis=1, keepdims=True)


def drawn(seen: recall.Look) -> tuple[Figure, Axes, Axes, Axes]:
    """The page, and on it the axes of the map, of what keys receive and of the entropy."""
    with style.context(["default", make.STYLE]):
        page = Page(9.0, 6.0)
        ax = long.draw_look(page, 1.0, seen, "A short text")
    above, beside = page.figure.axes[-2:]
    return page.figure, ax, above, beside


def test_the_clause_is_in_the_licence_and_the_text_is_as_long_as_asked_for():
    assert recall.CLAUSE in recall.licence()
    assert recall.again("abc", 9) == "abc abc a"


def test_the_map_is_that_of_the_dense_weights():
    seen = a_look()
    weights, side = dense_weights(seen.text), -(-T // CELLS)
    starts = np.arange(0, T, side)
    pooled = np.add.reduceat(np.add.reduceat(weights, starts, axis=0), starts, axis=1)
    pooled /= np.diff(np.append(starts, T))[:, None]
    assert seen.weights.shape == (CELLS, CELLS)
    np.testing.assert_allclose(seen.weights, pooled, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(seen.weights.sum(axis=1), 1, rtol=0, atol=ROUNDING)


def test_the_marginals_are_those_of_the_dense_weights():
    seen = a_look()
    weights = dense_weights(seen.text)
    logs = np.log(np.where(weights > 0, weights, 1))
    entropy, received = seen.entropy.ravel(), seen.received.ravel()
    bound = ROUNDING * (1 + np.log(T))
    np.testing.assert_allclose(entropy[:T], -(weights * logs).sum(axis=1), rtol=0, atol=bound)
    mean = weights.sum(axis=0) / (T - np.arange(T))
    np.testing.assert_allclose(received[:T], mean, rtol=0, atol=ROUNDING)
    assert np.isnan(entropy[T:]).all()
    assert np.isnan(received[T:]).all()


def test_the_head_looks_at_what_followed_one_reading_ago():
    once = recall.licence()[:149]
    seen = recall.look(recall.again(once, 2 * len(once) + 1), cells=1000)
    back = len(once) + 1
    rows = np.arange(back + recall.CONTEXT, len(seen.text))
    assert (seen.weights[rows].argmax(axis=1) == rows - back + 1).all()
    assert seen.found[rows[:-1]].all()


def test_what_no_query_may_see_is_blank():
    seen = a_look()
    _, ax, _, _ = drawn(seen)
    (image,) = ax.images
    shown = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    assert (np.isnan(shown) == ~np.tri(CELLS, dtype=bool)).all()
    assert (seen.weights[np.isnan(shown)] == 0).all()
    assert image.get_clim() == (1e-4, 1)
    assert image.get_cmap().name == "viridis"
    assert image.get_interpolation() == "nearest"


def test_marginals_lie_along_the_map():
    figure, ax, above, beside = drawn(a_look())
    assert ax.get_xlim() == above.get_xlim() == (-0.5, CELLS - 0.5)
    assert ax.get_ylim() == beside.get_ylim() == (CELLS - 0.5, -0.5)
    of_map, of_keys, of_queries = (a.get_position() for a in (ax, above, beside))
    assert (of_keys.x0, of_keys.x1) == (of_map.x0, of_map.x1)
    assert (of_queries.y0, of_queries.y1) == (of_map.y0, of_map.y1)
    width, height = figure.get_size_inches()
    assert of_map.width * width == pytest.approx(of_map.height * height)  # square cells


def test_labels_and_steps_change_no_extent():
    seen = a_look()
    _, ax, _, _ = drawn(seen)
    long.label_places(ax, seen, {0: "0", 150: "150"}, room=0.4)
    long.label_steps(ax, seen, {0: "first", 150: "second"})
    assert ax.get_xlim() == (-0.5, CELLS - 0.5)
    assert ax.get_ylim() == (CELLS - 0.5, -0.5)
    assert list(ax.get_yticks()) == [-0.5, 150 / 15 - 0.5]


@pytest.mark.parametrize("part", [4, pytest.param(1, marks=pytest.mark.long)])
def test_no_text_is_clipped_too_small_or_on_another(part, monkeypatch):
    """On the page of 32,768 tokens, or of a fourth of them, in as many readings of less text."""
    text = recall.licence()
    monkeypatch.setattr(recall, "licence", lambda: text[: len(text) // part])
    monkeypatch.setattr(recall, "LENGTH", recall.LENGTH // part)
    assert_legible("long_map")


def test_words_are_named_at_their_middle_and_numbered():
    assert long.words("again, a light again") == {
        2.5: "again (1)",
        11.5: "light",
        17.5: "again (2)",
    }

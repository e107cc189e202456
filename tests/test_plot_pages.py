"""Whole pages of `jaxattn.plot`, at any length and from any input, can be read."""

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from plotted import (
    assert_legible,
    by_hand,
    drawn,
    random_weights,
    step,
    words,
)

import jaxattn as ja
from jaxattn import plot
from jaxattn.observe import Entropy, Map, Received


@pytest.mark.parametrize("count", [1, 2, 31, 33, 65, 300])
def test_a_head_at_any_length(figure, count):
    weights = random_weights(count, count, causal=True)
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=1)
    received = weights.sum(axis=0) / np.arange(count, 0, -1)
    names = [f"token{i % 7}" for i in range(count)]
    allowed = np.tri(count, dtype=bool)
    seen = plot.head(figure, weights, received, entropy, names, allowed=allowed, title="Head 1")
    side = -(-count // len(drawn(seen.map)))
    near = weights if side == 1 else by_hand(weights, side)
    np.testing.assert_allclose(np.nan_to_num(drawn(seen.map)), near, rtol=1e-12)
    assert (np.isnan(drawn(seen.map)) == ~np.tri(len(near), dtype=bool)).all()
    above, beside = (step(line) for line in (seen.received, seen.entropy))
    starts, counts = np.arange(0, count, side), np.diff([*range(0, count, side), count])
    np.testing.assert_allclose(above, np.add.reduceat(received, starts) / counts)
    np.testing.assert_allclose(beside, np.add.reduceat(entropy, starts) / counts, atol=1e-12)
    of_map, of_keys, of_queries, bar = (
        ax.get_window_extent() for ax in (seen.map.axes, *figure.axes[1:4])
    )
    assert (of_keys.x0, of_keys.x1) == pytest.approx((of_map.x0, of_map.x1))
    assert (of_queries.y0, of_queries.y1) == pytest.approx((of_map.y0, of_map.y1))
    cell = of_map.width / len(near)
    assert cell == pytest.approx(round(cell))
    assert cell >= 4
    assert of_map.height == pytest.approx(of_map.width)
    assert of_queries.x1 < bar.x0
    assert_legible(figure)


def test_a_head_of_a_map_that_was_observed(figure):
    n = 700
    q = jnp.asarray(np.random.default_rng(0).normal(size=(n, 1, 8)), jnp.float32)
    observe = {"map": Map(100), "received": Received(), "entropy": Entropy()}
    seen = ja.attend(q, q, q, mask=ja.Causal(), observe=observe).observed
    received = (seen["received"].mass / seen["received"].queries)[:, 0]
    entropy = seen["entropy"][:, 0]
    page = plot.head(figure, seen["map"][0], received, entropy, allowed=np.tri(100, dtype=bool))
    np.testing.assert_allclose(
        drawn(page.map)[np.tri(100, dtype=bool)], seen["map"][0][np.tri(100, dtype=bool)]
    )
    assert page.map.axes.get_xlabel() == "Key (columns), 7 to a cell"
    assert page.bar.ax.get_ylabel() == "Share of a query's weight"
    means = step(page.entropy)
    np.testing.assert_allclose(means, np.asarray(entropy).reshape(100, 7).mean(axis=1), rtol=1e-5)
    assert_legible(figure)


def test_a_row_of_nan_is_blank_everywhere(figure):
    weights, entropy = random_weights(5, 5), np.arange(5.0)
    weights[2], entropy[2] = np.nan, np.nan
    seen = plot.head(figure, weights, np.full(5, np.nan), entropy, ["a", "b", "c", "d", "e"])
    assert np.isnan(drawn(seen.map)).sum() == 5
    assert np.isnan(step(seen.entropy)).tolist() == [False, False, True, False, False]
    assert len(seen.map.axes.texts) == 20
    figure.draw_without_rendering()


@pytest.mark.parametrize("layers", [6, 12])
def test_a_grid_of_heads(layers):
    figure = Figure(figsize=(6.5, 0.4 + 0.55 * layers), dpi=200)
    maps = random_weights(layers, 12, 13, 13)
    seen = plot.heads(figure, maps, [f"t{i}" for i in range(13)])
    boxes = np.array([[i.axes.get_window_extent().bounds for i in row] for row in seen.images])
    assert boxes.shape == (layers, 12, 4)
    for (layer, head), image in np.ndenumerate(np.array(seen.images, object)):
        assert (drawn(image) == maps[layer, head]).all()
        assert image.norm is seen.images[0][0].norm
    x, y, width, height = np.moveaxis(boxes, -1, 0)
    np.testing.assert_allclose(width, height)
    np.testing.assert_allclose(width / 13, np.round(width / 13))
    np.testing.assert_allclose(x, np.round(x), atol=1e-6)
    np.testing.assert_allclose(np.diff(x, axis=1), width[:, 1:] + 2)
    np.testing.assert_allclose(-np.diff(y, axis=0), height[1:] + 2)
    texts = words(figure.texts)
    assert {"Layer", "Head", "0", str(layers - 1)} <= set(texts)
    assert "Query (rows), key (columns): 13 tokens, t0 to t12" in texts
    assert words(seen.bar.ax.get_yticklabels()) == ["0", "0.1", "0.5", "1"]
    assert_legible(figure)


def test_heads_in_the_order_of_a_statistic():
    figure, maps = Figure(figsize=(6, 4), dpi=200), random_weights(2, 3, 5, 5)
    order = np.array([[0.3, np.nan, 0.9], [0.1, 0.5, -0.2]])
    seen = plot.heads(figure, maps, order=order, statistic="$induction", norm=plot.norms.log(1e-3))
    places = {
        (layer, head): seen.images[layer][head].axes.get_window_extent().p0
        for layer, head in np.ndindex(2, 3)
    }
    read = sorted(places, key=lambda place: (-places[place][1], places[place][0]))
    assert read == [(0, 2), (1, 1), (0, 0), (1, 0), (1, 2), (0, 1)]
    assert (drawn(seen.images[1][1]) == maps[1, 1]).all()
    texts = words(figure.texts)
    assert [t for t in texts if t in ("0.2", "1.1", "0.0")] == ["0.2", "1.1", "0.0"]
    assert {"0.90", "−0.20"} <= set(texts)
    assert "Layer.head, by $induction, the largest first" in texts
    assert words(seen.bar.ax.get_yticklabels())[0] == "≤ 0.001"
    assert_legible(figure)


def test_tokens_at_the_outer_edges_of_a_grid():
    figure = Figure(figsize=(8, 7), dpi=150)
    names, others = ["the", "cat", "sat"], ["le", "chat", "est", "assis"]
    seen = plot.heads(figure, random_weights(2, 2, 3, 4), names, others)
    rows = [[words(image.axes.get_yticklabels()) for image in row] for row in seen.images]
    columns = [[words(image.axes.get_xticklabels()) for image in row] for row in seen.images]
    assert rows == [[names, []], [names, []]]
    assert columns == [[[], []], [others, others]]
    assert_legible(figure)


def test_a_grid_in_a_part_of_a_figure(figure):
    left, right = figure.subfigures(1, 2)
    seen = plot.heads(right, random_weights(2, 2, 5, 5), allowed=np.tri(5, dtype=bool))
    boxes = [image.axes.get_window_extent() for row in seen.images for image in row]
    assert all(box.x0 >= right.bbox.x0 and box.x1 <= right.bbox.x1 for box in boxes)
    assert np.isnan(drawn(seen.images[1][1])).sum() == 10
    assert not left.get_children()[1:]
    assert_legible(figure)


def test_a_table_of_heads():
    ax = Figure(figsize=(6, 4)).add_axes((0.2, 0.1, 0.75, 0.8))
    entropy, copied = np.array([[1.0, 2.0, 4.0], [0.0, np.nan, 3.0]]), np.arange(6.0).reshape(2, 3)
    seen = plot.table(ax, {"entropy": entropy, "copied": copied}, order="entropy", most=4)
    assert words(ax.get_yticklabels()) == [
        *("layer 0, head 2", "layer 1, head 2", "layer 0, head 1", "layer 0, head 0")
    ]
    assert words(seen.texts["entropy"]) == ["4.00", "3.00", "2.00", "1.00"]
    assert words(seen.texts["copied"]) == ["2.00", "5.00", "1.00", "0.00"]
    widths = [bar.get_width() for bar in seen.bars["copied"]]
    assert widths == pytest.approx([0.5 * x / 5 for x in (2, 5, 1, 0)])
    assert words(plot.table(ax, {"entropy": entropy}).texts["entropy"])[4] == "—"


def test_statistics_over_layers():
    ax = Figure(figsize=(5, 3)).add_axes((0.1, 0.2, 0.6, 0.7))
    values = np.array([[1.0, 2.0], [3.0, np.nan], [0.0, 1.0]])
    seen = plot.layers(ax, {"a": values, "b": values + 0.01})
    assert np.asarray(seen.lines["a"].get_xydata()).tolist() == [[0, 1.5], [1, 3], [2, 0.5]]
    dots: Any = seen.dots["a"].get_offsets()
    assert dots[:3].tolist() == [[0, 1], [0, 2], [1, 3]]
    assert words(ax.texts) == ["a", "b"]
    low, high = (text.get_window_extent().y0 / ax.figure.dpi * 72 for text in ax.texts)
    assert high - low >= 8  # points
    assert {line.get_color() for line in seen.lines.values()} == {"#0072b2", "#d55e00"}


# Errors


SQUARE = random_weights(3, 3)
IDS: Any = [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, ax: plot.weights(ax, random_weights(2, 3, 3)), r"\(2, 3, 3\); pick one head"),
        (lambda f, ax: plot.weights(ax, np.zeros((0, 3))), "none of them 0"),
        (lambda f, ax: plot.weights(ax, SQUARE, ["a", "b"]), "each of the 3 rows.*got 2; pass 3"),
        (lambda f, ax: plot.weights(ax, SQUARE, 3, 4), "each of the 3 columns.*got 4"),
        (lambda f, ax: plot.weights(ax, SQUARE, 0), "got 0"),
        (lambda f, ax: plot.tokens(plot.cells(ax, SQUARE, plot.norms.unit()).axes, "ab"), "got 2"),
        (lambda f, ax: plot.weights(ax, SQUARE, IDS), "decode ids first"),
        (lambda f, ax: plot.weights(ax, SQUARE, allowed=np.ones((4, 4), bool)), r"got \(4, 4\)"),
        (lambda f, ax: plot.heads(f, SQUARE), "layers heads rows columns.*stack"),
        (lambda f, ax: plot.heads(f, SQUARE[None, None], order=np.zeros((2, 1))), "1 x 1 heads"),
        (lambda f, ax: plot.head(f, SQUARE, np.ones(4)), "received.*3 keys, got 4"),
        (lambda f, ax: plot.head(f, SQUARE, None, np.ones((3, 1))), "entropy must be"),
        (lambda f, ax: plot.head(Figure((0.5, 0.5)), SQUARE), "4 by 4 pixels.*larger figure"),
        (lambda f, ax: plot.norms.log(0), "between 0 and 1, got 0"),
        (lambda f, ax: plot.norms.ratio(1), "above 1, got most=1"),
        (lambda f, ax: plot.pooled(SQUARE, 2, 2, reduce=ja.observe.SUM), "SHARE or PEAK, got SUM"),
        (lambda f, ax: plot.table(ax, {}), "no statistic"),
        (lambda f, ax: plot.table(ax, {"a": SQUARE}, order="b"), "got 'b'; take one of a"),
        (lambda f, ax: plot.layers(ax, {"a": SQUARE, "b": SQUARE[:2]}), "same layers and heads"),
        (lambda f, ax: plot.layers(ax, {str(i): SQUARE for i in range(9)}), "at most 8.*got 9"),
    ],
)
def test_errors_say_the_rule_what_came_and_the_remedy(figure, ax, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(figure, ax)


# The package


def test_drawing_keeps_no_state_and_opens_no_file(figure, monkeypatch):
    program = """
import numpy as np
from matplotlib.figure import Figure
from jaxattn import plot
plot.head(Figure(), np.eye(3), np.ones(3), np.ones(3), ["a", "b", "c"])
import sys
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    plot.head(figure, np.eye(3))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("drawing opened a file"))
    plot.heads(figure, np.eye(3)[None, None])


def test_without_matplotlib_one_line_says_what_to_install():
    program = "import sys; sys.modules['matplotlib'] = None; import jaxattn.plot"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: jaxattn.plot draws with matplotlib")
    assert 'pip install "matplotlib>=3.10"' in last


def test_every_name_is_there_and_documented():
    for name in plot.__all__:
        assert getattr(plot, name).__doc__, name

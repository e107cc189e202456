"""What `jaxattn.plot` draws: the artists against NumPy, and pages that can be read."""

import subprocess
import sys
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import StepPatch
from matplotlib.text import Text

import jaxattn as ja
from jaxattn import plot
from jaxattn.observe import PEAK, Entropy, Map, Received

HOSTILE = ["$x$", "$", "a b\nc", "", "\t\x00", "_under", "{", r"\frac", "<b>", "x" * 400, "#", "%s"]


@pytest.fixture
def figure():
    """A bare figure that nobody saves."""
    return Figure(figsize=(6, 5), dpi=200)


@pytest.fixture
def ax(figure):
    """Axes of 800 by 800 pixels."""
    return figure.add_axes((0.2, 0.1, 800 / 1200, 800 / 1000))


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


# Cells and norms


def test_masked_is_not_zero(ax):
    weights, allowed = random_weights(5, 7), np.tri(5, 7, dtype=bool)
    weights[3, 0] = 0
    for norm in (plot.norms.unit(), plot.norms.power(), plot.norms.log(1e-3)):
        image = plot.cells(ax, plot.hide(weights, allowed), norm)
        assert (np.isnan(drawn(image)) == ~allowed).all()
        assert (drawn(image)[allowed] == weights[allowed]).all()
        colors = image.to_rgba(drawn(image), norm=True)
        assert (colors[~allowed] == to_rgba(plot.MASKED)).all()
        assert (colors[3, 0] == image.cmap(0.0)).all()
        assert to_rgba(plot.MASKED) not in {image.cmap(0.0), image.cmap(1.0)}
        assert image.get_cmap().name == "viridis"
        assert image.get_interpolation() == "nearest"


def test_infinite_logits_are_blank_and_the_rest_diverges(ax):
    logits = np.array([[-2.0, -np.inf], [1.0, 0.5]])
    image = plot.cells(ax, plot.hide(logits, None), plot.norms.centred(logits))
    assert np.isnan(drawn(image)).tolist() == [[False, True], [False, False]]
    assert image.get_cmap().name == "RdBu_r"
    assert plot.cells(ax, logits, plot.norms.ratio()).get_cmap().name == "RdBu_r"
    assert plot.cells(ax, logits, plot.norms.unit(), cmap="cividis").get_cmap().name == "cividis"


@pytest.mark.parametrize(
    "given", [jnp.eye(3), jnp.eye(3, dtype=jnp.bfloat16), np.eye(3, dtype=int), np.eye(3) > 0]
)
def test_arrays_of_any_kind(ax, given):
    rows: Any = np.eye(3).tolist()
    image = plot.weights(ax, given)
    assert (drawn(image) == np.eye(3)).all()
    assert (drawn(plot.weights(ax, rows)) == np.eye(3)).all()


def test_query_zero_is_at_the_top_and_key_zero_at_the_left(ax):
    plot.weights(ax, np.eye(3))
    assert ax.transData.transform((0, 0))[1] > ax.transData.transform((0, 2))[1]
    assert ax.transData.transform((0, 0))[0] < ax.transData.transform((2, 0))[0]


def test_centred_covers_every_finite_value():
    norm = plot.norms.centred(np.array([0.0, -3.123, -np.inf]), np.array([1.0, np.nan]))
    assert (norm.vmin, norm.vmax) == (-3.2, 3.2)
    assert plot.norms.divided(norm, 8).vmax == pytest.approx(0.4)
    zeros = plot.norms.centred(np.zeros(3), np.full(2, np.nan))
    assert (zeros.vmin, zeros.vmax) == (-1, 1)


def test_norms():
    assert scaled(plot.norms.unit(), [0, 0.25, 1]).tolist() == [0, 0.25, 1]
    assert scaled(plot.norms.power(0.5), [0, 0.25, 1]).tolist() == [0, 0.5, 1]
    log = scaled(plot.norms.log(1e-4), [0, 1e-5, 1e-4, 1e-2, 1])
    np.testing.assert_allclose(log, [0, 0, 0, 0.5, 1])
    ratio = scaled(plot.norms.ratio(4), [0, 0.25, 1, 4, 9])
    np.testing.assert_allclose(ratio, [0, 0, 0.5, 1, 1])


def test_values_contrast_with_their_cells(ax):
    image = plot.cells(ax, np.array([[0.0, 1.0, np.nan, -0.004]]), plot.norms.unit())
    dark, light, last = plot.values(ax, image, 2)
    assert (dark.get_color(), light.get_color()) == ("white", "black")
    assert words([dark, light, last]) == ["0.00", "1.00", "0.00"]
    assert [text.get_position() for text in (dark, light, last)] == [(0, 0), (1, 0), (3, 0)]
    image = plot.cells(ax, np.array([[-2.25, 3.0]]), plot.norms.centred(np.array([3.0])))
    assert words(plot.values(ax, image, 1)) == ["−2.2", "3.0"]


# Pooling


def test_pooled_is_the_share_of_the_queries_that_see_any():
    weights = random_weights(11, 13)
    np.testing.assert_allclose(plot.pooled(weights, 4, 4), by_hand(weights, 4), rtol=1e-12)
    blank = weights.copy()
    blank[4:6] = np.nan  # half of a cell's queries
    want = by_hand(np.delete(weights, (4, 5), axis=0)[4:6], 4)
    np.testing.assert_allclose(plot.pooled(blank, 4, 4)[1:2], want, rtol=1e-12)
    blank[4:8] = np.nan
    assert np.isnan(plot.pooled(blank, 4, 4)[1]).all()
    peak = plot.pooled(weights, 4, 4, reduce=PEAK)
    assert peak[0, 0] == weights[:4, :4].max()
    assert peak[2, 3] == weights[8:, 12:].max()


@pytest.mark.parametrize("reduce", [ja.observe.SHARE, PEAK])
def test_a_map_pooled_again_is_a_coarser_map(reduce):
    n, q = 77, jnp.asarray(np.random.default_rng(0).normal(size=(77, 1, 8)), jnp.float32)
    fine, coarse = (
        np.asarray(ja.attend(q, q, q, observe={"map": Map(cells, reduce)}).observed["map"][0])
        for cells in (26, 9)
    )
    assert (fine.shape, coarse.shape) == ((26, 26), (9, 9))
    again = plot.pooled(fine, 3, 3, reduce=reduce, queries=3, count=n)
    np.testing.assert_allclose(again, coarse, rtol=n * 2.0**-23)


def test_enrichment_is_one_where_all_keys_are_alike():
    allowed = np.tri(9, dtype=bool)
    alike = allowed / allowed.sum(axis=1, keepdims=True)
    one = np.where(allowed, 1, np.nan)
    np.testing.assert_allclose(plot.enrichment(alike, allowed), one)
    weights = random_weights(2, 9, 9, causal=True)
    want = np.where(allowed, weights * np.arange(1, 10)[:, None], np.nan)
    np.testing.assert_allclose(plot.enrichment(weights, allowed), want)
    cells = plot.pooled(alike, 2, 2)
    np.testing.assert_allclose(plot.enrichment(cells, allowed), np.where(cells > 0, 1, np.nan))
    allowed[4] = False  # a query that sees no key
    assert np.isnan(plot.enrichment(alike, allowed)[4]).all()


def test_cells_are_at_least_four_pixels(ax):
    assert drawn(plot.weights(ax, random_weights(200, 200))).shape == (200, 200)
    weights = random_weights(201, 201, causal=True)
    image = plot.weights(ax, weights, allowed=np.tri(201, dtype=bool))
    np.testing.assert_allclose(np.nan_to_num(drawn(image)), by_hand(weights, 2), rtol=1e-12)
    assert (np.isnan(drawn(image)) == ~np.tri(101, dtype=bool)).all()
    assert ax.get_xlabel() == "Key (columns), 2 to a cell"
    assert list(ax.get_yticks()) == [p / 2 - 0.25 for p in (0, 50, 100, 150, 200)]


# Labels


def test_every_token_is_named_slanted_upright_or_every_kth():
    ax = Figure(figsize=(8, 8)).add_axes((0.1, 0.1, 0.8, 0.8))
    for count, every, rotation in ((2, 1, 45), (32, 1, 45), (33, 1, 90), (64, 1, 90), (65, 2, 90)):
        plot.weights(ax, random_weights(count, count), [f"t{i}" for i in range(count)])
        want = [f"t{i}" for i in range(0, count, every)]
        for labels, axis in ((ax.get_xticklabels(), ax.xaxis), (ax.get_yticklabels(), ax.yaxis)):
            assert words(labels) == want
            assert list(axis.get_ticklocs()) == list(range(0, count, every))
            assert all(6 <= size(label) <= 10 for label in labels)
        for label in ax.get_xticklabels():
            assert label.get_rotation() == rotation
            assert label.get_horizontalalignment() == "right"
            assert label.get_rotation_mode() == "anchor"
        ax.clear()


def test_fewer_are_named_where_there_is_no_room():
    ax = Figure(figsize=(2, 2), dpi=100).add_axes((0.3, 0.3, 0.4, 0.4))  # 58 points
    plot.cells(ax, np.zeros((31, 31)), plot.norms.unit())
    labels = plot.tokens(ax, ["t"] * 31, columns=False)
    assert words(labels) == [f"t ({i})" for i in range(1, 32, 4)]
    assert size(labels[0]) >= 6
    assert not ax.get_xticklabels()


def test_readable():
    assert plot.readable([" the", "\n", "x", "x"]) == ["·the", "⏎", "x (1)", "x (2)"]
    assert plot.readable(["", "\t\x00", "x" * 400]) == ["∅", r"\t\x00", "x" * 23 + "…"]


def test_tokens_are_on_the_right_axes_when_lengths_differ(ax):
    image = plot.weights(ax, random_weights(2, 3), ["a", "b"], ["x", "y", "x"])
    assert words(ax.get_yticklabels()) == ["a", "b"]
    assert words(ax.get_xticklabels()) == ["x (1)", "y", "x (2)"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("Query (rows)", "Key (columns)")
    box = ax.get_window_extent()
    assert box.width / 3 == pytest.approx(box.height / 2)  # square
    assert len(ax.texts) == drawn(image).size


@pytest.mark.filterwarnings("error")
def test_hostile_tokens_are_drawn_as_they_are(figure):
    n = len(HOSTILE)
    seen = plot.head(figure, random_weights(n, n), tokens=HOSTILE, title="$1 to $2, {} \\frac")
    other = Figure()
    plot.table(other.add_subplot(1, 2, 1), {"$x$": np.ones((1, 2))})
    plot.layers(other.add_subplot(1, 2, 2), {"$\\frac": np.ones((1, 2))})
    other.draw_without_rendering()  # mathematics that does not parse would be an error
    labels = seen.map.axes.get_xticklabels()
    assert words(labels)[:2] == ["$x$", "$"]
    assert not any(label.get_parse_math() for label in labels)
    assert_legible(figure, seen.map.axes)


def test_a_pooled_map_says_where_positions_are(ax):
    cells = random_weights(15, 20)
    plot.weights(ax, cells, 150, 4000)
    assert words(ax.get_yticklabels()) == ["0", "50", "100"]
    assert list(ax.get_yticks()) == [0.5 / 10 - 0.5, 50.5 / 10 - 0.5, 100.5 / 10 - 0.5]
    assert words(ax.get_xticklabels()) == ["0", "1,000", "2,000", "3,000"]
    assert ax.get_ylabel() == "Query (rows), 10 to a cell"
    assert ax.get_xlabel() == "Key (columns), 200 to a cell"
    assert ax.images[0].norm.vmin == 1e-4
    names = [f"t{i}" for i in range(40)]
    thirty: Any = np.int64(30)
    plot.weights(ax, cells, thirty, names)
    assert words(ax.get_xticklabels()) == names
    assert list(ax.get_xticks()) == [(i + 0.5) / 2 - 0.5 for i in range(40)]


# Marginals and scales


def test_a_marginal_shows_the_mean_and_the_range(ax):
    values = np.array([[1.0, 3.0], [5.0, np.nan], [np.nan, np.nan]])
    means, edges, _ = plot.marginal(ax, values).get_data()
    np.testing.assert_array_equal(means, [2, 5, np.nan])
    assert list(edges) == [-0.5, 0.5, 1.5, 2.5]
    line = plot.marginal(ax, jnp.array([1.0, 2.0]), rows=True)
    assert step(line).tolist() == [1, 2]
    assert ax.get_ylim() == (1.5, -0.5)


@pytest.mark.parametrize(
    ("norm", "across", "labels"),
    [
        (plot.norms.unit(), False, ["0", "1"]),
        (plot.norms.centred(np.array([2.0])), False, ["−2", "0", "2"]),
        (plot.norms.centred(np.array([2.0])), True, ["−2", "2"]),
        (plot.norms.power(), True, ["0", "0.1", "0.5", "1"]),
        (plot.norms.log(1e-4), True, ["≤ 0.0001", "0.001", "0.01", "0.1", "1"]),
        (plot.norms.log(5e-3), False, ["≤ 0.005", "0.01", "0.1", "1"]),
        (plot.norms.ratio(10), False, ["≤ 0.1", "1", "≥ 10"]),
    ],
)
def test_the_colour_bar_prints_its_range_and_floor(ax, norm, across, labels):
    image = plot.cells(ax, np.ones((2, 2)), norm)
    bar = plot.colorbar(ax.figure.add_axes((0, 0, 0.1, 0.1)), image, "Weight", across=across)
    axis = bar.ax.xaxis if across else bar.ax.yaxis
    assert words(axis.get_ticklabels()) == labels
    assert axis.get_label_text() == "Weight"
    ends = bar.get_ticks()[[0, -1]]
    assert list(ends) == [norm.vmin, norm.vmax]


# Pages


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

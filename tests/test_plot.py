"""What `jaxattn.plot` draws on axes: the artists against NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from plotted import (
    HOSTILE,
    assert_legible,
    by_hand,
    drawn,
    random_weights,
    scaled,
    size,
    step,
    words,
)

import jaxattn as ja
from jaxattn import plot
from jaxattn.observe import PEAK, Map

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

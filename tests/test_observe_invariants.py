"""What must hold between observations, whatever the weights, the mask and the tiles."""

# pyright: reportArgumentType=false, reportCallIssue=false

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracle import observe as truth

import jaxattn as ja
from jaxattn import observe as see
from jaxattn._band import Band
from jaxattn._value import Place, Span
from jaxattn.observe.rank import largest

pytestmark = pytest.mark.sampled(2)

H, D = 2, 4
EPS = np.finfo(np.float32).eps
NO_SHRINK = (Phase.explicit, Phase.generate)  # every example compiles


@st.composite
def problems(draw):
    """(q, k, v, mask, what it allows, backend): lengths, bands and tiles that do not fit."""
    t, s = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    q, k, v = (random.standard_normal((n, H, D)).astype(np.float32) for n in (t, s, s))
    left, right = draw(st.none() | st.integers(0, 40)), draw(st.none() | st.integers(0, 40))
    offset = draw(st.integers(-30, 30))
    ahead = np.arange(s)[None, :] - np.arange(t)[:, None] - offset
    low = True if left is None else ahead >= -left
    high = True if right is None else ahead <= right
    blocks = st.tuples(st.integers(1, 40), st.integers(1, 80)).map(lambda n: ja.Blockwise(*n))
    backend = draw(st.just(ja.Blockwise()) | blocks)
    return q, k, v, ja.Window(left, right, offset), low & high & np.ones((t, s), bool), backend


WANTED = {
    "sum": see.Map(5, see.SUM),
    "peak": see.Map(5, see.PEAK),
    "share": see.Map(5),
    "fine": see.Map(10, see.SUM),
    "received": see.Received(),
    "entropy": see.Entropy(),
    "first": see.TopKeys(1),
    "top": see.TopKeys(3),
    "row_max": see.RowMax(),
    "lse": see.LogSumExp(),
}


@settings(max_examples=4, deadline=None, derandomize=True, phases=NO_SHRINK)
@given(problems())
def test_observations_agree_with_each_other(problem):
    agree(problem)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_observations_agree_with_each_other_often(seed):
    @hypothesis.seed(seed)
    @settings(max_examples=10, deadline=None, phases=NO_SHRINK, database=None)
    @given(problems())
    def check(problem):
        agree(problem)

    check()


def agree(problem):
    q, k, v, mask, allowed, backend = problem
    wanted = WANTED | {"out": see.Apply(np.moveaxis(v, 1, 0))}
    given = {"mask": mask, "positions": ja.Positions(0, 0), "backend": backend}
    got = ja.attend(q, k, v, observe=wanted, **given)
    seen = jax.tree.map(np.asarray, got.observed)
    t, s = allowed.shape
    live, near = allowed.any(1), {"rtol": 0, "atol": 256 * EPS * max(t, s)}

    np.testing.assert_allclose(seen["sum"].sum((-1, -2)), live.sum(), **near)
    across = -(-s // 5)
    mass = np.pad(seen["received"].mass, ((0, -s % across), (0, 0)))
    np.testing.assert_allclose(
        seen["sum"].sum(-2).T, mass.reshape(-1, across, H).sum(1)[: seen["sum"].shape[-1]], **near
    )
    np.testing.assert_array_equal(
        seen["received"].queries, np.repeat(allowed.sum(0)[:, None], H, 1)
    )
    assert (seen["entropy"] >= -64 * EPS).all()
    assert (seen["entropy"] <= np.log(np.maximum(allowed.sum(1), 1))[:, None] + 64 * EPS).all()
    assert (seen["peak"] >= seen["share"] / across - EPS).all()
    assert (seen["peak"] <= 1 + 8 * EPS).all()
    np.testing.assert_allclose(
        seen["first"].weights[..., 0],
        np.where(live[:, None], np.exp(seen["row_max"] - np.where(live[:, None], got.lse, 0)), 0),
        **near,
    )
    np.testing.assert_array_equal(seen["top"].keys[..., :1], seen["first"].keys)
    np.testing.assert_allclose(seen["out"], got.out, **near)
    np.testing.assert_array_equal(seen["lse"], got.lse)
    if t % 10 == 0 and s % 10 == 0:  # cells of cells
        halves = seen["fine"].reshape(H, 5, 2, 5, 2).sum((2, 4))
        np.testing.assert_allclose(halves, seen["sum"], **near)


@pytest.mark.covered
@pytest.mark.parametrize("reduce", [see.SHARE, see.PEAK, see.SUM])
@pytest.mark.parametrize("cells", [3, 24, 96])
@pytest.mark.parametrize("block", [32, 40])
def test_map_with_cells_that_do_and_do_not_fit_the_blocks(cells, block, reduce):
    random = np.random.default_rng(cells)
    q, k = random.standard_normal((2, 1, 96, H, D)).astype(np.float32)
    allowed = oracle.causal(96, 96, 0)
    backend = ja.Blockwise(block, 96)
    wanted = {"map": see.Map(cells, reduce)}
    got = ja.attend(q, k, k, mask=ja.Causal(), observe=wanted, backend=backend)
    (want,) = truth.cells(truth.weights(q, k, allowed), cells, reduce.name.lower())
    np.testing.assert_allclose(got.observed["map"], want, atol=1e-5)


def test_parts_over_keys_add_up_to_the_whole():
    """With the lse of all keys, what is seen of two parts of them, put together, is the whole."""
    random = np.random.default_rng(1)
    q, k = random.standard_normal((2, 40, H, D)).astype(np.float32)
    wanted = {"e": see.Entropy(), "m": see.MassOn(1000), "r": see.Received(), "x": see.MaxLogit()}
    whole = ja.attend(q, k, k, observe=wanted)
    a, b = (see.observe(q, part, whole.lse, wanted) for part in (k[:13], k[13:]))
    for name in "em":
        np.testing.assert_allclose(a[name] + b[name], whole.observed[name], atol=1e-5)
    both = np.concatenate([a["r"].mass, b["r"].mass])
    np.testing.assert_allclose(both, whole.observed["r"].mass, atol=1e-5)
    np.testing.assert_allclose(np.maximum(a["x"], b["x"]), whole.observed["x"], atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 8, 16, 17, 40])
@pytest.mark.parametrize("n", [1, 5, 64, 65, 300, 5000])
def test_largest_are_those_of_a_stable_sort(n, count):
    random = np.random.default_rng(n)
    x = random.standard_normal((7, n)).astype(np.float32)
    x[0], x[1] = 0, np.round(x[1])  # ties: the first come first
    x[2, random.random(n) < 0.7] = -np.inf
    count = min(count, n)
    best, places = jax.jit(largest, static_argnums=1)(x, count)
    order = np.argsort(-x, axis=1, kind="stable")[:, :count]
    want = np.take_along_axis(x, order, 1)
    np.testing.assert_array_equal(best, want)
    real = want > -np.inf
    np.testing.assert_array_equal(np.where(real, places, -1), np.where(real, order, -1))


@pytest.mark.parametrize("low", [None, -5, 2])
@pytest.mark.parametrize("high", [None, 0, -9])
@pytest.mark.parametrize("traced", [False, True])
def test_counts_of_a_band_are_those_of_its_pairs(low, high, traced):
    as_given = lambda x: x if x is None or not traced else jnp.asarray(x)
    band = Band(as_given(low), as_given(high))
    for first in (0, 3, 17):
        place = Place((), 0, Span(first, 6), Span(4, 20))
        pairs = band.allows(place)
        want = np.full(20, 6) if pairs is None else np.broadcast_to(pairs, (6, 20)).sum(0)
        np.testing.assert_array_equal(band.count(place), want)


def test_top_keys_of_equal_weights_are_the_first():
    q, k = np.zeros((9, H, D), np.float32), np.zeros((200, H, D), np.float32)
    for backend in (ja.Blockwise(), ja.Blockwise(4, 16), ja.Reference()):
        got = ja.attend(q, k, k, observe={"top": see.TopKeys(5)}, backend=backend).observed["top"]
        np.testing.assert_array_equal(got.keys, np.broadcast_to(np.arange(5), (9, H, 5)))

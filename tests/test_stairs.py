"""Tiles that are cut along a diagonal: what is computed, and that nothing else changes."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax.numpy as jnp
import numpy as np
import pytest
from problem import Asked
from rules import Shape, both, causal, strided, window
from scored import alibi, bias
from test_tiles import problem_of

import jaxattn as ja
from jaxattn import observe as see
from jaxattn._lowering import lowered_for
from jaxattn.backends.blockwise import stairs

SQUARE = Shape((1,), 800, 800, 4, 2, 8, 6)
WIDE = SQUARE._replace(s=1100)
TALL = SQUARE._replace(t=1100)
BACKEND = ja.Blockwise(q_block=400)
CASES = {
    "causal": (SQUARE, causal()),
    "wide": (WIDE.at(ja.END), causal()),
    "tall": (TALL.at(ja.END), causal()),
    "later": (SQUARE, causal(150)),
    "earlier": (SQUARE, causal(-250)),
    "window": (SQUARE, window(300, 40)),
    "odd": (SQUARE._replace(t=799, s=799), causal()),
    "with-more": (SQUARE, both(causal(), strided())),
}


def ways(shape, mask, backend=BACKEND):
    """The walk, and the stairs of each block of queries."""
    problem = problem_of(shape, mask)
    with lowered_for("cpu"):
        walk = backend.forward_walk(problem)
    return walk, [stairs.find(walk, problem.rule.mask, i) for i in range(walk.plan.q_blocks)]


@pytest.mark.parametrize(("shape", "build"), CASES.values(), ids=CASES)
def test_every_allowed_pair_is_in_one_piece(shape, build):
    mask, allowed = build(shape, np.random.default_rng(0))
    allowed = np.broadcast_to(allowed, (*shape.batch, shape.h, shape.t, shape.s)).any(axis=(0, 1))
    walk, found = ways(shape, mask)
    assert any(found), "these blocks have no stairs"
    for i, way in enumerate(found):
        if way is None:
            continue
        times = np.zeros((shape.t, shape.s), int)
        seen = np.asarray(allowed)
        for rows, keys in way.pieces:
            times[rows.start : rows.start + rows.size, keys.start : keys.start + keys.size] += 1
        block = walk.rows(i)
        here = slice(block.start, block.start + block.size)
        assert times.max() == 1
        assert (times[here][seen[here]] == 1).all()
        assert times.sum() == way.pairs < block.size * way.whole.keys.size


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("shape", "build"), CASES.values(), ids=CASES)
def test_results_and_gradients(shape, build):
    Asked(shape, build).check(BACKEND)


def test_every_option_at_once():
    Asked(SQUARE, causal(), bias("hts"), sinks=1.0, rate=0.3).check(BACKEND)
    Asked(WIDE.at(ja.END), window(200, 30), alibi(), sinks=0.0, dtype=jnp.bfloat16).check(BACKEND)


@pytest.mark.long
def test_observations_see_the_whole_tile():
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal(x), jnp.float32) for x in (SQUARE.q, SQUARE.k, SQUARE.v)
    )
    wanted = {
        "entropy": see.Entropy(),
        "received": see.Received(),
        "map": see.Map(16),
        "top": see.TopKeys(3),
        "scaled": see.Fold(
            start=lambda: 0.0,
            absorb=lambda seen: jnp.where(seen.allowed, seen.scaled * seen.weights, 0).sum(),
        ),
    }
    for mask in (ja.Causal(), ja.Window(150, 20)):
        plain = ja.attend(q, k, v, mask=mask, backend=BACKEND)
        got, want = (
            ja.attend(q, k, v, mask=mask, observe=wanted, backend=b)
            for b in (BACKEND, ja.Reference())
        )
        np.testing.assert_array_equal(got.out, plain.out)
        np.testing.assert_array_equal(got.lse, plain.lse)
        np.testing.assert_allclose(got.observed["entropy"], want.observed["entropy"], atol=1e-5)
        for a, b in zip(got.observed["received"], want.observed["received"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.observed["map"], want.observed["map"], atol=1e-6)
        np.testing.assert_array_equal(got.observed["top"].keys, want.observed["top"].keys)
        np.testing.assert_allclose(got.observed["scaled"], want.observed["scaled"], rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_with_queries_that_may_see_it(bad):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(x).astype(np.float32) for x in (SQUARE.q, SQUARE.k, SQUARE.v))
    k[0, 650, 0, 1] = bad
    v[0, 500, 1, 2] = bad
    out = np.asarray(ja.attention(q, k, v, mask=ja.Causal(), backend=BACKEND))
    blind = np.isnan(out)
    assert blind[0, 650:, :2].all()
    assert not blind[0, :650, :2].any()
    assert blind[0, 500:, 2:, 2].all()
    assert not blind[0, :500, 2:].any()


def test_no_stairs_where_there_is_nothing_to_leave_out_or_to_know():
    for mask in (ja.EVERYTHING, ja.Lengths(k=np.array([500]))):
        assert not any(ways(SQUARE, mask)[1])
    assert not any(ways(SQUARE.at(np.array([3])), ja.Causal())[1])
    small = SQUARE._replace(t=400, s=400)
    assert not any(ways(small, ja.Causal(), ja.Blockwise(q_block=160))[1])


def test_explain_counts_what_is_computed():
    shapes = (jnp.zeros(x) for x in (SQUARE.q, SQUARE.k, SQUARE.v))
    told = ja.explain(*shapes, mask=ja.Causal(), backend=BACKEND)
    pairs = sum(way.pairs for way in ways(SQUARE, ja.Causal())[1] if way is not None)
    assert told.flops == 2 * SQUARE.h * pairs * (SQUARE.d + SQUARE.e)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("last", "visited"), [(0, 0), (400, 1), (800, 2)])
def test_a_block_without_an_allowed_pair_is_not_computed(last, visited):
    mask = ja.Causal() & ja.Where(lambda at: at.q < last)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal(x)) for x in (SQUARE.q, SQUARE.k, SQUARE.v))
    told = ja.explain(q, k, v, mask=mask, backend=BACKEND)
    found = [way.pairs for way in ways(SQUARE, mask)[1] if way is not None]
    assert told.visited == visited * SQUARE.h
    assert told.flops == 2 * SQUARE.h * sum(found[:visited]) * (SQUARE.d + SQUARE.e)
    got, want = (ja.attend(q, k, v, mask=mask, backend=x) for x in (BACKEND, ja.Reference()))
    np.testing.assert_allclose(got.out, want.out, atol=1e-5)
    np.testing.assert_allclose(got.lse, want.lse, atol=1e-5)


def test_strips_at_a_corner_and_beside_keys_in_common():
    corner, later = ways(SQUARE, ja.Causal())[1]
    assert corner is not None
    assert later is not None
    assert corner.landing is None
    assert len(corner.strips) == stairs.AT_CORNER
    assert later.landing is not None
    assert len(later.strips) == stairs.STRIPS

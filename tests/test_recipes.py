"""Recipes against weights written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import observe as truth

import jaxattn as ja
from jaxattn import recipes

T, H, N = 64, 8, 4
RANDOM = np.random.default_rng(0)
Q, K = (RANDOM.standard_normal((2, T, n, 16)).astype(np.float32) for n in (H, N))
WEIGHTS = truth.weights(Q, K, oracle.causal(T, T, 0))


@pytest.mark.parametrize("options", [{}, {"score": ja.SoftCap(0.5)}], ids=["plain", "capped"])
def test_qk_clip_brings_the_largest_logit_down_to_tau(options):
    """That of the products, whatever a cap makes of it."""
    largest = truth.max_logit(WEIGHTS)[0]
    assert (largest > 1.5).all()
    np.testing.assert_allclose(recipes.qk_clip(Q, K, 1.5, **options) * largest, 1.5, rtol=1e-5)
    np.testing.assert_array_equal(recipes.qk_clip(Q, K, 1e6, **options), 1)


def test_low_entropy_is_zero_above_the_floor_and_falls_along_its_gradient():
    (entropy,) = truth.entropy(WEIGHTS)
    want = np.maximum(2 - entropy, 0).mean()
    np.testing.assert_allclose(recipes.low_entropy(Q, K, 2.0), want, rtol=1e-5)
    assert recipes.low_entropy(Q, K, -1.0) == 0
    dq = jax.jit(jax.grad(recipes.low_entropy))(jnp.asarray(Q), K, 3.0)
    assert recipes.low_entropy(Q - 10 * dq, K, 3.0) < recipes.low_entropy(Q, K, 3.0)


def test_heavy_hitters_receive_most():
    mass = truth.received(WEIGHTS)[0].swapaxes(1, 2)
    want = np.argsort(-mass, axis=-1)[..., :5]
    np.testing.assert_array_equal(recipes.heavy_hitters(Q, K, 5), want)


def test_snapkv_scores_are_the_pooled_votes_of_the_last_queries():
    votes = WEIGHTS.p[:, :, -8:].sum(2).swapaxes(1, 2)
    padded = np.pad(votes, ((0, 0), (1, 1), (0, 0)))
    want = np.max([padded[:, i : i + T] for i in range(3)], axis=0)
    np.testing.assert_allclose(recipes.snapkv_scores(Q, K, 8, 3), want, atol=1e-5)


def test_head_scores():
    got = recipes.head_scores(Q, K, 20)
    np.testing.assert_allclose(got.previous, truth.diagonal(WEIGHTS, -1)[0], atol=1e-5)
    np.testing.assert_allclose(got.induction, truth.diagonal(WEIGHTS, -19)[0], atol=1e-5)
    np.testing.assert_allclose(got.sink, WEIGHTS.p[..., :4].sum(-1).mean(-1), atol=1e-5)


def test_mean_distance_and_coverage():
    back = np.arange(T)[:, None] - np.arange(T)
    want = (WEIGHTS.p * back).sum(-1).mean(-1)
    np.testing.assert_allclose(recipes.mean_distance(Q, K), want, rtol=1e-4)
    largest = np.sort(WEIGHTS.p, axis=-1)[..., -5:]
    np.testing.assert_allclose(recipes.coverage(Q, K, 5), largest.sum(-1).mean(-1), rtol=1e-5)
    np.testing.assert_allclose(recipes.coverage(Q, K, T), 1, rtol=1e-5)


def test_options_are_those_of_attend():
    """A mask in place of the causal one, and batch axes: none, or several."""
    whole = truth.weights(Q, K, np.ones((T, T), bool))
    mass = truth.received(whole)[0].swapaxes(1, 2)
    got = recipes.heavy_hitters(Q, K, 3, mask=ja.EVERYTHING, backend=ja.Reference())
    np.testing.assert_array_equal(got, np.argsort(-mass, axis=-1)[..., :3])
    many = recipes.coverage(Q[None], K[None], 5)
    np.testing.assert_allclose(many[0, 1], recipes.coverage(Q[1], K[1], 5), rtol=1e-6)

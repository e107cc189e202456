"""Exported functions: what they take and return, and sizes that are open."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import observations

import jaxattn as ja

pytest.importorskip("flatbuffers", reason="jax.export writes with it")

observe = ja.observe
TILED = ja.Blockwise(q_block=4, k_block=4)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def again(f, *args):
    """`f` exported for the shapes of `args`, written down and read."""
    return jax.export.deserialize(jax.export.export(jax.jit(f))(*args).serialize())


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


IDS = jnp.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, -1]])
VALUES = {
    "masks": {
        "mask": ja.Causal() & ~ja.Window(2, None, 3) & (ja.Segments(IDS) | ja.Lengths(k=2)),
        "positions": ja.Positions(ja.END, jnp.array([1, 2])),
    },
    "scores": {"score": (ja.ALiBi(), ja.SoftCap(3.0), ja.Bias(draw(7, 7)))},
    "observations": {
        "observe": {
            name: x for name, (x, _) in observations(7, 7, 2).items() if "fold" not in name
        },
    },
}


@pytest.mark.parametrize("options", VALUES.values(), ids=VALUES)
def test_values_go_in_and_results_come_out(options):
    q = draw(2, 7, 2, 3)
    f = lambda q, options: (ja.attend(q, q, q, **options), options)
    assert_same(again(f, q, options).call(q, options), f(q, options))


@pytest.mark.parametrize("window", [None, 3])
def test_a_cache_goes_in_and_comes_out(window):
    q, cache = draw(2, 1, 2, 3), ja.cache.empty((2,), 5, 2, 3, window=window)
    step = lambda q, cache: ja.cache.attend(q, q, q, cache)
    run = again(step, q, cache)
    assert_same(run.call(q, run.call(q, cache)[1]), step(q, step(q, cache)[1]))


def test_a_layer_goes_in():
    layer = observe.Layer(draw(2, 5, 2, 3), draw(2, 5, 2, 3, seed=1), ja.Causal())
    f = lambda layer: observe.rollout_map([layer], 3)
    assert_same(again(f, layer).call(layer), f(layer))


def test_a_function_in_a_value_is_not_written_down():
    q = draw(2, 7, 2, 3)
    fold = observe.Fold(lambda: jnp.zeros(()), lambda tile: tile.weights.sum())
    f = lambda q, fold: ja.attend(q, q, q, observe={"x": fold}).observed
    with pytest.raises(TypeError, match="inside the function that is exported"):
        again(f, q, fold)

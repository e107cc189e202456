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


@pytest.mark.parametrize("order", [0, 1], ids=["results", "gradients"])
def test_a_program_has_the_precision_of_the_platform_it_is_for(order):
    """A GPU and a TPU multiply float32 in less, if they are not told otherwise."""
    loss = lambda q: ja.attention(q, q, q, mask=ja.Causal()).sum()
    traced = jax.jit(jax.grad(loss) if order else loss).trace(draw(2, 64, 2, 8))
    program = lambda *names: traced.lower(lowering_platforms=names).as_text()
    for name in ("cuda", "rocm", "tpu"):
        text = program(name)
        assert text.count("dot_general") == text.count("precision = [HIGHEST, HIGHEST]") > 0
    assert "HIGHEST" not in program("cpu")
    assert program("cuda", "cpu").count("HIGHEST") == program("cuda").count("HIGHEST")


def test_a_program_has_the_plan_of_the_platform_it_is_for():
    """Many heads are a tile on a GPU, one on a CPU."""
    x = jax.ShapeDtypeStruct((2048, 4, 8), jnp.float32)
    traced = jax.jit(lambda x: ja.attention(x, x, x)).trace(x)
    program = lambda name: traced.lower(lowering_platforms=(name,)).as_text()
    tile = "4x1024x2048xf32"
    assert tile in program("cuda")
    assert tile not in program("cpu")
    many = jax.export.export(jax.jit(lambda x: ja.attention(x, x, x)), platforms=("cpu", "cuda"))
    assert many(x).platforms == ("cpu", "cuda")

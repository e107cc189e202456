"""NumPy's integers are taken wherever Python's are, and booleans nowhere."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn import cache as kv
from jaxattn import compat, nn, rope

N = np.int64
Q = np.random.default_rng(0).standard_normal((1, 5, 2, 4)).astype(np.float32)
NEW = Q[:, :1]

# name: a number to a value; the value may not tell NumPy's number from Python's.
VALUES = {
    "Causal": ja.Causal,
    "Window": lambda n: ja.Window(n, n, n),
    "PrefixLM": ja.PrefixLM,
    "Lengths": lambda n: ja.Lengths(n, n),
    "combined": lambda n: ja.Causal(n) & ~ja.Window(n) | ja.Lengths(k=n),
    "RelativeBias": lambda n: ja.RelativeBias(np.zeros((4, 2)), max_distance=n),
    "Positions": lambda n: ja.Positions(n, n),
    "SoftCap": ja.SoftCap,
    "Blockwise": lambda n: ja.Blockwise(n, n),
    "Rope": lambda n: rope.Rope(n, n),
}


@pytest.mark.parametrize("kind", [np.int64, np.uint8], ids=lambda x: x.__name__)
@pytest.mark.parametrize("name", VALUES)
def test_a_numpy_integer_is_structure_as_pythons_is(name, kind):
    numpy, python = VALUES[name](kind(2)), VALUES[name](2)
    assert numpy == python
    assert hash(numpy) == hash(python)
    assert jax.tree.structure(numpy) == jax.tree.structure(python)
    assert "np." not in repr(numpy)


@pytest.mark.parametrize("value", [True, np.True_, "2", 2.0], ids=repr)
@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("SoftCap", "Rope")])
def test_booleans_words_and_fractions_are_no_whole_numbers(name, value):
    with pytest.raises((TypeError, ValueError), match="got"):
        ja.attention(Q, Q, Q, mask=VALUES[name](value))


@pytest.mark.parametrize("make", [ja.SoftCap, rope.Linear, lambda x: rope.Rope(4, x), rope.Rope])
def test_booleans_are_no_numbers_at_all(make):
    with pytest.raises((TypeError, ValueError), match="got True"):
        make(True)


def test_a_window_of_jax_nn():
    of = lambda window: compat.dot_product_attention(Q, Q, Q, local_window_size=window)
    want = of((2, 2))
    for window in (N(2), (N(2), 2), [2, N(2)], np.int32(2)):
        np.testing.assert_array_equal(of(window), want)
    for window in (True, 2.0, (1, 2, 3), (True, 2), "22", (2,)):
        with pytest.raises(ValueError, match="got"):
            of(window)


def test_sizes_of_a_cache():
    cache = kv.empty((N(1),), N(8), N(2), N(4), N(4), window=N(5))
    assert jax.tree.structure(cache) == jax.tree.structure(kv.empty((1,), 8, 2, 4, window=5))
    assert type(cache.window) is int
    kv.attend(NEW, NEW, NEW, cache, count=N(1))
    module = nn.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    assert module.empty_cache((N(1),), N(8)).capacity == 8
    empty = {"batch": (1,), "capacity": 8, "kv_heads": 2, "features": 4}
    for name in ("capacity", "kv_heads", "features", "value_features", "window"):
        for wrong in (True, 2.0, "2", -1, 0):
            with pytest.raises(ValueError, match=r"at least 1|from 1 to"):
                kv.empty(**empty | {name: wrong})
    for wrong in (1, None, jnp.zeros(2)):
        with pytest.raises(TypeError, match=r"batch is .*\(b,\)"):
            kv.empty(**empty | {"batch": wrong})
    for wrong in ((2.0,), (-1,), (True,)):
        with pytest.raises(ValueError, match="batch="):
            kv.empty(**empty | {"batch": wrong})
    with pytest.raises(TypeError, match="floating point"):
        kv.empty(**empty, dtype=int)
    assert kv.empty([1], 8, 2, 4, dtype="bfloat16").k.dtype == jnp.bfloat16

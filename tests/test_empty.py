"""Axes of size 0, heads among them: results of size 0, or of queries that see nothing."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import for_backends

import jaxattn as ja
from jaxattn import compat
from jaxattn import observe as see

AXES = {
    "no heads": {"h": 0, "n": 0},
    "no query heads": {"h": 0},
    "no batch": {"b": 0},
    "no queries": {"t": 0},
    "no keys": {"s": 0},
    "no heads of nothing": {"h": 0, "n": 0, "s": 0, "b": 0},
}


def arrays(b=2, t=5, s=7, h=4, n=2):
    shapes = (b, t, h, 3), (b, s, n, 3), (b, s, n, 6)
    return [np.ones(shape, np.float32) for shape in shapes]


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("sizes", AXES.values(), ids=AXES)
def test_empty_axes(sizes, backend):
    q, k, v = arrays(**sizes)
    b, t, h, _ = q.shape
    s = k.shape[1]
    options = {
        "positions": ja.Positions(0, 0),
        "mask": ja.Causal() & ja.Dense(np.ones((h, 1, s), bool)),
        "score": [ja.ALiBi(), ja.Bias(np.zeros((h, t, 1)))],
        "sinks": np.zeros(h, np.float32),
        "dropout": ja.Dropout(0.5, jax.random.key(0)),
    }
    wanted = {"map": see.Map(3), "entropy": see.Entropy(), "top": see.TopKeys(2)}
    wanted |= {"received": see.Received(), "max": see.MaxLogit(), "rows": see.Rows([0])}
    out, lse, seen = ja.attend(q, k, v, **options, observe=wanted, backend=backend)
    assert out.shape == (b, t, h, 6)
    assert lse.shape == (b, t, h)
    np.testing.assert_array_equal(out, 0)
    assert seen["map"].shape == (b, h, 3 if t else 0, 3 if s else 0)
    assert seen["entropy"].shape == (b, t, h)
    assert seen["top"].keys.shape == (b, t, h, 2)
    assert seen["received"].mass.shape == (b, s, h)
    assert seen["max"].shape == (h,)
    assert seen["rows"].shape == (b, h, 1, s)
    loss = lambda *x: jnp.nan_to_num(ja.attend(*x, **options, backend=backend).lse).sum()
    for x, dx in zip((q, k, v), jax.grad(loss, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_array_equal(dx, np.zeros(x.shape))
    explained = ja.explain(q, k, v, **options, backend=backend)
    assert explained.tiles == 0
    lse = see.observe(q, k, lse, wanted, mask=ja.Causal(), positions=ja.END)["entropy"]
    assert lse.shape == (b, t, h)


@pytest.mark.parametrize("sizes", AXES.values(), ids=AXES)
def test_empty_axes_in_place_of_jax_nn(sizes):
    q, k, v = arrays(**sizes)
    out, lse = compat.dot_product_attention(q, k, v, is_causal=True, return_residual=True)
    assert out.shape == (*q.shape[:-1], 6)
    assert lse.shape == q.shape[:-1]


def test_merged_results_of_no_heads():
    part = ja.attend(*arrays(h=0, n=0))
    assert ja.merge(part, part).out.shape == (2, 5, 0, 6)

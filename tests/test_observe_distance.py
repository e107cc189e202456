"""Distance far back: float32 keeps its digits however far the keys are."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import observe as see

T = 4


def moments(bias, offset):
    """mean and variance in float64, of weights that are the softmax of the biases [s]."""
    p = np.exp(bias.astype(np.float64) - bias.max())
    p /= p.sum()
    back = np.arange(T)[:, None] + offset - np.arange(len(bias))
    mean = (p * back).sum(1)
    return mean, (p * (back - mean[:, None]) ** 2).sum(1)


def far_back(bias, offset, backend):
    q, k = np.zeros((1, T, 1, 1), np.float32), jnp.zeros((1, len(bias), 1, 1))
    wanted = {"d": see.Distance()}
    given = {"score": ja.Bias(bias[None, None]), "positions": ja.Positions(offset)}
    seen = ja.attend(q, k, k, **given, observe=wanted, backend=backend)
    return seen.observed["d"]


HILLS = {  # keys, the middle of what is seen, its width, offset
    "near the end": (50_000, 48_000, 3.3, 49_996),
    "a million back": (50_000, 48_000, 0.8, 1_000_000),
    "across tiles": (50_000, 8192 * 2, 3.3, 1_000_000),
    "wide": (50_000, 20_000, 5_000, 1_000_000),
    "one key": (50_000, 48_000, 0.2, 1_000_000),
}


@pytest.mark.parametrize("backend", [ja.AUTO, ja.Reference(), ja.Blockwise(2, 4096)], ids=repr)
@pytest.mark.parametrize("name", HILLS)
def test_far_back(name, backend):
    s, middle, width, offset = HILLS[name]
    bias = -0.5 * ((np.arange(s) - middle) / width) ** 2
    bias = np.maximum(bias, -100).astype(np.float32)
    got = jax.jit(far_back, static_argnums=(1, 2))(jnp.asarray(bias), offset, backend)
    mean, variance = moments(bias, offset)
    np.testing.assert_allclose(got.mean[0, :, 0], mean, rtol=2e-7)
    np.testing.assert_allclose(got.variance[0, :, 0], variance, rtol=1e-5)


def test_gradients_far_back():
    """∂variance/∂bias_j = p_j ((x_j - mean)² - variance), ∂mean/∂bias_j = p_j (x_j - mean)."""
    s, offset = 6_000, 1_000_000
    bias = (-0.5 * ((np.arange(s) - 4100) / 3.3) ** 2).clip(-80).astype(np.float32)
    mean, variance = moments(bias, offset)
    p = np.exp(bias.astype(np.float64))
    p /= p.sum()
    x = np.arange(T)[:, None] + offset - np.arange(s) - mean[:, None]
    wants = {"variance": (p * (x**2 - variance[:, None])).sum(0), "mean": (p * x).sum(0)}
    for backend in (ja.AUTO, ja.Blockwise(2, 512)):
        for name, want in wants.items():
            loss = lambda b, name=name, to=backend: getattr(far_back(b, offset, to), name).sum()
            got = jax.jit(jax.grad(loss))(jnp.asarray(bias))
            np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("backend", [ja.Blockwise(), ja.Blockwise(4, 8)], ids=repr)
def test_no_nan_where_nothing_is_seen(backend):
    x = np.random.default_rng(0).standard_normal((1, 9, 1, 3)).astype(np.float32)
    mask = ja.Causal(-3)

    def loss(q):
        seen = ja.attend(q, x, x, mask=mask, observe={"d": see.Distance()}, backend=backend)
        return sum(y.sum() for y in seen.observed["d"]), seen.observed["d"]

    (_, got), dq = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(x))
    assert np.isfinite(dq).all()
    np.testing.assert_array_equal(dq[0, :3], 0)
    np.testing.assert_array_equal(got.mean[0, :3], 0)
    np.testing.assert_array_equal(got.variance[0, :3], 0)

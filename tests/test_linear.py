"""Attention is linear in the values, and JAX can transpose it as such."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.compat import dot_product_attention

TILED = ja.Blockwise(q_block=4, k_block=4)
RNG = np.random.default_rng(0)
Q, K, V, CT = (
    jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for shape in ((2, 9, 4, 3), (2, 11, 2, 3), (2, 11, 2, 5), (2, 9, 4, 5))
)
OPTIONS = {
    "plain": {},
    "mask": {
        "mask": ja.Causal() & ja.Lengths(k=jnp.array([7, 11])),
        "positions": ja.END,
    },
    "everything": {
        "mask": ja.Where(lambda at: at.k <= at.q + 2),
        "score": (ja.ALiBi(), ja.SoftCap(5.0), lambda logit, at: logit + at.head),
        "positions": ja.Positions(np.array([0, 1])),
        "sinks": jnp.arange(4.0),
        "dropout": ja.Dropout(0.3, jax.random.key(0)),
    },
}


def assert_transposes(f, v, cotangent):
    @jax.jit
    def both(v, cotangent):
        return *jax.linear_transpose(f, v)(cotangent), *jax.vjp(f, v)[1](cotangent)

    got, want = both(v, cotangent)
    assert got.dtype == v.dtype
    assert np.asarray(got, np.float32).any()
    close = 1e-5 if v.dtype == jnp.float32 else 2e-2
    got, want = (np.asarray(x, np.float32) for x in (got, want))
    np.testing.assert_allclose(got, want, rtol=close, atol=close)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("backend", [ja.AUTO, TILED, ja.Reference()], ids=repr)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_linear_transpose(options, backend):
    f = lambda v: ja.attention(Q, K, v, backend=backend, **options)
    assert_transposes(f, V, CT)


def test_half_precision():
    q, k, v, ct = (x.astype(jnp.bfloat16) for x in (Q, K, V, CT))
    assert_transposes(lambda v: ja.attention(q, k, v, backend=TILED), v, ct)


def test_compat():
    assert_transposes(lambda v: dot_product_attention(Q, K, v, is_causal=True), V, CT)


def test_of_vmap_and_of_jit():
    f = jax.vmap(lambda v: ja.attention(Q, K, v, backend=TILED))
    assert_transposes(jax.jit(f), jnp.stack([V, 2 * V]), jnp.stack([CT, -CT]))


def test_only_in_values():
    with pytest.raises(NotImplementedError, match="linear in the values alone"):
        jax.linear_transpose(lambda q: ja.attention(q, K, V), Q)(CT)

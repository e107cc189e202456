"""jaxattn as the attention function of Flax's own modules, NNX and Linen."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax_model import RANDOM, STOCK, WANTED, B, H, M, T, X, Y, close, flax_module

import jaxattn as ja
from jaxattn import nn

PADDING = jnp.asarray(np.random.default_rng(1).random((B, 1, 1, T)) < 0.7).at[..., 0].set(True)

CALLS = {
    "plain": {},
    "causal": {"is_causal": True},
    "padding": {"mask": PADDING},
    "numbers as a mask": {"mask": nnx.make_causal_mask(X[..., 0])},
    "padding and causal": {"mask": jnp.broadcast_to(PADDING, (B, 1, T, T)), "is_causal": True},
}


@pytest.mark.sampled(16)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2}, {"normalize_qk": True}], ids=str)
def test_in_an_nnx_module_it_gives_what_flax_gives(options, call):
    ours, stock = flax_module(nn.attention_fn(), **options), flax_module(**options)
    close(ours(X, **call), stock(X, **call))
    loss = lambda m: (m(X, **call) ** 2).sum()
    close(nnx.grad(loss)(ours), nnx.grad(loss)(stock), atol=2e-4)


def test_cross_attention_and_batch_axes():
    ours, stock = flax_module(nn.attention_fn()), flax_module()
    close(ours(X, Y), stock(X, Y))
    x = X.reshape(1, B, T, M)
    close(ours(x)[0], stock(X))
    close(ours(X[0]), stock(X)[0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtype_is_that_of_the_module(dtype):
    ours, stock = flax_module(nn.attention_fn(), dtype=dtype), flax_module(dtype=dtype)
    got, want = ours(X), stock(X)
    assert got.dtype == want.dtype == dtype
    close(got.astype(jnp.float32), want.astype(jnp.float32), atol=0.03)


@pytest.mark.parametrize("bias_shape", [(T, T), (H, 1, T), (B, H, T, T)])
def test_bias(bias_shape):
    q, k, v = RANDOM.standard_normal((3, B, T, H, 8)).astype(np.float32)
    bias = RANDOM.standard_normal(bias_shape).astype(np.float32)
    full = np.broadcast_to(bias, (B, H, T, T))
    close(nn.attention_fn()(q, k, v, bias=bias), STOCK(q, k, v, bias=full))


@pytest.mark.parametrize("padding", [None, PADDING])
def test_sown_weights_are_those_of_flax(padding):
    sown = []
    for fn in (nn.attention_fn(), STOCK):
        forward = nnx.capture(lambda m, x: m(x, mask=padding, sow_weights=True), nnx.Intermediate)
        sown.append(forward(flax_module(fn), X)[1]["attention_weights"].get_value())
    close(*sown)


def test_linen_module():
    ours, stock = (
        linen.MultiHeadDotProductAttention(H, attention_fn=fn)
        for fn in (nn.attention_fn(), linen.dot_product_attention)
    )
    variables = stock.init(jax.random.key(0), X)
    for call in ({}, {"mask": PADDING}, {"sow_weights": True, "mutable": "intermediates"}):
        close(ours.apply(variables, X, **call), stock.apply(variables, X, **call))
    loss = lambda m, v: (m.apply(v, X) ** 2).sum()
    close(*(jax.grad(partial(loss, m))(variables) for m in (ours, stock)), atol=2e-4)


def test_linen_remat_and_scan():
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            fn = nn.attention_fn(ja.Causal(), observe=WANTED)
            return linen.MultiHeadDotProductAttention(H, attention_fn=fn)(x, sow_weights=True), None

    layers = linen.scan(
        linen.remat(Layer),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=3,
    )()
    variables = layers.init(jax.random.key(0), X, None)
    (out, _), seen = layers.apply(variables, X, None, mutable="intermediates")
    assert out.shape == X.shape
    (observed,) = jax.tree.leaves(
        seen, is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], dict)
    )
    assert observed[0]["entropy"].shape == (3, B, T, H)
    assert np.isfinite(
        jax.grad(lambda v: layers.apply(v, X, None)[0].sum())(variables)["params"][
            "MultiHeadDotProductAttention_0"
        ]["query"]["kernel"]
    ).all()


def test_options_of_the_function_are_those_of_attend():
    q, k, v = RANDOM.standard_normal((3, B, T, H, 8)).astype(np.float32)
    sinks, options = jnp.arange(4.0), {"mask": ja.Window(3), "score": ja.SoftCap(5.0)}
    got = nn.attention_fn(**options, sinks=sinks, scale=0.2)(q, k, v, is_causal=True)
    close(got, ja.attention(q, k, v, **options, sinks=sinks, scale=0.2))


def test_functions_with_the_same_settings_compile_once():
    a, b = nn.attention_fn(ja.Causal()), nn.attention_fn(ja.Causal())
    assert a == b
    assert hash(a) == hash(b)
    assert a != nn.attention_fn(ja.Window(3))
    assert a != nn.attention_fn(ja.Causal(), scale=0.5)
    count = []
    traced = nnx.jit(lambda m, x: count.append(1) or m(x))
    traced(flax_module(a), X)
    traced(flax_module(b), X)
    assert len(count) == 1


# --- dropout


@pytest.mark.parametrize("shared", [True, False])
def test_dropout_has_the_rate_and_is_shared_as_flax_shares_it(shared):
    fn, s = nn.attention_fn(), 400
    q = jnp.zeros((B, s, H, 4))
    v = jnp.broadcast_to(jnp.eye(s)[:, None], (B, s, H, s))  # so out is the weights
    drop = {"dropout_rng": jax.random.key(1), "dropout_rate": 0.3, "broadcast_dropout": shared}
    out = fn(q, q, v, **drop)
    kept = np.asarray(out) > 0
    assert abs(kept.mean() - 0.7) < 0.005
    np.testing.assert_allclose(out[kept], 1 / 0.7 / s, rtol=1e-5)
    assert (kept == kept[:1, :, :1]).all() == shared
    close(fn(q, q, v, **drop, deterministic=True), jnp.full_like(out, 1 / s))
    with pytest.raises(ValueError, match="dropout needs random bits"):
        fn(q, q, v, dropout_rate=0.3)


@pytest.mark.parametrize("build", [flax_module, None])
def test_dropout_in_modules_follows_their_streams(build):
    options = {"dropout_rate": 0.5}
    if build is None:
        module = nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0), **options)
    else:
        module = build(nn.attention_fn(), **options)
    a, b = module(X, deterministic=False), module(X, deterministic=False)
    assert np.abs(a - b).max() > 0.01
    again = [module(X, deterministic=False, rngs=nnx.Rngs(dropout=7)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    close(module(X, deterministic=True), flax_module()(X))
    close(nnx.view(module, deterministic=True)(X), flax_module()(X))

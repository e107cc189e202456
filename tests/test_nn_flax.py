"""What Flax's modules do beside attending: decode, drop, shard, sow, and be transformed."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax_model import WANTED, B, Block, H, M, Model, T, X, Y, close, flax_module

import jaxattn as ja
from jaxattn import nn
from jaxattn.models.language import Config, LanguageModel

PADDING = jnp.asarray(np.random.default_rng(1).random((B, 1, 1, T)) < 0.7).at[..., 0].set(True)
CALLS = {}, {"mask": PADDING}


def our_module(*sizes, **options):
    return nn.MultiHeadAttention(H, *(sizes or (M,)), rngs=nnx.Rngs(0), **options)


# --- decode mode of Flax's modules, and what they may pass


@pytest.mark.parametrize("call", CALLS, ids=["plain", "padding"])
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2, "normalize_qk": True}], ids=str)
def test_nnx_decodes_token_by_token(options, call):
    ours, stock = flax_module(nn.attention_fn(), **options), flax_module(**options)
    want = stock(X, is_causal=True, **call)
    for module in (ours, stock):
        module.set_attributes(decode=True)
        module.init_cache(X.shape)
    step = nnx.jit(lambda m, x: m(x, **call))
    for i in range(6):
        got = step(ours, X[:, i : i + 1])
        close(got, step(stock, X[:, i : i + 1]))
        close(got, want[:, i : i + 1])
    close(*(nnx.to_pure_dict(nnx.state(m, nnx.Cache)) for m in (ours, stock)))


@pytest.mark.parametrize("call", CALLS, ids=["plain", "padding"])
def test_linen_decodes_token_by_token(call):
    ours, stock = (
        linen.MultiHeadDotProductAttention(H, attention_fn=fn, decode=True)
        for fn in (nn.attention_fn(), linen.dot_product_attention)
    )
    first = stock.init(jax.random.key(0), X)
    causal = jnp.tril(jnp.ones((T, T), bool)) & call.get("mask", True)
    want = stock.clone(decode=False).apply(first, X, mask=causal)
    step = jax.jit(lambda m, v, x: m.apply(v, x, **call, mutable=["cache"]), static_argnums=0)
    ours_now = stock_now = first
    for i in range(6):
        got, after = step(ours, ours_now, X[:, i : i + 1])
        out, stock_after = step(stock, stock_now, X[:, i : i + 1])
        ours_now, stock_now = ours_now | after, stock_now | stock_after
        close(got, out)
        close(got, want[:, i : i + 1])
    close(ours_now, stock_now)


def test_parameters_are_those_of_both_functions_of_flax():
    names = lambda fn: [name for name in inspect.signature(fn).parameters if name != "self"]
    ours = names(nn.AttentionFn.__call__)
    theirs, linens = names(nnx.dot_product_attention), names(linen.dot_product_attention)
    assert ours[: len(theirs)] == theirs
    both = linens.index("module") + 1  # after it the two disagree; modules pass names
    assert ours[:both] == linens[:both]
    assert {name for name in linens if "einsum" not in name} <= set(ours)


# --- the module


def test_sizes_that_differ():
    options = {"in_kv_features": 13, "qkv_features": 20, "out_features": 7, "num_kv_heads": 2}
    ours, stock = our_module(M, **options), flax_module(seed=3, **options)
    nnx.update(ours, nnx.state(stock))
    keys, values = Y[..., :13], Y[..., 13:26]
    for inputs in ((X, keys), (X, keys, values), (X[0], keys[0])):
        close(ours(*inputs), stock(*inputs))
    grads = nnx.jit(nnx.grad(lambda m: (m(X, keys, values) ** 2).sum()))
    close(*(nnx.to_pure_dict(grads(m)) for m in (ours, stock)), atol=2e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_dropout_drops_the_pairs_of_its_stream(shared):
    """Values are one-hot, and each head's are kept apart, so that outputs are weights."""
    wide, dropout = H * T, {"dropout_rate": 0.4, "broadcast_dropout": shared}
    module = our_module(M, wide, wide, in_kv_features=T, keep_rngs=False, **dropout)
    module.value.kernel[...] = jnp.broadcast_to(jnp.eye(T)[:, None], (T, H, T))
    module.out.kernel[...] = jnp.eye(wide).reshape(H, T, wide)
    keys, values = jnp.ones((B, T, T)), jnp.broadcast_to(jnp.eye(T), (B, T, T))
    drop = lambda rngs: module(X, keys, values, deterministic=False, rngs=rngs)
    out = drop(nnx.Rngs(dropout=7))
    q, k, v = module.query(X), module.key(keys), module.value(values)
    rule = ja.Dropout(0.4, nnx.Rngs(dropout=7).dropout(), shared=shared)
    close(out.reshape(B, T, H, T), ja.attention(q, k, v, dropout=rule))
    kept = np.asarray(out).reshape(B, T, H, T) > 0
    assert 0.5 < kept.mean() < 0.7
    assert (kept == kept[:1]).all() == (kept == kept[:, :, :1]).all() == shared
    stream = nnx.Rngs(dropout=7).dropout
    close(drop(stream), out)
    assert np.abs(drop(stream) - out).max() > 0.01
    with pytest.raises(ValueError, match="dropout needs rngs"):
        drop(None)


@pytest.mark.parametrize("build", [our_module, lambda: flax_module(nn.attention_fn())])
def test_shardings_of_a_call(build):
    want = flax_module()(X, is_causal=True)
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    one, many = jax.P(None, None, "model"), jax.P(None, None, None, None)
    with jax.set_mesh(mesh):
        module, x = build(), jax.device_put(X, jax.P("model"))
        call = lambda m, x: m(x, is_causal=True, qkv_sharding=many, out_sharding=one)
        for run in (call, nnx.jit(call)):
            out = run(module, x)
            close(out, want)
            assert out.sharding.spec == one


@pytest.mark.parametrize(
    "options", [{}, {"num_kv_heads": 2, "normalize_qk": True}, {"dropout_rate": 0.5}], ids=str
)
def test_sown_weights_are_those_of_flax(options):
    """Those before dropout."""
    call = {"is_causal": True, "mask": jnp.broadcast_to(PADDING, (B, 1, T, T))}
    sow = lambda m, x: m(x, deterministic=False, sow_weights=True, **call)
    seen = [
        nnx.capture(sow, nnx.Intermediate)(module, X)[1]["attention_weights"].get_value()
        for module in (our_module(**options), flax_module(**options))
    ]
    assert seen[0][0].shape == (B, H, T, T)
    close(*seen)


# --- transforms and whole models


def test_watch_through_remat():
    class Rematted(Model):
        def __call__(self, x):
            for block in self.blocks:
                x = nnx.remat(lambda block, x: block(x))(block, x)
            return x

    def outcome(model):
        out, seen = nn.watch(model, WANTED)(X)
        entropies = [block["attention"]["entropy"].mean() for block in seen["blocks"].values()]
        return (out**2).mean() + sum(entropies), (out, seen)

    results = nnx.jit(nnx.value_and_grad(outcome, has_aux=True))
    rematted, plain = (results(model(nnx.Rngs(0))) for model in (Rematted, Model))
    close(rematted, plain)


def test_watch_through_vmap():
    """Watched within, and mapped within what is watched."""
    model = Model(nnx.Rngs(0))
    each = nnx.vmap(lambda m, x: nn.watch(m, WANTED)(x), in_axes=(None, 0))
    close(each(model, X), nn.watch(model, WANTED)(X))

    class Mapped(nnx.Module):
        def __init__(self):
            self.block = Block(nnx.Rngs(0))

        def __call__(self, x):
            axes = nnx.StateAxes({nn.Observed: 0, ...: None})
            return nnx.vmap(lambda m, x: m(x), in_axes=(axes, 0))(self.block, x)

    mapped = Mapped()
    out, seen = nn.watch(mapped, WANTED)(X)
    close((out, seen["block"]), nn.watch(mapped.block, WANTED)(X))


@pytest.mark.parametrize("window", [None, 6])
def test_ragged_chunks_decode_as_their_sequences_do(window):
    config = Config(vocabulary=11, width=32, layers=2, heads=4, kv_heads=2, window=window)
    model = LanguageModel(config, nnx.Rngs(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 20)))
    caches, got = model.empty_caches((3,), 20), [[], [], []]
    step, alone = nnx.jit(lambda m, *args: m.decode(*args)), nnx.jit(lambda m, ids: m(ids))
    at = np.zeros(3, int)
    for width, counts in ((11, (11, 4, 7)), (5, (0, 5, 2)), (5, (4, 1, 5))):
        padded = np.zeros((3, width), int)
        for i, n in enumerate(counts):
            padded[i, :n] = ids[i, at[i] : at[i] + n]
        logits, caches = step(model, jnp.asarray(padded), caches, jnp.asarray(counts))
        for i, n in enumerate(counts):
            got[i].append(logits[i, :n])
        at += counts
    for i, n in enumerate(at):
        close(jnp.concatenate(got[i]), alone(model, ids[i, :n]))
    for cache in caches:
        np.testing.assert_array_equal(cache.length, at)

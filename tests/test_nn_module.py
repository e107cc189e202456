"""The module: Flax's projections around attend."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_model import WANTED, B, H, M, T, X, Y, close, flax_module

import jaxattn as ja
from jaxattn import nn
from jaxattn.rope import Rope


def test_a_checkpoint_of_flax_loads():
    for options in ({}, {"num_kv_heads": 2, "normalize_qk": True}, {"use_bias": False}):
        stock = flax_module(seed=3, **options)
        ours = nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0), **options)
        assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(stock))
        nnx.update(ours, nnx.state(stock))
        close(ours(X, is_causal=True), stock(X, is_causal=True))
        close(ours(X, Y), stock(X, Y))


def test_options_of_the_module():
    ours = nn.MultiHeadAttention(
        H, M, num_kv_heads=2, mask=ja.Causal(), score=ja.ALiBi(), sinks=True, rngs=nnx.Rngs(0)
    )
    assert ours.sinks is not None
    ours.sinks[...] = jnp.arange(4.0)
    project = lambda layer: layer(X)
    q, k, v = map(project, (ours.query, ours.key, ours.value))
    rule = ja.Causal() & ja.Window(3)
    want = ja.attention(q, k, v, mask=rule, score=ja.ALiBi(), sinks=jnp.arange(4.0))
    close(ours(X, mask=ja.Window(3)), ours.out(want))
    grads = nnx.grad(lambda m: (m(X) ** 2).sum())(ours)
    assert np.abs(grads["sinks"][...]).min() > 0


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("scaling", [None, ja.rope.YaRN(4.0, 16)])
def test_decoding_with_a_cache_is_one_pass(window, scaling):
    rope = ja.rope.Rope(8, scaling=scaling)
    mask = ja.Causal() if window is None else ja.Window(window - 1)
    module = nn.MultiHeadAttention(H, M, num_kv_heads=2, rope=rope, rngs=nnx.Rngs(0))
    want = module(X, mask=mask)
    cache, outs = module.empty_cache((B,), 24, window=window), []
    step = nnx.jit(lambda m, x, c: m.decode(x, c))
    for first, n in ((0, 9), (9, 1), (10, 4), (14, 1), (15, 1), (16, 1)):
        out, cache = step(module, X[:, first : first + n], cache)
        outs.append(out)
    close(jnp.concatenate(outs, 1), want)
    np.testing.assert_array_equal(cache.length, T)


def test_rope_makes_the_output_depend_on_distances_alone():
    module = nn.MultiHeadAttention(H, M, rope=ja.rope.Rope(8), mask=ja.Causal(), rngs=nnx.Rngs(0))
    plain = nn.MultiHeadAttention(H, M, mask=ja.Causal(), rngs=nnx.Rngs(0))
    close(module(X, positions=jnp.arange(T) + 1000), module(X), atol=1e-4)
    assert np.abs(module(X) - plain(X)).max() > 1e-3


def test_dtypes_and_sharding_annotations():
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.float16, "sinks": True}
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        kernel = {"kernel_metadata": {"out_sharding": (None, "model", None)}}
        out = {"out_kernel_metadata": {"out_sharding": ("model", None, None)}}
        module = nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0), **options, **kernel, **out)
        assert module(X).dtype == jnp.bfloat16
        assert module.query.kernel.sharding.spec == jax.P(None, "model", None)
        assert module.out.kernel.sharding.spec == jax.P("model", None, None)
    dtypes = {x.dtype for x in jax.tree.leaves(nnx.state(module, nnx.Param))}
    assert dtypes == {jnp.dtype("float16")}


def test_transforms_of_nnx():
    module = nn.MultiHeadAttention(H, M, mask=ja.Causal(), rngs=nnx.Rngs(0))
    want = module(X)
    close(nnx.jit(lambda m, x: m(x))(module, X), want)
    graph, state = nnx.split(module)
    close(nnx.merge(graph, state)(X), want)
    close(nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(module, X), want)
    shapes = nnx.eval_shape(lambda: nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0)))
    assert shapes.query.kernel.shape == (M, H, M // H)
    rematted = nnx.grad(lambda m: nnx.remat(lambda m, x: m(x))(m, X).sum())(module)
    close(rematted, nnx.grad(lambda m: m(X).sum())(module))


def test_scan_over_layers_and_capture():
    @nnx.vmap(in_axes=0, out_axes=0)
    def layers(key):
        return nn.MultiHeadAttention(H, M, mask=ja.Causal(), rngs=nnx.Rngs(key))

    stacked = layers(jax.random.split(jax.random.key(0), 3))

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = stacked

        def __call__(self, x):
            step = nnx.scan(lambda x, m: x + m(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return step(x, self.layers)

    want = X
    for i in range(3):
        layer = nnx.merge(
            nnx.graphdef(stacked), jax.tree.map(lambda a, i=i: a[i], nnx.state(stacked))
        )
        want = want + layer(want)
    model = Stack()
    close(model(X), want)
    out, seen = nn.watch(model, WANTED)(X)
    close(out, want)
    assert seen["layers"]["entropy"].shape == (3, B, T, H)


def test_masks_of_the_module_hold_while_decoding():
    """In a cache and in a ring."""
    causal, window = ja.Causal() & ja.Where(lambda at: at.k % 3 != 1), ja.Window(5)
    score = ja.ALiBi()
    cases = (
        ({"mask": causal, "score": score}, None),
        ({"mask": window & ~ja.Window(0), "score": score}, None),
        ({"mask": window & ~ja.Window(0)}, 6),
        ({"mask": ja.Causal() & window}, 8),
    )
    for options, ring in cases:
        module = nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0), **options)
        cache, outs = module.empty_cache((B,), 24, window=ring), []
        for first, n in ((0, 9), (9, 1), (10, 4), (14, 3)):
            out, cache = module.decode(X[:, first : first + n], cache)
            outs.append(out)
        close(jnp.concatenate(outs, 1), module(X))


def test_a_padded_chunk_counts_for_scalings_that_read_the_length():
    rope = Rope(8, scaling=ja.rope.DynamicNTK(4.0, 4))
    module = nn.MultiHeadAttention(H, M, rope=rope, rngs=nnx.Rngs(0))
    padded = X.at[:, 6:].set(7)
    empty = module.empty_cache((B,), 32)
    out, cache = module.decode(padded, empty, count=jnp.full(B, 6), length=6)
    close(out[:, :6], module(X[:, :6], is_causal=True))
    np.testing.assert_array_equal(cache.length, 6)
    with pytest.raises(ValueError, match="pass length="):
        module.decode(X, empty)
    with pytest.raises(ValueError, match="pass length="):
        module(X, positions=jnp.arange(T) + 1000)


def test_functions_of_a_pair_hold_while_decoding():
    far = lambda logit, at: logit - 0.1 * (1 + at.head) * jnp.abs(at.q - at.k)
    mask = ja.Causal() & ja.Where(lambda at: (at.q - at.k) % 3 != 1)
    module = nn.MultiHeadAttention(H, M, mask=mask, score=far, rngs=nnx.Rngs(0))
    cache, outs = module.empty_cache((B,), 24), []
    for first, n in ((0, 9), (9, 1), (10, 7)):
        out, cache = module.decode(X[:, first : first + n], cache)
        outs.append(out)
    close(jnp.concatenate(outs, 1), module(X))


@pytest.mark.parametrize("window", [None, 5])
def test_weights_are_sown_while_decoding(window):
    module = nn.MultiHeadAttention(H, M, mask=ja.Causal(), rngs=nnx.Rngs(0))
    capture = lambda f: partial(nnx.capture(f, nnx.Intermediate), sow_weights=True)
    run, decode = capture(module), capture(module.decode)
    shown = lambda got: got[1]["attention_weights"].get_value()[0]
    (_, cache), _ = decode(X[:, :9], module.empty_cache((B,), 24, window=window))
    got = shown(decode(X[:, 9:12], cache))
    assert got.shape == (B, H, 3, 24)
    want = shown(run(X, mask=None if window is None else ja.Window(window - 1)))
    close(got[..., :12], want[:, :, 9:12, :12])


def test_inputs_of_several_dtypes_and_the_same_inputs_twice():
    ours, stock = (
        make(H, M, param_dtype=jnp.bfloat16, decode=False, rngs=nnx.Rngs(0))
        for make in (nn.MultiHeadAttention, nnx.MultiHeadAttention)
    )
    half = Y.astype(jnp.bfloat16)
    close(ours(X, half), stock(X, half), atol=1e-3)
    close(ours(X, X, X), ours(X))
    turning = nn.MultiHeadAttention(H, M, rope=Rope(8), rngs=nnx.Rngs(0))
    close(turning(X, X, X), turning(X))
    half = nn.MultiHeadAttention(H, M, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half.empty_cache((B,), 4).k.dtype == jnp.bfloat16


def test_errors():
    module = nn.MultiHeadAttention(H, M, rope=Rope(8), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="self-attention"):
        module(X, Y)
    with pytest.raises(ValueError, match="32 features"):
        module(X[..., :5])
    with pytest.raises(TypeError, match=r"own attention and cache; call decode"):
        nn.MultiHeadAttention(H, M, decode=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"got Flax's decode mode; call decode"):
        nnx.view(module, decode=True)(X)
    with pytest.raises(ValueError, match=r"cache of its own; call decode"):
        module.init_cache((B, 4, M))
    with pytest.raises(ValueError, match=r"32 features \(in_kv_features\)"):
        nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0))(X, Y[..., :5])
    dropping = nn.MultiHeadAttention(H, M, dropout_rate=0.1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="told whether to drop"):
        dropping(X)
    with pytest.raises(TypeError, match=r"cache comes from empty_cache\(\), got None"):
        dropping.decode(X, None)
    with pytest.raises(ValueError, match=r"an array .* for rope.*got END"):
        module(X, positions=ja.END)
    with pytest.raises(ValueError, match=r"END for keys from other inputs, got int32"):
        dropping(X, Y, positions=jnp.arange(T), deterministic=True)

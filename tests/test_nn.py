"""Flax models: the function in Flax's own modules, the module, and watching."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen, nnx

import jaxattn as ja
from jaxattn import nn
from jaxattn import observe as see

B, T, M, H = 2, 17, 32, 4
RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.standard_normal((B, T, M)), jnp.float32)
Y = jnp.asarray(RANDOM.standard_normal((B, 11, M)), jnp.float32)
PADDING = jnp.asarray(RANDOM.random((B, 1, 1, T)) < 0.7).at[..., 0].set(True)
WANTED = {"entropy": see.Entropy(), "map": see.Map(4), "received": see.Received()}
STOCK = nnx.dot_product_attention


def flax_module(fn=STOCK, seed=0, **options):
    return nnx.MultiHeadAttention(
        H, M, decode=False, attention_fn=fn, rngs=nnx.Rngs(seed), **options
    )


def close(a, b, atol=2e-5):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol, rtol=1e-5), a, b)


class Block(nnx.Module):
    def __init__(self, rngs, fn=STOCK):
        self.attention = nnx.MultiHeadAttention(H, M, decode=False, attention_fn=fn, rngs=rngs)
        self.mlp = nnx.Linear(M, M, rngs=rngs)

    def __call__(self, x):
        return x + self.mlp(x + self.attention(x, is_causal=True))


class Model(nnx.Module):
    def __init__(self, rngs, fn=STOCK, layers=3):
        self.blocks = nnx.List([Block(rngs, fn) for _ in range(layers)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def weights_of(module, x, allowed=True):
    """The weights that a module's parameters give, in NumPy float64: [b h t s]."""
    of = lambda p: (
        np.einsum("btm,mhd->bthd", x, np.asarray(p.kernel[...], np.float64))
        + np.asarray(p.bias[...])
    )
    q, k = (of(p).swapaxes(1, 2) for p in (module.query, module.key))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(M // H)
    return oracle.softmax(logits, np.broadcast_to(allowed, logits.shape))[0]


# --- attention_fn


CALLS = {
    "plain": {},
    "causal": {"is_causal": True},
    "padding": {"mask": PADDING},
    "numbers as a mask": {"mask": nnx.make_causal_mask(X[..., 0])},
    "padding and causal": {"mask": jnp.broadcast_to(PADDING, (B, 1, T, T)), "is_causal": True},
}


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


# --- the module


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
    step = nnx.jit(lambda m, x, c: m(x, cache=c))
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


# --- watch


def test_watch_shows_every_layer_of_a_stock_model_and_leaves_it_as_it_was():
    model = Model(nnx.Rngs(0))
    before, want = nnx.graphdef(model), model(X)
    out, seen = nn.watch(model, WANTED)(X)
    close(out, want)
    assert nnx.graphdef(model) == before
    assert model.blocks[0].attention.attention_fn is STOCK
    x = X
    for i, block in enumerate(model.blocks):
        p = weights_of(block.attention, np.asarray(x, np.float64), oracle.causal(T, T, 0))
        shown = seen["blocks"][i]["attention"]
        close(shown["received"].mass, p.sum(2).swapaxes(1, 2))
        close(shown["entropy"], -(p * np.log(np.where(p > 0, p, 1))).sum(-1).swapaxes(1, 2))
        x = block(x)


def test_watch_under_jit_and_grad():
    model = Model(nnx.Rngs(0))
    out, seen = nn.watch(model, WANTED)(X)
    close(nnx.jit(lambda m, x: nn.watch(m, WANTED)(x))(model, X), (out, seen))

    def loss(model):
        _, seen = nn.watch(model, {"entropy": see.Entropy()})(X)
        return sum(block["attention"]["entropy"].mean() for block in seen["blocks"].values())

    grads = nnx.grad(loss)(model)
    assert np.abs(grads["blocks"][0]["attention"]["query"]["kernel"][...]).max() > 0


def test_watch_shows_different_things_through_one_jitted_model():
    """What was compiled for one set of observations is not used for another, nor without any."""

    class Inner(nnx.Module):
        def __init__(self):
            self.model = Model(nnx.Rngs(0), layers=1)

        def __call__(self, x):
            return nnx.jit(lambda m, x: m(x))(self.model, x)

    model = Inner()
    for wanted in ({"a": see.Entropy()}, {"b": see.RowMax()}, {"a": see.Entropy()}):
        _, seen = nn.watch(model, wanted)(X)
        assert set(seen["model"]["blocks"][0]["attention"]) == set(wanted)
    close(model(X), model.model(X))


def test_watch_keeps_the_function_of_a_module_and_sees_ours():
    fn = nn.attention_fn(ja.Window(2), ja.SoftCap(3.0))
    model = Model(nnx.Rngs(0), fn, layers=1)
    out, seen = nn.watch(model, {"top": see.TopKeys(5)})(X)
    close(out, model(X))
    assert (seen["blocks"][0]["attention"]["top"].keys[:, 10] >= -1).all()
    assert ((seen["blocks"][0]["attention"]["top"].keys[:, 10] >= 0).sum(-1) == 3).all()
    ours = nn.MultiHeadAttention(H, M, rngs=nnx.Rngs(0), sinks=True)
    out, seen = nn.watch(ours, {"all": see.MassOn(T)})(X)
    close(out, ours(X))
    assert (seen["all"] < 1).all()


def test_watch_of_a_module_that_is_called_twice():
    class Twice(nnx.Module):
        def __init__(self):
            self.attention = flax_module()

        def __call__(self, x):
            return self.attention(self.attention(x))

    _, seen = nn.watch(Twice(), {"entropy": see.Entropy()})(X)
    first, second = seen["attention"]
    assert first["entropy"].shape == second["entropy"].shape == (B, T, H)


def test_watch_takes_a_method():
    class Other(Model):
        def features(self, x):
            return 2 * self(x)

    model = Other(nnx.Rngs(0), layers=1)
    out, seen = nn.watch(model.features, {"e": see.Entropy()})(X)
    close(out, 2 * model(X))
    assert seen["blocks"][0]["attention"]["e"].shape == (B, T, H)


def test_errors():
    with pytest.raises(ValueError, match="which has none"):
        nn.watch(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), WANTED)(X)
    with pytest.raises(ValueError, match=r"attention_fn=jaxattn\.nn"):
        nn.watch(flax_module(lambda q, k, v, **_: v), WANTED)(X)
    with pytest.raises(TypeError, match="takes an NNX model"):
        nn.watch(lambda x: x, WANTED)
    module = nn.MultiHeadAttention(H, M, rope=ja.rope.Rope(8), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="self-attention"):
        module(X, Y)
    with pytest.raises(ValueError, match="32 features"):
        module(X[..., :5])
    with pytest.raises(TypeError, match="own attention and cache, got decode"):
        nn.MultiHeadAttention(H, M, decode=True, rngs=nnx.Rngs(0))
    dropping = nn.MultiHeadAttention(H, M, dropout_rate=0.1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="told whether to drop"):
        dropping(X)
    with pytest.raises(ValueError, match="no dropout with a cache"):
        dropping(X, cache=dropping.empty_cache((B,), 32), deterministic=False)

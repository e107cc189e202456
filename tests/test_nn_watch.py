"""Watching: what is seen in every attention module of a model."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from flax_model import STOCK, WANTED, B, H, M, Model, T, X, close, flax_module
from jax.core import Tracer

import jaxattn as ja
from jaxattn import nn
from jaxattn import observe as see


def weights_of(module, x, allowed=True):
    """The weights that a module's parameters give, in NumPy float64: [b h t s]."""
    of = lambda p: (
        np.einsum("btm,mhd->bthd", x, np.asarray(p.kernel[...], np.float64))
        + np.asarray(p.bias[...])
    )
    q, k = (of(p).swapaxes(1, 2) for p in (module.query, module.key))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(M // H)
    return oracle.softmax(logits, np.broadcast_to(allowed, logits.shape))[0]


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


def test_watch_of_a_model_that_raises_leaves_it_as_it_was():
    class Failing(Model):
        def __call__(self, x):
            raise RuntimeError(f"after {super().__call__(x).shape}")

    model = Failing(nnx.Rngs(0), layers=1)
    before = nnx.graphdef(model)
    with pytest.raises(RuntimeError, match="after"):
        nn.watch(model, WANTED)(X)
    assert nnx.graphdef(model) == before
    assert not [m for _, m in nnx.iter_modules(model) if hasattr(m, "__captures__")]


class Sleeping(Model):
    """Takes turns with other threads between its layers."""

    def __call__(self, x, layers=3):
        for block in self.blocks[:layers]:
            x = block(x)
            if not isinstance(x, Tracer):
                jax.block_until_ready(x)
            time.sleep(0.002)
        return x


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_threads_that_watch_and_call_one_model_do_not_see_each_other(compiled):
    model = Sleeping(nnx.Rngs(0))
    before = nnx.graphdef(model)
    # Not `nnx.jit`, which sets every attribute of a model anew after each call.
    jit = (lambda f: jax.jit(partial(f, model))) if compiled else lambda f: partial(f, model)
    call = jit(lambda m, x: m(x))
    looks = {n: jit(lambda m, x, n=n: nn.watch(m, {n: see.Entropy()})(x)) for n in "ab"}
    inputs = [X * (i + 1) for i in range(4)]
    watched = lambda i: looks["ab"[i % 2]](inputs[i])
    want = [watched(i) for i in range(4)], [call(x) for x in inputs]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            seen = [threads.submit(watched, i) for i in range(4)]
            plain = [threads.submit(call, x) for x in inputs]
            close([one.result() for one in seen], want[0])
            close([one.result() for one in plain], want[1])
            assert type(model.blocks[0].attention) is nnx.MultiHeadAttention
    assert nnx.graphdef(model) == before
    assert model.blocks[0].attention.attention_fn is STOCK


def test_what_a_call_changes_in_a_model_is_changed_in_it():
    class Counting(Model):
        def __init__(self):
            super().__init__(nnx.Rngs(0), layers=1)
            self.calls, self.seen = 0, nnx.BatchStat(jnp.zeros(()))
            self.last = nnx.data(jnp.zeros(M))
            self.rngs = nnx.Rngs(7)

        def __call__(self, x):
            self.calls += 1
            self.seen[...] += 1
            self.last = x[0, 0]
            return super().__call__(x) + jax.random.normal(self.rngs.noise(), x.shape)

    watched, plain = Counting(), Counting()
    for _ in range(2):
        nn.watch(watched, WANTED)(X)
        plain(X)
    assert watched.calls == watched.seen[...] == 2
    close(nnx.state(watched, nnx.Not(nnx.RngKey)), nnx.state(plain, nnx.Not(nnx.RngKey)))
    assert nnx.graphdef(watched) == nnx.graphdef(plain)


@pytest.mark.parametrize(
    "wrong", [None, [see.Entropy()], see.Entropy(), {"a": see.Entropy}, {1: 2}]
)
def test_what_to_observe_is_a_dict_of_observations(wrong):
    with pytest.raises(TypeError, match=r"observ.* got .*(Entropy\(|2)"):
        nn.watch(Model(nnx.Rngs(0), layers=1), wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=r"observ.*got"):
            nn.attention_fn(observe=wrong)


def test_any_name_will_do():
    _, seen = nn.watch(Model(nnx.Rngs(0), layers=1), {"attention_weights": see.TopKeys(2)})(X)
    assert seen["blocks"][0]["attention"]["attention_weights"].keys.shape == (B, T, H, 2)


def test_errors():
    model = Model(nnx.Rngs(0), layers=1)
    with pytest.raises(ValueError, match=r"being captured.*call watch outside"):
        nnx.capture(lambda m, x: nn.watch(m, WANTED)(x), nnx.Intermediate)(model, X)
    with pytest.raises(ValueError, match="which has none"):
        nn.watch(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), WANTED)(X)
    with pytest.raises(ValueError, match=r"attention_fn=jaxattn\.nn"):
        nn.watch(flax_module(lambda q, k, v, **_: v), WANTED)(X)
    with pytest.raises(TypeError, match="takes an NNX model"):
        nn.watch(lambda x: x, WANTED)


def test_watch_of_decode_shows_the_new_tokens():
    module = nn.MultiHeadAttention(H, M, mask=ja.Causal(), rngs=nnx.Rngs(0))
    want = nn.watch(module, WANTED)(X)
    _, cache = module.decode(X[:, :9], module.empty_cache((B,), T))
    (out, cache), seen = nn.watch(module.decode, {"entropy": see.Entropy()})(X[:, 9:], cache)
    close(out, want[0][:, 9:])
    close(seen["entropy"], want[1]["entropy"][:, 9:])
    np.testing.assert_array_equal(cache.length, T)

"""The language model: it learns, it decodes what it computes, and it can be watched."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxattn import nn
from jaxattn import observe as see
from jaxattn.models.language import Config, LanguageModel, generate, loss, train_step

CONFIG = Config(vocabulary=11, width=32, layers=2, heads=4, kv_heads=2)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 20)))


@pytest.mark.parametrize("window", [None, 6])
def test_decoding_gives_the_logits_of_one_pass(window):
    config = Config(**{**vars(CONFIG), "window": window})
    model = LanguageModel(config, nnx.Rngs(0))
    want, caches, got = model(IDS), model.empty_caches((3,), 20), []
    step = nnx.jit(lambda m, ids, caches: m.decode(ids, caches))
    for first, n in ((0, 12), (12, 1), (13, 7)):
        logits, caches = step(model, IDS[:, first : first + n], caches)
        got.append(logits)
    np.testing.assert_allclose(jnp.concatenate(got, 1), want, atol=2e-5)


@pytest.mark.long
def test_it_learns_to_count_and_goes_on():
    model = LanguageModel(CONFIG, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)
    starts = np.random.default_rng(1).integers(0, 11, (60, 8, 1))
    ids = jnp.asarray((starts + np.arange(13)) % 11)
    losses = [float(train_step(model, optimizer, batch)) for batch in ids]
    assert losses[0] > 2.3
    assert losses[-1] < 0.1
    prompt = jnp.asarray([[3, 4, 5], [9, 10, 0]])
    got = generate(model, prompt, 8, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(got, (np.array([[6], [1]]) + np.arange(8)) % 11)
    some = generate(model, prompt, 8, jax.random.key(0), temperature=50.0)
    assert (np.asarray(some) != np.asarray(got)).any()


def test_padding_does_not_count():
    model = LanguageModel(CONFIG, nnx.Rngs(0))
    padded = jnp.pad(IDS[:1, :9], ((0, 0), (0, 5)), constant_values=-1)
    np.testing.assert_allclose(loss(model, padded), loss(model, IDS[:1, :9]), rtol=1e-5)


def test_it_can_be_watched():
    model = LanguageModel(CONFIG, nnx.Rngs(0))
    logits, seen = nn.watch(model, {"map": see.Map(5)})(IDS)
    np.testing.assert_allclose(logits, model(IDS), atol=2e-5)
    assert seen["blocks"][1]["attention"]["map"].shape == (3, 4, 5, 5)

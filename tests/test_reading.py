"""The figure of a model that knows the licence by heart: where heads look, training, checkpoint."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.text import Text
from test_figures import assert_legible, assert_near, softmax

from figures import reading
from figures.reading import COPIED, LEARNT, PASSAGE, PROMPT, TEXT, WINDOW
from jaxattn.models.language import LanguageModel, loss

T = 331  # a prime, and several windows
SOME = TEXT[TEXT.index(PASSAGE) - 200 :][:T]


def normed(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x over the root of its mean square, times a scale."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * scale


def turned(x: np.ndarray) -> np.ndarray:
    """[t h d] with features (j, j + d/2) as a complex number, turned by t · 10000^(-2j/d)."""
    t, _, d = x.shape
    angle = np.arange(t)[:, None, None] * 10000.0 ** (-2 * np.arange(d // 2) / d)
    z = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def written_out(model: LanguageModel, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The weights [layer h t s] and the cost of each character but the first, in float64."""
    w = {name: np.asarray(x[...], float) for name, x in reading.parameters(model).items()}
    ids = np.array(["".join(sorted(set(TEXT))).index(c) for c in text])
    x, seen = w["embed.embedding"][ids], []
    back = np.subtract.outer(np.arange(len(ids)), np.arange(len(ids)))
    for i in range(4):
        own = lambda name, i=i: w[f"blocks.{i}.{name}"]
        y = normed(x, own("attention_norm.scale"))
        q, k, v = (
            np.einsum("tm,mhd->thd", y, own(f"attention.{n}.kernel"))
            for n in ("query", "key", "value")
        )
        logits = np.einsum("thd,shd->hts", turned(q), turned(k)) / np.sqrt(q.shape[-1])
        weights = softmax(np.where((back >= 0) & (back < WINDOW), logits, -np.inf))
        x = x + np.einsum("hts,shd,hdm->tm", weights, v, own("attention.out.kernel"))
        y = normed(x, own("mlp_norm.scale"))
        gate = y @ own("mlp.gate.kernel")
        x = x + (gate / (1 + np.exp(-gate)) * (y @ own("mlp.up.kernel"))) @ own("mlp.down.kernel")
        seen.append(weights)
    logits = normed(x, w["norm.scale"]) @ w["embed.embedding"].T
    chances = softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
    return np.stack(seen), -np.log(chances)


def parts_of(weights: np.ndarray, text: str) -> np.ndarray:
    """`Heads.parts`, pair by pair."""
    parts = np.zeros((*weights.shape[:2], 4))
    for i in range(len(text)):
        for j in range(max(i - WINDOW + 1, 0), i + 1):
            ended = text[j:i].count(" ")  # words that end between key and query
            part = 0 if i == j else min(1 + ended, 3)
            parts[..., part] += weights[..., i, j] / len(text)
    return parts


def copied_of(weights: np.ndarray, text: str) -> np.ndarray:
    """`Heads.copied`, query by query."""
    found = []
    for i in range(COPIED - 1, len(text)):
        read = text[i - COPIED + 1 : i + 1]
        keys = [
            j for j in range(max(i - WINDOW + 1, COPIED), i + 1) if text[j - COPIED : j] == read
        ]
        if keys:
            found.append(weights[..., i, keys].sum(axis=-1))
    return np.mean(found, axis=0)


# Where heads look


@pytest.mark.long
def test_what_is_watched_agrees_with_weights_written_out():
    model = reading.load().model
    seen = reading.look(model, SOME, PASSAGE)
    weights, nats = written_out(model, SOME)
    terms = T * reading.CONFIG.width
    assert_near(seen.parts, parts_of(weights, SOME), terms)
    assert_near(seen.copied, copied_of(weights, SOME), terms)
    logs = np.log(np.where(weights > 0, weights, 1))
    assert_near(seen.entropy, -(weights * logs).sum(axis=-1).mean(axis=-1), terms)
    shown = slice(200, 200 + len(PASSAGE))
    assert_near(seen.rows, weights[..., shown, shown], terms)
    assert_near(reading.costs(model, SOME), nats, terms)


def test_all_keys_alike():
    back = np.subtract.outer(np.arange(T), np.arange(T))
    allowed = (back >= 0) & (back < WINDOW)
    weights = (allowed / allowed.sum(axis=1, keepdims=True))[None, None]
    level = reading.level(SOME)
    assert_near(level["parts"], parts_of(weights, SOME)[0, 0], terms=T)
    assert_near(level["copied"], copied_of(weights, SOME)[0, 0], terms=T)


def test_words_and_matches():
    assert reading.words("a bc  d").tolist() == [0, 0, 1, 1, 1, 2, 3]
    read, before = reading.matches("abcdeabcdf")
    pairs = [(i, j) for i in range(10) for j in range(i + 1) if read[i] == before[j]]
    assert pairs == [(8, 4)]  # after abcd came e; and no key stands at the beginning


def test_alike():
    assert reading.first_difference("abc", "abd") == 2
    assert reading.first_difference("abc", "abcd") == 3
    assert reading.alike("xabcd yabce", end=10, said="d") == 3
    assert reading.alike("xabcd", end=4, said="z") == 0


# Training and the checkpoint


@pytest.mark.long
def test_training_lowers_the_loss_and_is_the_same_bit_for_bit(tmp_path):
    for name in ("one", "two"):
        reading.save(reading.train(12, seed=3), tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = reading.load(tmp_path / "one.npz")
    assert len(back.losses) == 12
    assert back.losses[-1] < back.losses[0] - 0.2
    assert reading.losses_of(back.model) == pytest.approx((back.learnt, back.held_back), rel=1e-5)


@pytest.mark.long
def test_the_checkpoint_has_the_losses_of_its_parameters():
    training = reading.load()
    learnt, held_back = reading.losses_of(training.model)
    assert learnt == pytest.approx(training.learnt, rel=1e-3)
    assert held_back == pytest.approx(training.held_back, rel=1e-3)
    assert learnt < 0.02 < 2 < held_back
    assert len(training.losses) == reading.COUNT
    assert reading.CHECKPOINT.stat().st_size < 400_000
    ids = jnp.asarray(reading.encode(SOME))[None]
    nats = reading.costs(training.model, SOME)
    assert float(loss(training.model, ids)) == pytest.approx(nats.mean(), rel=1e-4)


# The figure


@pytest.mark.long
def test_it_recites_until_two_clauses_begin_alike():
    seen = reading.recital()
    at = seen.mistake
    assert seen.recited[: at - PROMPT] == TEXT[PROMPT:at]
    assert at - PROMPT > 3000
    assert seen.recited[at - PROMPT] != TEXT[at]
    clause = TEXT[at - seen.alike : at]
    assert seen.alike > WINDOW
    assert TEXT[:LEARNT].count(clause) == 2
    assert TEXT[:LEARNT].count(clause + seen.recited[at - PROMPT]) == 1
    start = TEXT.index(clause + seen.recited[at - PROMPT]) + seen.alike
    assert TEXT[start : start + seen.resumed] == seen.recited[at - PROMPT :][: seen.resumed]
    assert seen.resumed > 1000
    assert_near(seen.heads.parts.sum(axis=-1), np.ones((4, 4)), terms=LEARNT)


def test_the_title_says_what_the_data_say():
    seen = reading.recital()
    found = assert_legible("reading").findobj(Text)
    texts = [text.get_text() for text in found if text.get_visible()]
    (title,) = (text for text in texts if "By heart" in text)
    assert f"{seen.mistake - PROMPT:,} characters, one wrong turn" in title
    assert title.endswith(f"{seen.resumed:,} more")
    own = 100 * seen.heads.parts[..., :2].sum(axis=-1)
    assert any(f"Layer 1 gives the word it reads {own[0].mean():.0f} %" in t for t in texts)
    for share, nats in zip(own.flat, seen.heads.entropy.flat, strict=True):
        assert f"{share:.0f} %\n{nats:.1f}" in texts
    assert own[0].mean() > own[1:].mean(axis=1).max()
    assert seen.heads.copied.max() < 0.03
    assert {"head 4", "layer 4", "Query (rows)", "Key (columns)"} <= set(texts)
    assert texts.count("·") == 2 * PASSAGE.count(" ")

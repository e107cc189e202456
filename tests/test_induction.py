"""The figure of induction heads: its model, its statistics, its training and its checkpoint."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import style
from matplotlib.text import Text
from test_figures import assert_near, softmax

import jaxattn as ja
from figures import data, induction, make
from figures.induction import LENGTH, PERIOD, VOCABULARY
from jaxattn.observe import Diagonal, Entropy

# A small model: v tokens, two layers of h heads of d features, b sequences of 2 · P tokens.
B, P, V, H, D = 3, 5, 11, 3, 4
T, M = 2 * P, H * D


def small() -> tuple[induction.Transformer, np.ndarray]:
    """Its parameters, four times as large so that weights are far from even, and sequences."""
    model = jax.tree.map(lambda x: 4 * x, induction.start(jax.random.key(1), V, M, H))
    tokens = np.random.default_rng(0).integers(0, V, (B, P))
    return model, np.tile(tokens, 3)[:, : T + 1]


def turned(x: np.ndarray) -> np.ndarray:
    """[b t h d] with features (j, j + d/2) as a complex number, turned by t · 100^(-2j/d)."""
    j = np.arange(D // 2)
    angle = np.arange(T)[:, None, None] * 100.0 ** (-2 * j / D)
    z = (x[..., : D // 2] + 1j * x[..., D // 2 :]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


def unit(x: np.ndarray) -> np.ndarray:
    """x over the root of its mean square."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def written_out(model: induction.Transformer, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights [layer b h t s] and the logits [b t v], in float64."""
    model, seen = jax.tree.map(lambda w: np.asarray(w, float), model), []
    x = np.asarray(model.embed)[ids]
    for layer in model.layers:
        q, k, v = (np.einsum("btm,mhd->bthd", unit(x), w) for w in layer[:3])
        logits = np.einsum("bthd,bshd->bhts", turned(q), turned(k)) / math.sqrt(D)
        weights = softmax(np.where(np.tri(T, dtype=bool), logits, -np.inf))
        x = x + np.einsum("bhts,bshd,hdm->btm", weights, v, layer.o)
        seen.append(weights)
    return np.stack(seen), unit(x) @ model.out


# The statistics


def test_statistics_agree_with_weights_written_out():
    model, ids = small()
    got = induction.statistics(model, jnp.asarray(ids), P)
    weights, logits = written_out(model, ids[:, :-1])
    pairs = {
        "previous": [(i, i - 1) for i in range(1, T)],
        "induction": [(i, i - P + 1) for i in range(P, T)],
    }
    for name, at in pairs.items():
        want = np.mean([weights[..., i, j] for i, j in at], axis=(0, 2))
        assert_near(np.asarray(getattr(got, name)), want, terms=T * M)
    terms = -weights * np.log(np.where(weights > 0, weights, 1))
    assert_near(np.asarray(got.entropy), terms.sum(-1).mean((1, 3)), terms=T * M)
    nats = -np.log(np.take_along_axis(softmax(logits), ids[:, 1:, None], axis=-1))[..., 0]
    right = logits.argmax(-1) == ids[:, 1:]
    for part, queries in (("new", slice(P - 1)), ("repeated", slice(P, None))):
        want = nats[:, queries].mean()
        assert_near(np.asarray(getattr(got.loss, part)), want, terms=T * M)
        assert_near(np.asarray(getattr(got.accuracy, part)), right[:, queries].mean(), terms=T)


def attend_to(pattern: np.ndarray) -> dict[str, np.ndarray]:
    """What is observed where every query looks at the keys of `pattern` alike, if there are any."""
    t = len(pattern)
    x = jnp.zeros((t, 1, 1))
    score = ja.Bias(jnp.where(pattern, 0.0, -1000.0))
    watch = {
        "previous": Diagonal(-1),
        "induction": induction.induction(t // 2),
        "entropy": Entropy(),
    }
    return ja.attend(x, x, x, mask=ja.Causal(), score=score, observe=watch).observed


def test_a_perfect_pattern_scores_one():
    i, j = np.indices((LENGTH, LENGTH))
    seen = attend_to((j == i - PERIOD + 1) & (i >= PERIOD))
    assert float(seen["induction"][0]) == 1
    assert not np.asarray(seen["entropy"])[PERIOD:].any()
    seen = attend_to(j == i - 1)
    assert (float(seen["previous"][0]), float(seen["induction"][0])) == (1, 0)
    seen = attend_to(j == i - PERIOD)  # the same token: one place off
    assert float(seen["induction"][0]) == 0


def test_uniform_attention_scores_one_over_the_keys():
    seen = attend_to(np.ones((LENGTH, LENGTH), bool))
    share = 1 / np.arange(1, LENGTH + 1)
    assert_near(np.asarray(seen["induction"]), share[PERIOD:].mean(keepdims=True), terms=LENGTH)
    assert_near(np.asarray(seen["previous"]), share[1:].mean(keepdims=True), terms=LENGTH)
    assert_near(np.asarray(seen["entropy"])[:, 0], -np.log(share), terms=LENGTH)
    assert np.mean(-np.log(share)) == pytest.approx(math.lgamma(LENGTH + 1) / LENGTH)


def test_the_induction_score_is_the_diagonal_of_the_repeat_alone():
    q, k = (jax.random.normal(key, (T, H, D)) for key in jax.random.split(jax.random.key(0)))
    whole = {"score": induction.induction(P), "diagonal": Diagonal(1 - P)}
    seen = ja.attend(q, k, k, mask=ja.Causal(), observe=whole).observed
    again = {"diagonal": Diagonal(1 - P)}
    half = ja.attend(q[P:], k, k, mask=ja.Causal(), positions=ja.END, observe=again).observed
    assert_near(np.asarray(seen["score"]), np.asarray(half["diagonal"]), terms=T)
    assert np.abs(seen["score"] - seen["diagonal"]).max() > 1e-3  # which has a query more


def test_parts():
    values = jnp.arange(8.0)[None].repeat(2, axis=0)
    period = jnp.array([3, 5])  # new: 0 1 and 0 to 3; repeated: 3 to 7 and 5 to 7
    new, repeated = induction.parts(values, period)
    assert float(new) == pytest.approx(7 / 6)
    assert float(repeated) == pytest.approx((25 + 18) / 8)


# The sequences


def test_sequences_repeat():
    ids, period = map(np.asarray, induction.batch(jax.random.key(0)))
    low, high = induction.PERIODS
    assert ids.shape == (induction.SEQUENCES, LENGTH + 1)
    assert low <= period.min() < period.max() <= high
    assert 0 <= ids.min() < ids.max() < VOCABULARY
    for row, n in zip(ids, period, strict=True):
        assert (row[n:] == row[:-n]).all()


def test_held_out_sequences_are_different_tokens_twice():
    ids = induction.held_out()
    assert (ids[:, PERIOD:] == ids[:, : PERIOD + 1]).all()
    assert all(len(set(row[:PERIOD].tolist())) == PERIOD for row in ids)
    assert len({row.tobytes() for row in ids}) == induction.SEQUENCES


# Training


def test_training_lowers_the_loss_and_is_the_same_bit_for_bit(tmp_path):
    one, two = (induction.train(20, (0, 20), seed=3) for _ in range(2))
    for training, name in ((one, "one"), (two, "two")):
        induction.save(training, tmp_path / f"{name}.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    for part in (one.losses.new, one.losses.repeated, one.statistics.loss.repeated):
        assert part[-1] < part[0] - 0.2
    back = induction.load(tmp_path / "one.npz")
    assert jax.tree.structure(back) == jax.tree.structure(one)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, one)))


# The checkpoint


def assert_same_statistics(model: induction.Transformer, at: int) -> None:
    """The statistics of `model` are entry `at` of those in the checkpoint, up to rounding.

    That of a logit, a sum of WIDTH products in each of two layers, over LENGTH keys. Besides, two
    of the likeliest tokens may have changed places.
    """
    kept = jax.tree.map(lambda x: x[at], induction.load().statistics)
    again = induction.statistics(model, jnp.asarray(induction.held_out()))
    terms = LENGTH * induction.WIDTH
    for got, want in zip((*again[:3], *again.loss), (*kept[:3], *kept.loss), strict=True):
        assert_near(np.asarray(got), want, terms)
    for got, want in zip(again.accuracy, kept.accuracy, strict=True):
        assert abs(float(got) - want) <= 2 / (induction.SEQUENCES * (PERIOD - 1))


def test_the_checkpoint_has_the_statistics_of_its_parameters():
    training = induction.load()
    assert tuple(training.steps) == induction.EVALUATED
    assert len(training.losses.new) == len(training.losses.repeated) == induction.COUNT
    assert_same_statistics(induction.start(jax.random.key(induction.SEED)), at=0)
    assert_same_statistics(training.model, at=-1)
    assert induction.CHECKPOINT.stat().st_size < 500_000


def test_the_trained_model_foretells_repeated_tokens_and_cannot_foretell_new_ones():
    seed = 12_345  # of sequences that neither training nor the checkpoint has met
    tokens = jax.random.permutation(jax.random.key(seed), VOCABULARY)[None, :PERIOD]
    ids = induction.repeat(tokens, jnp.array([PERIOD]))
    held_out = induction.load().statistics
    fresh = induction.statistics(induction.load().model, ids)
    assert held_out.accuracy.repeated[-1] > 0.98
    assert fresh.accuracy.repeated > 0.9
    assert held_out.accuracy.new[-1] < 2 / VOCABULARY
    assert held_out.accuracy.repeated[0] < 2 / VOCABULARY
    assert held_out.loss.new.min() > math.log(VOCABULARY)
    assert held_out.loss.repeated[-1] < 0.15


# The figure


def test_the_heads_that_are_shown():
    seen = data.emergence()
    layer, head = seen.previous
    score = np.diagonal(seen.maps[0, 1], -1).mean()
    assert layer == 0
    assert score > 0.8 > 0.1 > np.diagonal(seen.maps[0, 0], -1).mean()
    assert abs(score - seen.training.statistics.previous[-1, layer, head]) < 0.1  # one sequence
    stripe = [np.diagonal(m, 1 - PERIOD)[1:].mean() for m in seen.maps[1]]
    assert seen.induction[0] == 1
    assert stripe[0] < 0.1 < 0.9 < stripe[1]
    assert_near(seen.maps.sum(axis=-1), np.ones((2, 2, LENGTH)), terms=LENGTH)
    assert not seen.maps[..., ~np.tri(LENGTH, dtype=bool)].any()


def test_the_change_is_where_the_loss_falls():
    seen = data.emergence()
    steps, loss = seen.training.steps, seen.training.statistics.loss.repeated
    start, end = (loss[steps == step].item() for step in seen.change)
    assert start > 3 > 0.5 > end
    assert seen.chances[1, :PERIOD].mean() < 2 / VOCABULARY
    assert seen.chances[1, PERIOD:].mean() > 0.9


def test_the_title_says_what_the_data_say():
    seen = data.emergence()
    with style.context(["default", make.STYLE]):
        texts = [text.get_text() for text in make.FIGURES["induction"]().findobj(Text)]
    (title,) = (text for text in texts if "Induction heads form" in text)
    loss = dict(zip(seen.training.steps, seen.training.statistics.loss.repeated, strict=True))
    start, end = seen.change
    assert f"in steps {start} to {end}" in title
    assert f"{loss[end]:.1f} nats, not {loss[start]:.1f}" in title

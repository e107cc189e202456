"""The oracle's scores, sinks, dropout and merge agree with loops and with differences."""

# pyright: reportCallIssue=false

import math

import numpy as np
import oracle
import pytest
from oracle import scores
from test_oracle import SHAPES, assert_near, central, draw, draw_mask

SHAPE = SHAPES["grouped"]
BATCH, T, S, H = SHAPE[:4]
RNG = np.random.default_rng(4)
INDEX = np.arange(H)[:, None, None], np.arange(S)
CAPS = 1 + RNG.random((H, 1, 1))
SINKS = RNG.standard_normal(H)
KEEP = RNG.random((*BATCH, H, T, S)) < 0.6
SCORES = {
    "bias": (RNG.standard_normal((H, 1, S)), scores.Bias),
    "bias-of-all": (RNG.standard_normal((*BATCH, H, T, S)), scores.Bias),
    "bias-of-one": (RNG.standard_normal(()), scores.Bias),
    "cap": (np.asarray(1.3), scores.Cap),
    "caps": (CAPS, scores.Cap),
    "lookup": (RNG.standard_normal((H, S)), lambda x: scores.Lookup(x, INDEX, 0.4)),
    "gate": (RNG.standard_normal((H, S)), lambda x: scores.Gate(x, INDEX)),
    "alibi": (
        RNG.random(H),
        lambda x: scores.alibi(x, oracle.count(np.array([1, -2]), T), np.arange(S)),
    ),
    "relative": (
        RNG.standard_normal((4, H)),
        lambda x: scores.relative(
            x, 1 + np.arange(T), np.arange(S), lambda away: min(abs(away), 3)
        ),
    ),
}


def test_everything_at_once_is_the_sum_over_pairs():
    q, k, v = draw(*SHAPE)
    allowed = draw_mask(BATCH, T, S, H)
    allowed[0, 1, 2] = False
    bias = RNG.standard_normal((H, T, S))
    extra = oracle.Extra((scores.Bias(bias), scores.Cap(CAPS)), SINKS, KEEP, 0.25)
    out, lse = oracle.attention(q, k, v, allowed, 0.7, extra=extra)
    for b, head, i in np.ndindex(BATCH[0], H, T):
        total, mixed, cap = math.exp(SINKS[head]), np.zeros(v.shape[-1]), CAPS[head, 0, 0]
        for j in range(S):
            if allowed[b, head, i, j]:
                logit = 0.7 * q[b, i, head] @ k[b, j, head // 2] + bias[head, i, j]
                weight = math.exp(cap * math.tanh(logit / cap))
                total += weight
                mixed += weight * v[b, j, head // 2] * KEEP[b, head, i, j] / 0.75
        np.testing.assert_allclose(out[b, i, head], mixed / total, rtol=1e-12)
        np.testing.assert_allclose(lse[b, i, head], np.log(total), rtol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_gradients_match_central_differences(name):
    """Of a score between two others, with sinks and dropout."""
    q, k, v = draw(*SHAPE)
    array, item = SCORES[name]
    allowed = draw_mask(BATCH, T, S, H)
    cots = RNG.standard_normal((*q.shape[:-1], v.shape[-1])), RNG.standard_normal(q.shape[:-1])

    def extra(array, sinks):
        before, after = scores.Bias(np.sin(np.arange(S))), scores.Cap(2.5)
        return oracle.Extra((before, item(array), after), sinks, KEEP, 0.25)

    def loss(q, k, v, scale, array, sinks):
        results = oracle.attention(q, k, v, allowed, scale, extra=extra(array, sinks))
        return sum((x * cot).sum() for x, cot in zip(results, cots, strict=True))

    point = [q, k, v, np.asarray(0.7), array, SINKS]
    got = oracle.gradients(q, k, v, allowed, 0.7, *cots, extra=extra(array, SINKS))
    found = [got.q, got.k, got.v, got.scale, got.score[1].value, got.sinks.value]
    for i, gradient in enumerate(found):
        assert_near(
            gradient, central(lambda x, i=i: loss(*point[:i], x, *point[i + 1 :]), point[i])
        )
    sizes = [*got.sizes, None, got.score[1].size, got.sinks.size]
    for gradient, size in zip(found, sizes, strict=True):
        assert size is None or (np.abs(gradient).max() <= np.max(size) * (1 + 1e-9))


def test_mean_and_variance_are_those_of_every_way_to_drop_weights():
    q, k, v = draw((), 2, 2, 2, 1, 3, 2)
    cot_out, no_lse = RNG.standard_normal((2, 2, 2)), np.zeros((2, 2))
    allowed, rate = np.array([[True, True], [False, True]]), 0.25

    def values(keep, rate):
        extra = oracle.Extra((scores.Cap(2.5),), SINKS[:2], keep, rate)
        out, _ = oracle.attention(q, k, v, allowed, extra=extra)
        return out, oracle.gradients(q, k, v, allowed, None, cot_out, no_lse, extra=extra).v

    ways = np.array(list(np.ndindex((2,) * 8))).reshape(-1, 2, 2, 2)
    chances = np.where(ways, 1 - rate, rate).prod((1, 2, 3))
    found = [np.stack(x) for x in zip(*(values(keep, rate) for keep in ways), strict=True)]
    extra = oracle.Extra((scores.Cap(2.5),), SINKS[:2], rate=rate)
    variances = oracle.variance(q, k, v, allowed, cot_out, extra)
    for each, mean, variance in zip(found, values(True, 0.0), variances, strict=True):
        np.testing.assert_allclose(np.tensordot(chances, each, 1), mean)
        np.testing.assert_allclose(np.tensordot(chances, (each - mean) ** 2, 1), variance)


def test_merge_is_attention_over_all_the_keys():
    q, k, v = draw(*SHAPE)
    allowed = draw_mask(BATCH, T, S, H)
    allowed[0, :, 3, :3] = False
    cuts = (slice(0, 3), slice(3, 4), slice(4, S))
    parts = [oracle.attention(q, k[:, cut], v[:, cut], allowed[..., cut]) for cut in cuts]
    merged = oracle.merge(*zip(*parts, strict=True))
    for got, want in zip(merged, oracle.attention(q, k, v, allowed), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_of_merge_match_central_differences():
    outs, lses = [RNG.standard_normal((2, 3)) for _ in "ab"], [RNG.standard_normal(2) for _ in "ab"]
    cots = RNG.standard_normal((2, 3)), RNG.standard_normal(2)

    def loss(outs, lses):
        results = oracle.merge(outs, lses)
        return sum((x * cot).sum() for x, cot in zip(results, cots, strict=True))

    douts, dlses = oracle.merge_gradients(outs, lses, *cots)
    assert_near(douts[0], central(lambda x: loss([x, outs[1]], lses), outs[0]))
    assert_near(dlses[1], central(lambda x: loss(outs, [lses[0], x]), lses[1]))

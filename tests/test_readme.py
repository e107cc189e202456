"""The README's Python runs as it stands, and its functions give what they say."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_observe as truth
import pytest

import jaxattn as ja

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
T, H = 64, 8
RANDOM = np.random.default_rng(0)
Q, K = (RANDOM.standard_normal((2, T, n, 16)).astype(np.float32) for n in (H, 4))


def start() -> dict[str, Any]:
    """The names that the README's examples take as given."""
    q, k = jnp.asarray(Q), jnp.asarray(K)
    x, w = jnp.ones((9, 48)), jnp.ones((48, 48))
    given: dict[str, Any] = {
        "ja": ja,
        "jax": jax,
        "jnp": jnp,
        "q": q,
        "k": k,
        "v": k,
        "sinks": jnp.zeros(H),
    }
    return given | {"x": x, "w_q": w, "w_k": w, "w_v": w, "w_o": w}


@cache
def names() -> dict[str, Any]:
    """What the blocks define, one after the other; the long one apart."""
    known = start()
    for block in BLOCKS:
        if "16384" not in block:
            exec(block, known)
    return known


def test_every_block_runs():
    assert len(BLOCKS) >= 6
    assert names()["dslope"].shape == (H,)


@pytest.mark.long
def test_the_block_of_16384_tokens_runs():
    (block,) = (block for block in BLOCKS if "16384" in block)
    known = {}
    exec(block, known)
    assert known["dq"].shape == (16384, 8, 64)
    assert np.isfinite(known["hvp"]).all()


@cache
def weights():
    return truth.weights(Q, K, oracle.causal(T, T, 0))


def test_qk_clip_brings_the_largest_logit_down_to_tau():
    tau = 1.5
    gamma = names()["qk_clip"](Q, K, tau)
    largest = truth.max_logit(weights())[0]
    assert (largest > tau).all()
    np.testing.assert_allclose(gamma * largest, tau, rtol=1e-5)
    np.testing.assert_array_equal(names()["qk_clip"](Q, K, 1e6), 1)


def test_low_entropy_is_zero_above_the_floor_and_falls_along_its_gradient():
    low_entropy = names()["low_entropy"]
    (entropy,) = truth.entropy(weights())
    np.testing.assert_allclose(low_entropy(Q, K, 2.0), np.maximum(2 - entropy, 0).mean(), rtol=1e-5)
    assert low_entropy(Q, K, -1.0) == 0
    dq = jax.grad(low_entropy)(jnp.asarray(Q), K, 3.0)
    assert low_entropy(Q - 10 * dq, K, 3.0) < low_entropy(Q, K, 3.0)


def test_heavy_hitters_receive_most():
    mass = truth.received(weights())[0].swapaxes(1, 2)
    want = np.argsort(-mass, axis=-1)[..., :5]
    np.testing.assert_array_equal(names()["heavy_hitters"](Q, K, 5), want)


def test_snapkv_scores_are_the_pooled_votes_of_the_last_queries():
    votes = weights().p[:, :, -8:].sum(2).swapaxes(1, 2)
    padded = np.pad(votes, ((0, 0), (1, 1), (0, 0)))
    want = np.max([padded[:, i : i + T] for i in range(3)], axis=0)
    np.testing.assert_allclose(names()["snapkv_scores"](Q, K, 8, 3), want, atol=1e-5)


def test_head_scores():
    got = names()["head_scores"](Q, K, 20)
    w = weights()
    np.testing.assert_allclose(got["previous"], truth.diagonal(w, -1)[0], atol=1e-5)
    np.testing.assert_allclose(got["induction"], truth.diagonal(w, -19)[0], atol=1e-5)
    np.testing.assert_allclose(got["sink"], w.p[..., :4].sum(-1).mean(-1), atol=1e-5)

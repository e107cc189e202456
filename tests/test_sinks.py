"""Sinks: logits of each head that join the denominator of the softmax and lse, and mix nothing."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import DTYPES, SMALL
from problem import Asked
from rules import both, causal, dense, everything, packed, window
from scored import bias, cap, chain, nothing
from small import H, K, Q, S, T, V, for_backends
from tolerance import assert_close

import jaxattn as ja
from jaxattn import observe as see

pytestmark = pytest.mark.sampled(4)

SINKS = np.array([0.3, -1.0, 2.0, 0.0, -40.0, 5.0], np.float32)


@for_backends
@pytest.mark.parametrize("mask", [everything, both(causal(-4), dense("hts"))], ids=["all", "some"])
def test_sinks_match_float64(mask, backend):
    Asked(SMALL.at(0), mask, sinks=0.5).check(backend)


@for_backends
@pytest.mark.parametrize("around", [1e4, -1e4], ids=str)
def test_sinks_of_great_size(around, backend):
    """A sink far above every logit takes all weight, one far below takes none."""
    Asked(SMALL.at(ja.END), causal(), sinks=around).check(backend)


@for_backends
@pytest.mark.parametrize("far", [-3e8, 3e8], ids=str)
def test_a_sink_far_from_every_logit_keeps_its_digits(far, backend):
    """And so do logits far above it: a sum with the larger one would round the smaller one away."""

    def attend(sinks):
        score = ja.Bias(np.float32(far))
        wanted = {"lse": see.LogSumExp(), "mass": see.MassOn(S)}
        return ja.attend(Q, K, V, score=score, sinks=sinks, observe=wanted, backend=backend)

    got = attend(jnp.asarray(SINKS))
    want = SINKS if far < 0 else np.float32(far)
    np.testing.assert_allclose(got.lse, np.broadcast_to(want, got.lse.shape), rtol=1e-6)
    np.testing.assert_array_equal(got.observed["lse"], got.lse)
    np.testing.assert_allclose(got.observed["mass"], float(far > 0), rtol=1e-5)
    plain = ja.attention(Q, K, V, score=ja.Bias(np.float32(far)), backend=backend)
    np.testing.assert_allclose(got.out, plain if far > 0 else 0 * plain, rtol=1e-6)
    slope = jax.grad(lambda sinks: attend(sinks).lse.sum())(jnp.asarray(SINKS))
    np.testing.assert_allclose(slope, np.full(H, 2.0 * T * (far < 0)), rtol=1e-6)


@for_backends
def test_sinks_beside_logits_of_great_size(backend):
    Asked(SMALL.at(ja.END), causal(), sinks=300.0, k_factor=200.0).check(backend)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.__name__)
def test_sinks_in_every_dtype(dtype):
    Asked(SMALL.at(0), window(4, 3), sinks=0.5, dtype=dtype).check(ja.Blockwise(4, 3))


@for_backends
def test_sinks_after_scores_and_before_dropout(backend):
    score = chain(bias("h1s"), cap())
    Asked(SMALL._replace(s=11), packed, score, sinks=1.0, rate=0.25).check(backend)


@pytest.mark.long
@for_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("score", [nothing, cap(), bias("bhts", 0.2)], ids=["none", "cap", "bias"])
def test_sinks_matrix(score, dtype, backend):
    for mask in (everything, both(causal(-4), dense("hts"))):
        for around in (0.0, 80.0, -80.0):
            Asked(SMALL.at(0), mask, score, around, dtype=dtype).check(backend)


@for_backends
def test_row_that_sees_no_key_has_the_sink_as_its_lse(backend):
    """And out 0; of its cotangents only that of lse moves anything, which is the sink."""
    given = {"mask": ja.Causal(-4), "positions": ja.Positions(0, 0), "backend": backend}
    attend = lambda q, k, v, sinks: ja.attend(q, k, v, sinks=sinks, **given)
    (out, lse, _), pull = jax.vjp(jax.jit(attend), *map(jnp.asarray, (Q, K, V, SINKS)))
    assert not np.asarray(out)[:, :4].any()
    np.testing.assert_array_equal(lse[:, :4], np.broadcast_to(SINKS, (2, 4, H)))
    cot_lse = np.zeros(lse.shape, np.float32)
    cot_lse[:, :4] = 1
    cot_out = np.zeros(out.shape, np.float32)
    cot_out[:, :4] = 3
    *dqkv, dsinks = pull(ja.Attended(jnp.asarray(cot_out), jnp.asarray(cot_lse)))
    assert not any(np.asarray(x).any() for x in dqkv)
    np.testing.assert_array_equal(dsinks, np.full(H, 8.0))


@for_backends
def test_no_keys_at_all(backend):
    sinks, empty = jnp.asarray(SINKS), slice(0, 0)
    out, lse, _ = ja.attend(Q, K[:, empty], V[:, empty], sinks=sinks, backend=backend)
    assert not np.asarray(out).any()
    np.testing.assert_array_equal(lse, np.broadcast_to(SINKS, (2, T, H)))


@for_backends
def test_sink_of_minus_infinity_is_none(backend):
    """In value and in gradient, also for a row that sees no key."""

    @jax.jit
    def run(sinks):
        def attend(q, k, v, sinks):
            given = {"mask": ja.Causal(-4), "positions": ja.Positions(0, 0)}
            return ja.attend(q, k, v, **given, sinks=sinks, backend=backend)

        result, pull = jax.vjp(attend, *map(jnp.asarray, (Q, K, V)), sinks)
        return result, pull(jax.tree.map(jnp.ones_like, result))

    (out, lse, _), (*pulled, dsinks) = run(jnp.full(H, -jnp.inf))
    allowed = oracle.causal(T, S, -4)
    want = oracle.attention(Q, K, V, allowed)
    naive = oracle.attention(Q, K, V, allowed, dtype=np.float32)
    assert_close(out, want[0], naive[0])
    assert_close(lse, want[1], naive[1])
    assert all(np.isfinite(x).all() for x in (*pulled, dsinks))


@for_backends
def test_a_sink_is_a_key_without_a_value(backend):
    """The same as one more key whose logit is the sink and whose value is 0."""
    with jax.enable_x64(True):
        q, k, v = (np.asarray(x, np.float64) for x in (Q, K, V))
        got = ja.attend(q, k, v, sinks=jnp.asarray(SINKS, jnp.float64), backend=backend)
        extra = np.zeros((H, 1, S + 1))
        extra[:, 0, 0] = SINKS
        padded = (np.concatenate([np.zeros_like(x[:, :1]), x], axis=1) for x in (k, v))
        want = ja.attend(q, *padded, score=ja.Bias(extra), backend=backend)
        for a, b in zip(got[:2], want[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@for_backends
def test_gradient_of_sinks_through_out_alone_and_lse_alone(backend):
    sinks = jnp.asarray(SINKS)
    for field in ("out", "lse"):
        attend = lambda sinks, field=field: getattr(
            ja.attend(Q, K, V, sinks=sinks, backend=backend), field
        )
        value, pull = jax.vjp(jax.jit(attend), sinks)
        cots = [np.zeros((*Q.shape[:-1], 7)), np.zeros(Q.shape[:-1])]
        cots[field == "lse"] += 1
        args = Q, K, V, None, None, *cots
        want, naive = (
            oracle.gradients(*args, dtype=d, extra=oracle.Extra(sinks=SINKS)).sinks
            for d in (np.float64, np.float32)
        )
        size = float(want.size.max())
        assert_close(pull(jnp.ones_like(value))[0], want.value, naive.value, size=size)

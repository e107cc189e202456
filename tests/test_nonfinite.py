"""NaN and Inf reach whoever may see them and nobody else, pair by pair."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import numpy as np
import oracle
import pytest
from small import (
    COT_LSE,
    COT_OUT,
    SEGMENT_IDS,
    B,
    H,
    K,
    N,
    Q,
    S,
    T,
    V,
    for_backends,
    hidden_rows,
    result_and_gradients,
)
from tolerance import assert_close

import jaxattn as ja

pytestmark = pytest.mark.sampled(3)

BAD = 5
HIDING = {
    "causal": (ja.Causal(), oracle.causal(T, S)),
    "window": (ja.Window(3, 3), oracle.window(T, S, 3, 3)),
    "lengths": (ja.Lengths(k=np.array([13, BAD])), oracle.lengths(T, S, k=np.array([13, BAD]))),
    "segments": (ja.Segments(*SEGMENT_IDS), oracle.segments(*SEGMENT_IDS)),
    "dense": (ja.Dense(hidden_rows([3, 10], 1)), hidden_rows([3, 10], 1)),
    "nobody": (ja.Lengths(k=BAD), oracle.lengths(T, S, k=BAD)),
}


SPOILT = [(where, bad) for where in ("key", "value", "both") for bad in (np.nan, np.inf, -np.inf)]


def spoil(where, bad):
    """K and V with `bad` all over one key, one value, or both."""
    k, v = K.copy(), V.copy()
    if where != "value":
        k[:, BAD] = bad
    if where != "key":
        v[:, BAD] = bad
    return k, v


def hiding(name):
    """The mask, its booleans, who sees the bad key, and cotangents that leave those out."""
    mask, allowed = HIDING[name]
    sees = np.broadcast_to(allowed, (B, H, T, S))[..., BAD].swapaxes(1, 2)
    assert not sees.all()
    cotangents = np.where(sees[..., None], 0, COT_OUT), np.where(sees, 0, COT_LSE)
    return mask, allowed, sees, cotangents


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("name", HIDING)
def test_non_finite_key_or_value_stays_out_of_results(name, backend):
    """It changes nothing for the queries that do not see it, and shows in those that do."""
    mask, allowed, sees, cotangents = hiding(name)
    want, low = (oracle.attention(Q, K, V, allowed, dtype=d) for d in (np.float64, np.float32))
    for where, bad in SPOILT:
        result, _ = result_and_gradients(backend, mask, Q, *spoil(where, bad), cotangents)
        for field, x, *leaves in zip(("out", "lse"), result[:2], want, low, strict=True):
            leaves = (np.asarray(y)[~sees] for y in (x, *leaves))
            assert_close(*leaves, what=f"{field} of who does not see the {where} {bad}")
        if where == "value" or np.isnan(bad):  # an infinite key may rightly get weight 0 or 1
            assert np.isnan(np.asarray(result.out)[sees]).all(), f"{where} {bad} must show"


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("name", HIDING)
def test_non_finite_key_or_value_stays_out_of_gradients(name, backend):
    """A loss on queries that do not see it has clean gradients in them and in all other keys."""
    mask, allowed, sees, cotangents = hiding(name)
    args = Q, K, V, allowed, None, *cotangents
    want, low = (oracle.gradients(*args, dtype=d) for d in (np.float64, np.float32))
    others = np.broadcast_to((np.arange(S) != BAD)[:, None], (B, S, N))
    for where, bad in SPOILT:
        _, pulled = result_and_gradients(backend, mask, Q, *spoil(where, bad), cotangents)
        for field, kept, *leaves in zip(
            "qkv", (~sees, others, others), pulled, want[:3], low[:3], strict=True
        ):
            leaves = (np.asarray(x)[kept] for x in leaves)
            assert_close(*leaves, what=f"d{field} beside a {where} {bad}")


@for_backends
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_visible_non_finite_value_is_nan_in_its_feature_only(bad, backend):
    v = V.copy()
    v[0, BAD, 1, 2] = bad
    given = {"mask": ja.Causal(), "positions": ja.Positions(0, 0), "backend": backend}
    out, lse, _ = ja.attend(Q, K, v, **given)
    want = np.array(ja.attention(Q, K, V, **given))
    want[0, BAD:, 2:4, 2] = np.nan  # key/value head 1 is read by query heads 2 and 3
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-7)
    assert np.isfinite(np.asarray(lse)).all()


@for_backends
def test_non_finite_query_stays_in_its_own_row(backend):
    q = Q.copy()
    q[0, 4, 2] = np.nan
    out, lse = (np.asarray(x) for x in ja.attend(q, K, V, backend=backend)[:2])
    clean = np.ones((B, T, H), bool)
    clean[0, 4, 2] = False
    want, naive = (oracle.attention(Q, K, V, dtype=d) for d in (np.float64, np.float32))
    assert_close(out[clean], want[0][clean], naive[0][clean])
    assert_close(lse[clean], want[1][clean], naive[1][clean])
    assert np.isnan(out[0, 4, 2]).all()


@for_backends
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("sinks", [None, np.float32([0.5, -1])], ids=["plain", "sinks"])
def test_logit_that_is_no_number_is_nan_in_its_own_row(bad, sinks, backend):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((5, 2, 4)).astype(np.float32) for _ in range(3))
    bias = np.zeros((2, 5, 5), np.float32)
    bias[1, 3, 2] = bad  # seen
    bias[0, 1, 4] = bad  # hidden
    given = {"mask": ja.Causal(), "sinks": sinks, "backend": backend}
    out, lse, _ = ja.attend(q, k, v, score=ja.Bias(bias), **given)
    row = np.zeros((5, 2), bool)
    row[3, 1] = True
    assert np.isnan(out[row]).all()
    assert np.isnan(lse[row]).all()
    plain = ja.attend(q, k, v, **given)
    np.testing.assert_array_equal(out[~row], plain.out[~row])
    np.testing.assert_array_equal(lse[~row], plain.lse[~row])


@for_backends
def test_queries_that_see_nothing_make_no_nan_for_debug_nans(backend):
    blind = ja.Dense(np.arange(T)[:, None] != 2)

    @jax.jit
    def run(q, k, v):
        loss = lambda q, k, v: ja.attention(q, k, v, mask=blind, backend=backend).sum()
        return ja.attend(q, k, v, mask=blind, backend=backend), jax.grad(loss, (0, 1, 2))(q, k, v)

    with jax.debug_nans(True):
        result, gradients = run(Q, K, V)
    assert np.isneginf(result.lse).any()
    assert all(np.isfinite(x).all() for x in (result.out, *gradients))

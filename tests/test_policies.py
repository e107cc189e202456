"""What holds at the edges: queries without keys, extreme logits, dtypes, blocks, empty axes."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import DTYPES
from small import (
    COT_LSE,
    COT_OUT,
    SEGMENT_IDS,
    B,
    D,
    E,
    H,
    K,
    N,
    Q,
    S,
    T,
    V,
    check_against_oracle,
    for_backends,
    hidden_rows,
    result_and_gradients,
    tangents,
)
from tolerance import assert_close

import jaxattn as ja

pytestmark = pytest.mark.sampled(6)

UNSEEING = {
    "dense": (ja.Dense(hidden_rows([3, 10], 1)), hidden_rows([3, 10], 1)),
    "segments": (ja.Segments(*SEGMENT_IDS), oracle.segments(*SEGMENT_IDS)),
    "no-keys": (ja.Lengths(k=0), np.zeros((T, S), bool)),
    "no-queries": (ja.Lengths(q=np.array([0, 4])), oracle.lengths(T, S, q=np.array([0, 4]))),
    "some-lengths": (ja.Lengths(k=np.array([0, 9])), oracle.lengths(T, S, k=np.array([0, 9]))),
    "window-left-behind": (ja.Window(2, 0, -6), oracle.window(T, S, 2, 0, -6)),
    "window-run-ahead": (ja.Window(1, 0, 9), oracle.window(T, S, 1, 0, 9)),
    "causal-behind": (ja.Causal(-4), oracle.causal(T, S, -4)),
    "causal-beyond": (ja.Causal(-50), oracle.causal(T, S, -50)),
    "disjoint": (ja.Causal(-3) & ja.Window(1, 5, 0), np.zeros((T, S), bool)),
}
RARE = ("no-queries", "window-run-ahead", "causal-beyond")
MOVED = ("dense", "segments", "causal-behind")  # where forward mode is compiled too


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=pytest.mark.long) if x in RARE else x for x in UNSEEING],
)
def test_query_that_sees_no_key(name, backend):
    """out 0, lse -inf, gradient and tangent 0, whatever its cotangents are."""
    mask, allowed = UNSEEING[name]
    blind = ~np.broadcast_to(allowed, (B, H, T, S)).swapaxes(1, 2).any(-1)
    assert blind.any()
    result, pulled = result_and_gradients(backend, mask, Q, K, V, (COT_OUT, COT_LSE))
    assert not np.asarray(result.out)[blind].any()
    assert (np.asarray(result.lse)[blind] == -np.inf).all()
    assert not np.asarray(pulled[0])[blind].any()
    if name in MOVED:
        for x in tangents(backend, mask, Q, K, V)[:2]:
            assert not np.asarray(x)[blind].any()
    check_against_oracle(backend, mask, allowed)


@for_backends
def test_infinite_scores_of_what_is_blind_do_not_stop_a_loss_on_lse(backend):
    """A loss that leaves -inf aside has finite gradients."""

    def loss(q):
        given = {"mask": ja.Causal(-4), "positions": ja.Positions(0, 0), "backend": backend}
        lse = ja.attend(q, K, V, **given).lse
        return jnp.where(lse == -jnp.inf, 0, lse).sum()

    got = np.asarray(jax.grad(loss)(jnp.asarray(Q)))
    assert np.isfinite(got).all()
    assert got[:, 5:].any()
    assert not got[:, :4].any()


@for_backends
@pytest.mark.parametrize("size", [1e4, 120.0], ids=["1e4", "120"])
def test_logits_of_great_size(size, backend):
    """Logits of both signs up to ±size, and rows whose lse is far below -88."""
    k = K * np.float32(size / np.abs(oracle.by_head(Q, K, V, np.float64)[0]).max() / 5**0.5)
    k[1] = -np.abs(k[1])
    q = Q.copy()
    q[1] = np.abs(q[1])
    lse = np.asarray(ja.attend(q, k, V, backend=backend).lse)
    assert lse[1].min() < -88 or size < 200
    check_against_oracle(backend, ja.EVERYTHING, None, q, k)


@for_backends
def test_lse_far_below_what_exp_can_hold(backend):
    """exp(lse) is 0 in float32 for every query; the gradients are those of a plain softmax."""
    q, k = Q.copy(), K.copy()
    q[..., 0], k[..., 0] = 30.0, -30.0
    _, lse, _ = ja.attend(q, k, V, backend=backend)
    assert np.asarray(lse).max() < -300
    check_against_oracle(backend, ja.EVERYTHING, None, q, k)


@for_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_result_dtypes(dtype, backend):
    with jax.enable_x64(dtype == np.float64):
        q, k, v = (jnp.asarray(x.astype(dtype)) for x in (Q, K, V))
        (out, lse, _), pull = jax.vjp(jax.jit(partial(ja.attend, backend=backend)), q, k, v)
        grads = pull(ja.Attended(out, lse))
    assert out.dtype == dtype
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert [g.dtype for g in grads] == [dtype] * 3


@for_backends
def test_float64_to_its_own_precision(backend):
    q, k, v = (x.astype(np.float64) for x in (Q, K, V))
    with jax.enable_x64(True):
        out, lse, _ = ja.attend(q, k, v, backend=backend)
    want = oracle.attention(q, k, v)
    for got, truth in zip((out, lse), want, strict=True):
        np.testing.assert_allclose(got, truth, rtol=1e-12, atol=1e-13)


@for_backends
def test_half_precision_is_summed_in_float32(backend):
    """The mean of 4096 ones and one 256 is exact in float32 and far off in bfloat16."""
    v = np.ones((4096, 1, 1), ml_dtypes.bfloat16)
    v[0] = 256
    q, k = np.zeros((1, 1, 8), v.dtype), np.zeros((4096, 1, 8), v.dtype)
    out, lse, _ = ja.attend(q, k, v, backend=backend)
    assert out[0, 0, 0] == np.array(1 + 255 / 4096).astype(v.dtype)
    np.testing.assert_allclose(lse, np.log(4096), rtol=1e-6)


BLOCKS = [(1, 1), (2, 3), (10, 12), (64, 64)]
MORE_BLOCKS = [(1, 13), (11, 1), (7, 7), (11, 13), (None, 3), (3, None)]


@pytest.mark.parametrize(
    "blocks", [*BLOCKS, *(pytest.param(b, marks=pytest.mark.long) for b in MORE_BLOCKS)], ids=str
)
def test_blocks_change_nothing(blocks):
    """Of size 1, of the length, just below it and far above it."""
    mask, allowed = ja.Causal(-1) & ja.Lengths(k=8), oracle.causal(T, S, -1)
    allowed = allowed & oracle.lengths(T, S, k=8)
    check_against_oracle(ja.Blockwise(*blocks), mask, allowed)


EMPTY = {
    "batch": ((0, T, H, D), (0, S, N, D), (0, S, N, E)),
    "one-of-the-batch-axes": ((2, 0, T, H, D), (2, 0, S, N, D), (2, 0, S, N, E)),
    "queries": ((B, 0, H, D), (B, S, N, D), (B, S, N, E)),
    "keys": ((B, T, H, D), (B, 0, N, D), (B, 0, N, E)),
    "queries-and-keys": ((B, 0, H, D), (B, 0, N, D), (B, 0, N, E)),
}


@for_backends
@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("mask", [ja.EVERYTHING, ja.Causal() & ja.Window(3, 3)], ids=repr)
def test_empty_axes(name, mask, backend):
    """No keys: every query is one that sees no key. No queries: nothing moves the keys."""
    q, k, v = (jnp.ones(shape) for shape in EMPTY[name])
    cotangents = jnp.ones((*q.shape[:-1], E)), jnp.ones(q.shape[:-1])
    result, pulled = result_and_gradients(backend, mask, q, k, v, cotangents)
    for attended in (result, tangents(backend, mask, q, k, v)):
        assert attended.out.shape == (*q.shape[:-1], E)
        assert attended.lse.shape == q.shape[:-1]
    assert not np.asarray(result.out).any()
    assert (np.asarray(result.lse) == -np.inf).all()
    for x, gradient in zip((q, k, v), pulled, strict=True):
        assert gradient.shape == x.shape
        assert not np.asarray(gradient).any()


@for_backends
def test_packed_segments_equal_separate_sequences(backend):
    cuts = [(0, 4), (4, 9), (9, 11)]
    ids = np.repeat([0, 1, 2], [4, 5, 2])
    k, v = K[:, :T], V[:, :T]
    packed = ja.attention(Q, k, v, mask=ja.Segments(ids) & ja.Causal(), backend=backend)
    for start, stop in cuts:
        part = slice(start, stop)
        alone = Q[:, part], k[:, part], v[:, part]
        allowed = oracle.causal(stop - start, stop - start)
        want, naive = (oracle.attention(*alone, allowed, dtype=d)[0] for d in (float, np.float32))
        assert_close(packed[:, part], want, naive)


@for_backends
def test_decoding_step_by_step_equals_one_pass(backend):
    """Chunks of queries against all keys so far, aligned at the end, are rows of the whole."""
    k, v = K[:, :T], V[:, :T]
    whole = ja.attention(Q, k, v, mask=ja.Causal(), backend=backend)
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        given = {"mask": ja.Causal(), "positions": ja.END, "backend": backend}
        part = ja.attention(Q[:, start:stop], k[:, :stop], v[:, :stop], **given)
        np.testing.assert_allclose(part, whole[:, start:stop], rtol=2e-5, atol=2e-6)


@for_backends
@pytest.mark.parametrize(("d", "e"), [(0, 3), (3, 0)])
def test_no_features(d, e, backend):
    """Keys that nothing tells apart are mixed evenly; with nothing to mix, lse is as ever."""
    q, k = np.ones((5, 2, d), np.float32), np.ones((7, 2, d), np.float32)
    v = np.arange(7 * 2 * e, dtype=np.float32).reshape(7, 2, e)
    (out, lse, _), pull = jax.vjp(lambda v: ja.attend(q, k, v, backend=backend, scale=1.0), v)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(axis=0), (5, 2, e)), rtol=1e-6)
    np.testing.assert_allclose(lse, np.full((5, 2), d + np.log(7)), rtol=1e-6)
    (dv,) = pull(ja.Attended(jnp.ones_like(out), jnp.zeros_like(lse)))
    np.testing.assert_allclose(dv, np.full((7, 2, e), 5 / 7), rtol=1e-6)

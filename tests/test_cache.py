"""Decoding from a cache gives what attention over all tokens gives, however they come."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tolerance import assert_close

import jaxattn as ja
from jaxattn import cache as kv
from jaxattn import observe as see

pytestmark = pytest.mark.sampled(4)

B, T, H, N, D, E = 2, 23, 4, 2, 5, 3
RANDOM = np.random.default_rng(0)
Q, K, V = (
    RANDOM.standard_normal((B, T, n, d)).astype(np.float32) for n, d in ((H, D), (N, D), (N, E))
)
CHUNKS = ((T,), (1,) * T, (7, 1, 9, 6), (12, 11))
RINGS = ((None, T), (None, 64), (5, 5), (5, 9), (5, 64), (1, 1))


def fed(cache, chunks, q, k, v):
    """The outputs of all tokens, given in chunks."""
    outs, first = [], 0
    for n in chunks:
        new = slice(first, first + n)
        got, cache = kv.attend(q[:, new], k[:, new], v[:, new], cache)
        outs.append(got.out)
        first += n
    return jnp.concatenate(outs, axis=1), cache


def expected(window, dtype=np.float64):
    seen = oracle.causal(T, T, 0) if window is None else oracle.window(T, T, window - 1)
    q, k, v = oracle.by_head(Q, K, V, dtype)
    p, *_ = oracle.softmax(q @ k.swapaxes(-1, -2) * dtype(D**-0.5), seen)
    return (p @ v).swapaxes(1, 2)


@pytest.mark.covered
@pytest.mark.parametrize("chunks", CHUNKS, ids=len)
@pytest.mark.parametrize(("window", "capacity"), RINGS)
def test_chunks_and_steps_are_one_prefill(window, capacity, chunks):
    cache = kv.empty((B,), capacity, N, D, E, window=window)
    got, cache = fed(cache, chunks, Q, K, V)
    assert_close(got, expected(window), expected(window, np.float32))
    np.testing.assert_array_equal(cache.length, T)
    held = sorted(x for x in np.asarray(cache.slots())[0] if x >= 0)
    assert held == list(range(T))[-capacity:]


@pytest.mark.parametrize("window", [None, 5])
def test_gradients_do_not_depend_on_how_tokens_come(window):
    def loss(chunks, q, k, v):
        out, _ = fed(kv.empty((B,), 32, N, D, E, window=window), chunks, q, k, v)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    def whole(q, k, v):
        mask = ja.Causal() if window is None else ja.Window(window - 1)
        out = ja.attention(q, k, v, mask=mask)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    want = jax.jit(jax.grad(whole, (0, 1, 2)))(Q, K, V)
    for chunks in ((T,), (7, 1, 15)):
        got = jax.jit(jax.grad(partial(loss, chunks), (0, 1, 2)))(Q, K, V)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_single_steps_in_a_scan_are_one_compiled_step():
    def step(cache, token):
        got, cache = kv.attend(*(x[:, None] for x in token), cache)
        return cache, got.out[:, 0]

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (Q, K, V))
    cache, outs = jax.jit(lambda c: jax.lax.scan(step, c, tokens))(kv.empty((B,), 64, N, D, E))
    assert_close(jnp.moveaxis(outs, 0, 1), expected(None), expected(None, np.float32))
    np.testing.assert_array_equal(cache.length, T)


@pytest.mark.parametrize("window", [None, 4])
def test_sequences_of_different_lengths(window):
    """Padded chunks: padding is not kept, gives 0, and what follows is as without it."""
    counts = np.array([[3, 6], [5, 1], [0, 4]])
    cache = kv.empty((B,), 16, N, D, E, window=window)
    at, mask = np.zeros(B, int), ja.Causal() if window is None else ja.Window(window - 1)
    for count in counts:
        q, k, v = (np.full((B, 6, *x.shape[2:]), 7, np.float32) for x in (Q, K, V))
        for b in range(B):
            for new, x in ((q, Q), (k, K), (v, V)):
                new[b, : count[b]] = x[b, at[b] : at[b] + count[b]]
        got, cache = kv.attend(q, k, v, cache, count=count)
        for b in range(B):
            stop = at[b] + count[b]
            want = ja.attention(*(x[b, :stop] for x in (Q, K, V)), mask=mask)
            np.testing.assert_allclose(got.out[b, : count[b]], want[at[b] :], atol=1e-5)
        np.testing.assert_array_equal(got.out[np.arange(6) >= count[:, None]], 0)
        at += count
        np.testing.assert_array_equal(cache.length, at)


def test_padding_beyond_the_capacity_is_padding():
    cache = kv.append(kv.empty((B,), 8, N, D, E), K[:, :6], V[:, :6])
    for attend in (kv.attend, jax.jit(kv.attend)):
        got, after = attend(Q[:, 6:10], K[:, 6:10], V[:, 6:10], cache, count=np.array([2, 0]))
        np.testing.assert_array_equal(got.out[:, 2:], 0)
        np.testing.assert_array_equal(got.lse[:, 2:], -np.inf)
        assert np.isfinite(got.out).all()
        np.testing.assert_array_equal(after.length, [8, 6])


def test_positions_are_those_of_the_next_tokens():
    cache = kv.append(kv.empty((B,), 9, N, D, E), K[:, :4], V[:, :4], count=np.array([1, 4]))
    np.testing.assert_array_equal(cache.positions(3), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(cache.slots()[0], [0, *[-1] * 8])


def test_overflow_is_an_error_outside_jit():
    cache = kv.append(kv.empty((B,), 4, N, D, E), K[:, :3], V[:, :3])
    with pytest.raises(ValueError, match=r"capacity 4 cannot hold 5 tokens.*window"):
        kv.append(cache, K[:, :2], V[:, :2])


def test_overflow_is_nan_inside_jit_and_spoils_nothing_else():
    step = jax.jit(lambda cache, *x: kv.attend(*x, cache))
    cache = kv.append(kv.empty((B,), 6, N, D, E), K[:, :3], V[:, :3], count=np.array([3, 1]))
    got, cache = step(cache, *(x[:, 3:8] for x in (Q, K, V)))
    assert np.isnan(got.out[0, 3:]).all()
    assert np.isnan(got.lse[0, 3:]).all()
    assert np.isfinite(got.out[0, :3]).all()
    assert np.isfinite(got.out[1]).all()  # this sequence fits
    np.testing.assert_array_equal(cache.length, [8, 6])
    np.testing.assert_array_equal(cache.k[0], K[0, :6])
    want = ja.attention(*(x[:1, :6] for x in (Q, K, V)), mask=ja.Causal())
    np.testing.assert_allclose(got.out[0, :3], want[0, 3:6], atol=1e-5)
    got, _ = step(cache, *(x[:, 3:8] for x in (Q, K, V)))
    assert np.isnan(got.out).all()


def test_options_and_observations_go_through():
    sinks, slopes = jnp.arange(4.0), jnp.linspace(0.1, 0.4, H)
    cache = kv.append(kv.empty((B,), 64, N, D, E), K[:, :20], V[:, :20])
    got, _ = kv.attend(
        *(x[:, 20:] for x in (Q, K, V)),
        cache,
        score=ja.ALiBi(slopes),
        sinks=sinks,
        observe={"top": see.TopKeys(3)},
    )
    given = {"mask": ja.Causal(), "score": ja.ALiBi(slopes), "positions": ja.END}
    wanted = {"top": see.TopKeys(3)}
    want = ja.attend(Q[:, 20:], K, V, **given, sinks=sinks, observe=wanted)
    np.testing.assert_allclose(got.out, want.out, atol=1e-5)
    np.testing.assert_array_equal(got.observed["top"].keys, want.observed["top"].keys)


OPEN = {
    "causal": {"mask": ja.Causal()},
    "alibi": {"mask": ja.Causal(), "score": ja.ALiBi()},
    "window": {"mask": ja.Window(4, 2)},
    "inside": {"mask": ja.Window(2) | ~ja.Window(6) & ja.PrefixLM(3), "score": [ja.ALiBi()]},
}


@pytest.mark.parametrize("options", OPEN.values(), ids=OPEN)
def test_options_go_by_the_positions_of_the_new_tokens(options):
    """Of sequences with different lengths, each its own."""
    cache = kv.empty((B,), 32, N, D, E)
    held = np.array([9, 4])
    cache = kv.append(cache, K[:, :9], V[:, :9], count=held)
    new = np.stack([np.arange(n, n + 6) for n in held])[..., None, None]
    q, k, v = (np.take_along_axis(x, new, 1) for x in (Q, K, V))
    got, _ = kv.attend(q, k, v, cache, **options, observe={"distance": see.Distance()})
    for b, n in enumerate(held):
        whole = (x[b, : n + 6] for x in (Q, K, V))
        mask = options["mask"] & ja.Causal()
        want = ja.attend(*whole, **options | {"mask": mask}, observe={"distance": see.Distance()})
        np.testing.assert_allclose(got.out[b], want.out[n:], atol=1e-5)
        seen, expected = got.observed["distance"], want.observed["distance"]
        np.testing.assert_allclose(seen.mean[b], expected.mean[n:], atol=1e-4)


TABLE = RANDOM.standard_normal((6, H)).astype(np.float32)
RINGED = {
    "causal": {"mask": ja.Causal()},
    "window": {"mask": ja.Window(2)},
    "not near": {"mask": ja.Window(4) & ~ja.Window(1)},
    "prefix": {"mask": ja.PrefixLM(np.array([11, 3])) & ~ja.Window(0)},
    "where": {"mask": ja.Where(lambda at: (at.k % 3 != at.batch[0]) | (at.q - at.k == at.head))},
    "alibi": {"score": ja.ALiBi()},
    "learnt alibi": {"score": [ja.ALiBi(TABLE[0]), ja.SoftCap(2.0)]},
    "relative": {"score": ja.RelativeBias(TABLE, max_distance=4)},
    "function": {"score": lambda x, at: x * jnp.asarray(TABLE)[at.k % 6, at.head] - at.q % 2},
}


@pytest.mark.parametrize("options", RINGED.values(), ids=RINGED)
def test_masks_and_scores_keep_their_meaning_in_a_ring(options):
    cache, outs = kv.empty((B,), 6, N, D, E, window=5), []
    for first, n in ((0, 9), (9, 1), (10, 2), (12, 11)):
        new = slice(first, first + n)
        got, cache = kv.attend(Q[:, new], K[:, new], V[:, new], cache, **options)
        outs.append(got.out)
    mask = options.get("mask", ja.EVERYTHING) & ja.Window(4)
    want = ja.attention(Q, K, V, **options | {"mask": mask})
    np.testing.assert_allclose(jnp.concatenate(outs, 1), want, atol=1e-5)


@pytest.mark.parametrize(
    "score", [ja.ALiBi, lambda x: lambda s, at: s - x[at.head] * at.k], ids=["alibi", "function"]
)
def test_gradients_in_a_ring_of_sequences_with_different_lengths(score):
    def ring(slopes):
        cache = kv.empty((B,), 6, N, D, E, window=5)
        held, out = np.array([9, 4]), []
        _, cache = kv.attend(*(x[:, :9] for x in (Q, K, V)), cache, count=held)
        for i in range(4):
            at = (held + i)[:, None, None, None]
            new = (np.take_along_axis(x, at, 1) for x in (Q, K, V))
            got, cache = kv.attend(*new, cache, score=score(slopes))
            out.append(got.out)
        return jnp.concatenate(out, 1)

    def plain(slopes):
        out = ja.attention(Q, K, V, mask=ja.Window(4), score=score(slopes))
        return jnp.stack([out[0, 9:13], out[1, 4:8]])

    for f in (lambda x: x, lambda f: jax.grad(lambda x: jnp.square(f(x)).sum())):
        got, want = (jax.jit(f(one))(jnp.asarray(TABLE[1])) for one in (ring, plain))
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


def test_batch_axes_half_precision_and_vmap():
    cache = kv.empty((), 32, N, D, E, dtype=jnp.bfloat16)
    got, cache = kv.attend(Q[0], K[0], V[0], cache)
    assert got.out.dtype == np.float32
    assert cache.k.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.out, expected(None)[0], atol=0.05)
    each = jax.vmap(lambda *x: kv.attend(*x, kv.empty((), 32, N, D, E))[0].out)(Q, K, V)
    assert_close(each, expected(None), expected(None, np.float32))
    nested = kv.empty((1, B), 32, N, D, E)
    got, _ = kv.attend(Q[None], K[None], V[None], nested)
    assert_close(got.out[0], expected(None), expected(None, np.float32))


def test_errors():
    with pytest.raises(ValueError, match="at least 1, got capacity=0"):
        kv.empty((), 0, N, D)
    with pytest.raises(ValueError, match="window is from 1 to the capacity"):
        kv.empty((), 4, N, D, window=5)
    cache = kv.empty((B,), 8, N, D, E)
    with pytest.raises(ValueError, match="k of new tokens has the batch"):
        kv.append(cache, K[:1], V[:1])
    with pytest.raises(ValueError, match="a key and a value"):
        kv.append(cache, K[:, :4], V[:, :1])
    with pytest.raises(ValueError, match="a query, a key and a value"):
        kv.attend(Q[:, :3], K[:, :4], V[:, :4], cache)
    with pytest.raises(ValueError, match="integers"):
        kv.append(cache, K, V, count=np.ones(B))

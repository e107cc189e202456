"""Offsets, lengths, ids and positions of any integer dtype and any size mean what they say."""

# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from small import BACKENDS, RNG, H, K, N, Q, S, T, V, check_against_oracle
from tolerance import assert_close

import jaxattn as ja

NARROW = ["int8", "int16", "int32", "uint8", "uint16", "uint32"]
DTYPES = [*NARROW, "int64", "uint64"]
MOST, BEYOND = 2**31 - 1, 2**40
FROM_0 = ja.Positions(0, 0)
for_backends = pytest.mark.parametrize("backend", BACKENDS, ids=repr)
for_dtypes = pytest.mark.parametrize("dtype", DTYPES)

# A mask and positions of what is given in some dtype, and the pairs that they allow.
OF_DTYPE = {
    "causal": (lambda x: (ja.Causal(), ja.Positions(x(1))), oracle.causal(T, S, 1)),
    "causal-each": (
        lambda x: (ja.Causal(), ja.Positions(x([0, 3]))),
        oracle.causal(T, S, np.array([0, 3])),
    ),
    "window": (
        lambda x: (ja.Window(3, 1), ja.Positions(x([0, 2]))),
        oracle.window(T, S, 3, 1, np.array([0, 2])),
    ),
    "wide": (lambda x: (ja.Window(300, 200), ja.Positions(x([0, 2]))), None),
    "widest-left": (lambda x: (ja.Window(MOST, 0), ja.Positions(x(2))), oracle.causal(T, S, 2)),
    "widest-right": (lambda x: (ja.Window(None, BEYOND), ja.Positions(x(2))), None),
    "later-keys": (lambda x: (ja.Causal(), ja.Positions(x(3), x(1))), oracle.causal(T, S, 2)),
    "prefix": (
        lambda x: (ja.PrefixLM(x([4, 0])), ja.Positions(x(1))),
        oracle.prefix(1 + np.arange(T), np.arange(S), np.array([4, 0])),
    ),
    "lengths": (
        lambda x: (ja.Lengths(x(9), x([5, 13])), None),
        oracle.lengths(T, S, 9, np.array([5, 13])),
    ),
    "segments": (
        lambda x: (ja.Segments(x(np.arange(T) // 4), x(np.arange(S) // 4)), None),
        oracle.segments(np.arange(T) // 4, np.arange(S) // 4),
    ),
    "positions": (
        lambda x: (ja.Causal(), ja.Positions(x(np.arange(T)), x(np.arange(S)[::-1]))),
        oracle.near(np.arange(T), np.arange(S)[::-1], None, 0),
    ),
}

# Two segments, whose ids are the same in the last 32 bits, and padding.
APART = np.where(np.arange(T) == 3, -BEYOND, np.arange(T) % 2 * 2**32), np.arange(S) % 2 * 2**32

# Numbers that no index holds, and numbers at its edge.
EXTREME = {
    "hides-nothing-right": (ja.Window(None, MOST), ja.Positions(jnp.int32(3)), None),
    "hides-nothing": (ja.Window(BEYOND, BEYOND), ja.Positions(jnp.int32(-3)), None),
    "left": (ja.Window(MOST, 0), ja.Positions(jnp.int32(-3)), oracle.causal(T, S, -3)),
    "left-static": (ja.Window(BEYOND, 0), FROM_0, oracle.causal(T, S)),
    "left-of-every-token": (
        ja.Window(BEYOND, 0),
        ja.Positions(0, np.arange(S) + 2**29 - S),
        np.zeros((1, T, S), bool),
    ),
    "right-of-every-token": (ja.Window(0, BEYOND), ja.Positions(-(2**29), np.arange(S)), None),
    "offset": (ja.Window(2, 1, BEYOND), FROM_0, oracle.window(T, S, 2, 1, BEYOND)),
    "offset-back": (ja.Window(2, BEYOND, -MOST), FROM_0, None),
    "least": (ja.Causal(), ja.Positions(jnp.int32(-(2**31))), np.zeros((1, T, S), bool)),
    "most": (ja.Causal(), ja.Positions(jnp.uint32(2**32 - 1)), None),
    "apart": (ja.Causal(), ja.Positions(2**29, -(2**29)), None),
    "prefix": (ja.PrefixLM(BEYOND), FROM_0, None),
    "too-far-back": (
        ja.Causal(-BEYOND),
        ja.Positions(2**29, np.full(S, -(2**29))),
        np.zeros((1, T, S), bool),
    ),
    "prefix-of-the-farthest": (ja.PrefixLM(BEYOND), ja.Positions(0, np.full(S, 2**29)), None),
    "prefix-of-every-token": (ja.PrefixLM(BEYOND), ja.Positions(0, np.arange(S)), None),
    "lengths": (
        ja.Lengths(k=np.array([BEYOND, 5])),
        None,
        oracle.lengths(T, S, None, np.array([BEYOND, 5])),
    ),
    "ids": (
        ja.Segments(BEYOND + np.arange(T) // 4, BEYOND + np.arange(S) // 4),
        None,
        oracle.segments(np.arange(T) // 4, np.arange(S) // 4),
    ),
    "ids-apart": (
        ja.Segments(*APART),
        None,
        oracle.segments(*APART),
    ),
    "ids-unsigned": (
        ja.Segments(jnp.uint32(2**31 + np.arange(T) // 4), jnp.uint32(2**31 + np.arange(S) // 4)),
        None,
        oracle.segments(np.arange(T) // 4, np.arange(S) // 4),
    ),
}


def check(case, backend):
    mask, positions, allowed = case
    out, naive = (oracle.attention(Q, K, V, allowed, dtype=x)[0] for x in (np.float64, np.float32))

    def attend(mask, positions):
        return ja.attention(Q, K, V, mask=mask, positions=positions, backend=backend)

    assert_close(attend(mask, positions), out, naive)
    if any(isinstance(x, np.ndarray) for x in jax.tree.leaves((mask, positions))):
        return  # `jax.jit` would cut them off
    got = jax.jit(attend)(mask, positions)
    assert_close(got, out, naive, what="result where the mask is traced")


@pytest.mark.covered
@for_backends
@for_dtypes
@pytest.mark.parametrize("name", OF_DTYPE)
def test_dtypes(name, dtype, backend):
    build, allowed = OF_DTYPE[name]
    with jax.enable_x64(dtype in ("int64", "uint64")):
        check((*build(lambda x: jnp.asarray(x, dtype)), allowed), backend)


@pytest.mark.sampled(6)
@for_backends
@pytest.mark.parametrize("name", EXTREME)
def test_extremes(name, backend):
    check(EXTREME[name], backend)


@for_backends
def test_wide_ids_while_tracing(backend):
    with jax.enable_x64():
        check((ja.Segments(*map(jnp.asarray, APART)), None, oracle.segments(*APART)), backend)


@pytest.mark.parametrize("dtype", ["int16", "uint32"])
def test_gradients(dtype):
    positions = ja.Positions(jnp.asarray(1, dtype))
    allowed = oracle.causal(T, S, 2)
    check_against_oracle(ja.Blockwise(4, 3), ja.Window(MOST, 1), allowed, positions=positions)


@pytest.mark.sampled(8)
@for_backends
@for_dtypes
def test_scores_go_by_positions(dtype, backend):
    table = RNG.standard_normal((8, H)).astype(np.float32)
    with jax.enable_x64(dtype in ("int64", "uint64")):
        starts = jnp.asarray(2, dtype), 2, 2 + np.arange(T)
        for score in (ja.ALiBi(), ja.RelativeBias(table, max_distance=9)):
            got = [
                ja.attention(Q, K, V, score=score, positions=ja.Positions(x), backend=backend)
                for x in starts
            ]
            np.testing.assert_array_equal(got[0], got[1])
            np.testing.assert_allclose(got[2], got[1], rtol=1e-5, atol=1e-6)


def test_relative_bias_far_away():
    table = RNG.standard_normal((8, H)).astype(np.float32)
    score = ja.RelativeBias(table, max_distance=9)
    got, want = (
        ja.attention(Q, K, V, score=score, positions=ja.Positions(x))
        for x in (jnp.int32(MOST), 1000)
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("x64", [False, True])
def test_lengths_mapped(x64):
    lengths = jnp.asarray([5, 13], jnp.int32)
    with jax.enable_x64(x64):
        one = lambda q, k, v, n: ja.attention(q, k, v, mask=ja.Lengths(k=n))
        got = jax.vmap(one)(Q, K, V, lengths)
    out, naive = (
        oracle.attention(Q, K, V, oracle.lengths(T, S, None, np.array([5, 13])), dtype=x)[0]
        for x in (np.float64, np.float32)
    )
    assert_close(got, out, naive)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("count", [None, np.uint8(4), 4, np.int64(4)])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("batch", [(), (1,)])
def test_caches_under_x64(batch, window, count):
    k = np.broadcast_to(K[0, :4], (*batch, 4, *K.shape[2:]))
    q = np.broadcast_to(Q[0, :4], (*batch, 4, *Q.shape[2:]))
    want = ja.attention(q, k, k, mask=ja.Causal())
    with jax.enable_x64():
        empty = ja.cache.empty(batch, 8, N, K.shape[-1], window=window)
        got, cache = ja.cache.attend(q, k, k, empty, count=count)
    np.testing.assert_allclose(got.out, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(cache.length, np.full(batch, 4))


def test_what_does_not_fit_is_an_error():
    far = np.arange(T) + BEYOND
    with pytest.raises(ValueError, match="subtract what q and k have in common"):
        ja.attention(Q, K[:, :T], V[:, :T], positions=ja.Positions(far, far))
    with pytest.raises(ValueError, match="up to 536,870,912 either way, got 1099511627776"):
        ja.attention(Q, K, V, score=ja.ALiBi(), positions=ja.Positions(BEYOND))
    with pytest.raises(ValueError, match="subtract a number from all of them"):
        ja.rope.apply_rope(Q[..., :4], far, ja.rope.Rope(4))

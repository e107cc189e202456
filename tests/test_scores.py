"""Scores on every backend: results and the gradient of every array, against float64."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportMissingImports=false

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, SMALL
from catalogue import BY_POSITION, SCORES
from oracle import scores as theirs
from problem import Asked
from rules import both, causal, shuffled, window
from rules import dense as dense_mask
from scored import Scored, bucket_of
from small import BACKENDS, for_backends

import jaxattn as ja
from jaxattn.scores import relative_buckets

pytestmark = pytest.mark.sampled(5)

TILED = ja.Blockwise(q_block=4, k_block=3)
RANK_2 = SMALL._replace(batch=(2, 3))
END = SMALL.at(ja.END)
STARTS = SMALL.at(np.array([-2, 5], np.int32))
TOKENS = shuffled(SMALL)
MASK = both(causal(), dense_mask("ts", 0.8))

TELLING = ("bias-bhts", "bias-h1s", "alibi", "relative-causal", "function-of-head-and-key")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", SCORES)
def test_score_matches_float64(name):
    Asked(END, MASK, SCORES[name]).check(TILED)


@pytest.mark.parametrize("shape", [STARTS, TOKENS], ids=["starts", "tokens"])
@pytest.mark.parametrize("name", BY_POSITION)
def test_score_by_positions(name, shape):
    Asked(shape, MASK, SCORES[name]).check(TILED)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != TILED], ids=repr)
@pytest.mark.parametrize("name", [*TELLING, "bias-gate-cap-bias"])
def test_score_on_every_backend(name, backend):
    Asked(END, causal(), SCORES[name]).check(backend)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", ["bias-hts", "function-and-relative"])
def test_score_in_every_dtype(name, dtype):
    """A bias has the dtype of q here, and so has its gradient."""
    Asked(END, MASK, SCORES[name], dtype=dtype).check(TILED)


PARTIAL = [(1, 3, 6, 11, 13), (2, 1, 1, 11, 1), (3, 1, 1, 13)]


@pytest.mark.parametrize("shape", PARTIAL, ids=str)
def test_bias_that_broadcasts_in_part_over_a_batch_of_rank_2(shape):
    def build(_, rng, dtype):
        array = rng.standard_normal(shape).astype(dtype)
        return Scored((array,), lambda x: [ja.Bias(x[0])], lambda x: [theirs.Bias(x[0])])

    Asked(RANK_2.at(ja.END), causal(), build).check(TILED)


@pytest.mark.long
@for_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", SCORES)
def test_score_matrix(name, dtype, backend):
    shapes = [SMALL.at(0), SMALL._replace(batch=(), t=13, s=11).at(0)]
    for shape in shapes + [STARTS, TOKENS] * (name in BY_POSITION):
        mask = causal() if shape.batch else both(causal(), window(9))
        Asked(shape, mask, SCORES[name], 0.5, dtype=dtype).check(backend)


@for_backends
def test_a_row_that_a_bias_hides_is_one_that_sees_no_key(backend):
    """out 0, lse -inf, and finite gradients that are 0 for the row and for what is hidden."""
    rng = np.random.default_rng(0)
    shapes = SMALL.q, SMALL.k, SMALL.v
    q, k, v = (jnp.asarray(rng.standard_normal(x), jnp.float32) for x in shapes)
    array = rng.standard_normal((SMALL.h, SMALL.t, SMALL.s)).astype(np.float32)
    array[2, 4], array[:, 7, 3] = -np.inf, -np.inf

    @jax.jit
    def run(q, k, v, array):
        attend = lambda q, k, v, x: ja.attend(q, k, v, score=ja.Bias(x), backend=backend)
        result, pull = jax.vjp(attend, q, k, v, array)
        return result, pull(jax.tree.map(jnp.ones_like, result))

    result, (dq, *others, dbias) = run(q, k, v, jnp.asarray(array))
    assert not np.asarray(result.out)[:, 4, 2].any()
    assert (np.asarray(result.lse)[:, 4, 2] == -np.inf).all()
    assert not np.asarray(dq)[:, 4, 2].any()
    assert not np.asarray(dbias)[array == -np.inf].any()
    assert all(np.isfinite(x).all() for x in (dq, *others, dbias))
    masked = ja.attend(
        q,
        k,
        v,
        score=ja.Bias(np.where(array == -np.inf, 0, array)),
        mask=ja.Dense(array > -np.inf),
        backend=backend,
    )
    for got, want in zip(result[:2], masked[:2], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def published_slopes(h):
    """As in the code of the paper: github.com/ofirpress/attention_with_linear_biases."""

    def of_power_of_2(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(h).is_integer():
        return of_power_of_2(h)
    below = 2 ** math.floor(math.log2(h))
    return of_power_of_2(below) + published_slopes(2 * below)[0::2][: h - below]


def test_alibi_slopes_are_the_published_ones():
    eight = [2.0**-i for i in range(1, 9)]
    np.testing.assert_array_equal(ja.alibi_slopes(8), np.array(eight, np.float32))
    twelve = [*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(ja.alibi_slopes(12), twelve, rtol=1e-7)
    for h in range(1, 130):
        np.testing.assert_allclose(ja.alibi_slopes(h), published_slopes(h), rtol=1e-6)


BUCKETS = [(32, 128), (32, 64), (8, 20), (64, 256), (4, 5), (6, 9), (16, 1000)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), BUCKETS)
def test_buckets_are_those_of_t5(buckets, furthest, bidirectional):
    got = relative_buckets(buckets, bidirectional, furthest)
    away = range(-furthest, furthest + 1)
    want = [bucket_of(x, bidirectional, buckets, furthest) for x in away]
    np.testing.assert_array_equal(got, want)
    beyond = [bucket_of(x, bidirectional, buckets, furthest) for x in (-9999, 9999)]
    np.testing.assert_array_equal(got[[0, -1]], beyond)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), BUCKETS)
def test_buckets_are_those_of_the_same_formula_in_torch(buckets, furthest, bidirectional):
    """Whose float32 decides at the edges of buckets, in the models that are published."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    away = torch.arange(-furthest, furthest + 1)
    n, side, want = -away, buckets, torch.zeros_like(away)
    if bidirectional:
        side //= 2
        want, n = (n < 0).long() * side, n.abs()
    else:
        n = n.clamp(min=0)
    exact = side // 2
    large = torch.log(n.float() / exact) / math.log(furthest / exact) * (side - exact)
    large = (exact + large.clamp(min=0).long()).clamp(max=side - 1)
    want = want + torch.where(n < exact, n, large)
    np.testing.assert_array_equal(relative_buckets(buckets, bidirectional, furthest), want.numpy())


@for_backends
def test_order_matters(backend):
    """A bias is capped where it comes before the cap, and not where it comes after."""
    q, k, v = (jnp.ones(x) for x in (SMALL.q, SMALL.k, SMALL.v))
    high = jnp.zeros(SMALL.s).at[0].set(1e3)
    attend = partial(ja.attend, q, k, v, backend=backend)
    capped = attend(score=(ja.Bias(high), ja.SoftCap(2.0))).lse
    added = attend(score=[ja.SoftCap(2.0), ja.Bias(high)]).lse
    assert np.asarray(capped).max() < 2 + np.log(SMALL.s)
    assert np.asarray(added).min() > 1e3


@pytest.mark.sampled(6)
@for_backends
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_cap_of_inf_is_no_cap(backend, dtype):
    with jax.enable_x64(dtype == np.float64):
        rng = np.random.default_rng(0)
        q, k, v = (rng.standard_normal((6, 2, 3)).astype(dtype) for _ in "qkv")

        def of(score, q):
            attended = ja.attend(30 * q, k, v, score=score, backend=backend)
            return jnp.square(attended.out).sum() + attended.lse.sum()

        want = jax.value_and_grad(partial(of, None))(q)
        for cap in (np.inf, np.float32(np.inf), jnp.asarray(np.inf, dtype), 1e300):
            got = jax.value_and_grad(partial(of, ja.SoftCap(cap)))(q)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, want)
        traced = jax.jit(jax.value_and_grad(lambda cap, q: of(ja.SoftCap(cap), q), (0, 1)))
        loss, (dcap, dq) = traced(np.inf, q)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), (loss, dq), want)
        assert dcap == 0


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, jnp.float32, np.array])
@pytest.mark.parametrize("cap", [0.0, -2.5, np.nan])
def test_a_known_cap_is_above_0(kind, cap):
    with pytest.raises(ValueError, match=r"above 0, got .*leave SoftCap out"):
        ja.SoftCap(kind(cap))

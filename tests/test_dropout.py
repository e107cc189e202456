"""Dropout: the same pairs everywhere, the right share of them, and no pattern."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES, SMALL
from flax import nnx
from problem import Asked, kept
from rules import Shape, both, causal, dense, packed
from scored import bias, function
from small import K, Q, V, for_backends

import jaxattn as ja
from jaxattn.nn import MultiHeadAttention, attention_fn

pytestmark = pytest.mark.sampled(5)

KEY = jax.random.key(3)
BLOCKS = [(1, 1), (5, 7), (64, 64), (3, None)]
LARGE = Shape((3,), 61, 67, 4, 2, 1, 67)


def dropped(shape=LARGE, rate=0.3, key=KEY, backend=ja.AUTO):
    return ~kept(shape, ja.Dropout(rate, key), backend)


@pytest.mark.parametrize("backend", [ja.Reference(), *(ja.Blockwise(*b) for b in BLOCKS)], ids=repr)
def test_same_pairs_on_every_backend_and_in_every_block(backend):
    np.testing.assert_array_equal(dropped(backend=backend), dropped(backend=ja.Blockwise()))


def test_same_pairs_in_batches_of_any_rank():
    flat = dropped(LARGE._replace(batch=(6,)))
    for batch in ((2, 3), (1, 6)):
        shape = LARGE._replace(batch=batch)
        for backend in (ja.Reference(), ja.Blockwise(16, 16)):
            np.testing.assert_array_equal(dropped(shape, backend=backend).reshape(flat.shape), flat)


def test_same_pairs_in_a_longer_sequence():
    longer = dropped(LARGE._replace(t=97, s=101, e=101))
    np.testing.assert_array_equal(longer[..., : LARGE.t, : LARGE.s], dropped())


@pytest.mark.parametrize("backend", [ja.Reference(), ja.Blockwise(16, 16)], ids=repr)
def test_a_shard_of_the_tokens_drops_the_same_pairs(backend):
    """By starts, by starts of each sequence and by the position of every token, in any order."""
    whole, (t, s) = dropped(), (20, 30)
    shard = LARGE._replace(t=t, s=s, e=s)
    rows, columns = slice(11, 11 + t), slice(7, 7 + s)
    for q, k in ((11, 7), (np.full(3, 11), np.full((3, 1), 7)), (np.arange(11, 11 + t), 7)):
        got = dropped(shard.at(q, k), backend=backend)
        np.testing.assert_array_equal(got, whole[..., rows, columns])
    order = np.random.default_rng(0).permutation(s) + 7
    got = dropped(shard.at(11, order), backend=backend)
    np.testing.assert_array_equal(got, whole[..., rows, :][..., order])


def test_same_pairs_whatever_the_grouping():
    np.testing.assert_array_equal(dropped(LARGE._replace(n=4)), dropped(LARGE._replace(n=1)))


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_gradients_drop_the_same_pairs(rate, backend):
    Asked(SMALL.at(ja.END), both(causal(), dense("hts", 0.8)), rate=rate).check(backend)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.__name__)
def test_dropout_in_every_dtype(dtype):
    Asked(SMALL.at(ja.END), causal(), bias("h1s"), rate=0.4, dtype=dtype).check(ja.Blockwise(4, 3))


@pytest.mark.long
@for_backends
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_dropout_matrix(dtype, rate, backend):
    score = function("add-by-head-and-key")
    Asked(SMALL._replace(s=11), packed, score, 0.5, rate, dtype).check(backend)


def result_and_gradients(dropout, backend):
    @jax.jit
    def run(dropout, *inputs):
        given = {"mask": ja.Causal(), "positions": ja.Positions(0, 0), "backend": backend}
        attend = lambda q, k, v: ja.attend(q, k, v, dropout=dropout, **given)
        result, pull = jax.vjp(attend, *inputs)
        return result, pull(jax.tree.map(jnp.ones_like, result))

    return jax.tree.leaves(run(dropout, *map(jnp.asarray, (Q, K, V))))


@for_backends
def test_rate_of_0_changes_no_bit(backend):
    want = result_and_gradients(None, backend)
    for rate in (0, 0.0, jnp.asarray(0.0)):
        for got, x in zip(result_and_gradients(ja.Dropout(rate, KEY), backend), want, strict=True):
            np.testing.assert_array_equal(got, x)


@for_backends
def test_rate_of_1_drops_everything(backend):
    """out 0, lse as without dropout, and finite gradients."""
    _, lse, *_ = result_and_gradients(None, backend)
    for rate in (1, 1.0, jnp.asarray(1.0)):
        out, same, _, _, dv = result_and_gradients(ja.Dropout(rate, KEY), backend)
        assert not np.asarray(out).any()
        assert not np.asarray(dv).any()
        np.testing.assert_array_equal(same, lse)
    grads = result_and_gradients(ja.Dropout(1.0, KEY), backend)[2:]
    assert all(np.isfinite(x).all() for x in grads)


@for_backends
def test_lse_does_not_change(backend):
    plain, other = (
        ja.attend(Q, K, V, dropout=x, backend=backend) for x in (None, ja.Dropout(0.5, KEY))
    )
    np.testing.assert_array_equal(plain.lse, other.lse)
    assert not np.array_equal(plain.out, other.out)


@for_backends
def test_mean_over_keys_is_the_result_without_dropout(backend):
    """Each output is a mean of 2000 draws: within 5 standard errors, of 924 numbers."""
    attend = lambda key: ja.attention(Q, K, V, dropout=ja.Dropout(0.3, key), backend=backend)
    many = jax.jit(lambda keys: jax.lax.map(attend, keys))(jax.random.split(KEY, 2000))
    many = np.asarray(many, np.float64)
    want = np.asarray(ja.attention(Q, K, V, backend=backend))
    standard = many.std(axis=0) / 2000**0.5
    assert (np.abs(many.mean(axis=0) - want) < 5 * standard).all()


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_share_that_is_dropped(rate):
    """Binomial: within 5 standard deviations; so too in every row, column and head, within 6."""
    got = dropped(rate=rate)
    for axes, sigmas in (((0, 1, 2, 3), 5), ((0, 1, 3), 6), ((0, 1, 2), 6), ((0, 2, 3), 6)):
        share = got.mean(axis=axes)
        n = got.size / share.size
        assert (np.abs(share - rate) < sigmas * (rate * (1 - rate) / n) ** 0.5).all()


def test_traced_rate_drops_the_same():
    got = jax.jit(lambda rate: ja.attention(Q, K, V, dropout=ja.Dropout(rate, KEY)))(0.3)
    want = ja.attention(Q, K, V, dropout=ja.Dropout(0.3, KEY))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def correlations(x, y):
    """Of the rows of x with the rows of y, in standard deviations of independent bits."""
    x, y = ((z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True) for z in (x, y))
    return x @ y.T / x.shape[1] ** 0.5


@pytest.mark.parametrize("axis", range(4), ids=["batch", "head", "row", "column"])
def test_no_two_slices_are_alike(axis):
    """No pair along any axis correlates: 6 standard deviations, of up to 2211 pairs."""
    got = np.moveaxis(dropped(rate=0.5), axis, 0).astype(float)
    got = got.reshape(got.shape[0], -1)
    found = correlations(got, got)[np.triu_indices(len(got), 1)]
    assert np.abs(found).max() < 6
    assert len(found) < 30 or abs(found.std() - 1) < 0.2


@pytest.mark.parametrize(("down", "across"), [(0, 1), (1, 0), (1, 1), (1, -1), (2, 1), (7, 3)])
def test_no_pair_of_neighbours_is_alike(down, across):
    got = dropped(rate=0.5).astype(float)
    moved = np.roll(got, (down, across), (2, 3))[..., 8:-8, 8:-8]
    found = correlations(got[..., 8:-8, 8:-8].reshape(1, -1), moved.reshape(1, -1))
    assert abs(found[0, 0]) < 5


def test_no_four_corners_of_a_rectangle_are_alike():
    """A hash that mixes rows with columns too little shows in the parity of rectangles."""
    sign = np.where(dropped(rate=0.5), 1.0, -1.0)
    for down, across in ((1, 1), (1, 2), (16, 16), (30, 1), (3, 33)):
        corners = sign[..., down:, across:] * sign[..., :-down, :-across]
        corners = corners * sign[..., down:, :-across] * sign[..., :-down, across:]
        assert abs(corners.sum()) < 5 * corners.size**0.5


def test_other_keys_drop_other_pairs():
    one, two = (dropped(rate=0.5, key=jax.random.key(i)).reshape(1, -1) for i in (0, 1))
    assert abs(correlations(one.astype(float), two.astype(float))[0, 0]) < 5


def test_old_and_new_keys_are_the_same():
    old = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(dropped(key=old), dropped(key=jax.random.key(3)))
    np.testing.assert_array_equal(dropped(key=np.asarray(old)), dropped())


def test_other_generators_have_keys_too():
    got = dropped(rate=0.5, key=jax.random.key(3, impl="rbg"))
    assert abs(got.mean() - 0.5) < 0.02


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize(("rate", "as_if"), [(-0.5, 0.0), (0.0, 0.0), (1.0, 1.0), (7.0, 1.0)])
def test_a_traced_rate_out_of_bounds_is_the_nearer_bound(rate, as_if, backend):
    of = lambda rate: ja.attention(Q, K, V, dropout=ja.Dropout(rate, KEY), backend=backend)
    np.testing.assert_allclose(jax.jit(of)(rate), of(as_if), rtol=1e-5, atol=1e-6)


@for_backends
def test_a_traced_rate_of_nan_gives_nan(backend):
    of = lambda rate: ja.attention(Q, K, V, dropout=ja.Dropout(rate, KEY), backend=backend)
    assert np.isnan(jax.jit(of)(np.nan)).all()


WRONG_RATES = [-0.1, 1.5, np.nan, np.float32(-0.1), np.asarray(2.0), True, "0.1", None, np.True_]


@pytest.mark.parametrize("rate", [*WRONG_RATES, jnp.float32(1.5), jnp.zeros(2)], ids=str)
@pytest.mark.parametrize(
    "drop",
    [
        lambda rate: ja.Dropout(rate, KEY),
        lambda rate: attention_fn()(Q, K, V, dropout_rng=KEY, dropout_rate=rate),
        lambda rate: attention_fn()(Q, K, V, deterministic=True, dropout_rate=rate),
        lambda rate: MultiHeadAttention(2, 4, dropout_rate=rate, rngs=nnx.Rngs(0)),
    ],
)
def test_a_known_rate_is_a_number_from_0_to_1(drop, rate):
    with pytest.raises((TypeError, ValueError), match=r"a dropout rate is .* got"):
        drop(rate)


def test_attention_fn_takes_rates_that_are_traced():
    of = lambda rate: attention_fn()(
        Q, K, V, dropout_rng=KEY, dropout_rate=rate, broadcast_dropout=False
    )
    want = ja.attention(Q, K, V, dropout=ja.Dropout(0.3, KEY))
    for got in (jax.jit(of)(0.3), of(0.3)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for none in (0, 0.0, np.float32(0), jnp.zeros(())):
        attention_fn()(Q, K, V, dropout_rate=none)  # needs no key

"""The textbook steps against NumPy, each by its own line of mathematics."""

# pyright: reportCallIssue=false

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tolerance import assert_close

from jaxattn import steps

T, S, D, E, M, O = 5, 7, 3, 4, 11, 2
HEADS = 3
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


Q, K, V = draw(T, D), draw(S, D), draw(S, E)
ALLOWED = RNG.random((T, S)) < 0.6
ALLOWED[2] = False
X, W_Q, W_K, W_V = draw(T, M), draw(M, D), draw(M, D), draw(M, E)
CAUSAL = oracle.causal(T, T)[0]


def assert_matches(got, f, *inputs):
    """`got` is f of the inputs, with f run in float64 and, for the budget, in float32."""
    assert_close(got, f(*(x.astype(np.float64) for x in inputs)), f(*inputs))


def softmax(logits):
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def test_scores_are_the_products_and_the_scaled_products():
    got = steps.scores(jnp.asarray(Q), jnp.asarray(K))
    assert got._fields == ("raw", "scaled")
    assert_matches(got.raw, lambda q, k: q @ k.T, Q, K)
    assert_matches(got.scaled, lambda q, k: q @ k.T / np.sqrt(q.dtype.type(3)), Q, K)
    given = steps.scores(jnp.asarray(Q), jnp.asarray(K), 0.25)
    np.testing.assert_array_equal(given.scaled, 0.25 * given.raw)


def test_mask_hides_with_minus_infinity():
    logits = draw(T, S)
    got = np.asarray(steps.mask(jnp.asarray(logits), jnp.asarray(ALLOWED)))
    np.testing.assert_array_equal(got, np.where(ALLOWED, logits, -np.inf))
    np.testing.assert_array_equal(steps.mask(jnp.asarray(logits), None), logits)


def test_weights_are_a_softmax():
    logits = draw(T, S)
    got = steps.weights(jnp.asarray(logits))
    assert_matches(got, softmax, logits)
    np.testing.assert_allclose(np.sum(got, axis=1), np.ones(T), rtol=1e-6)


def test_weights_and_log_sum_exp_of_a_row_with_no_key():
    logits = np.where(ALLOWED, draw(T, S), np.float32(-np.inf))
    got, lse = steps.weights(jnp.asarray(logits)), steps.log_sum_exp(jnp.asarray(logits))
    assert not np.asarray(got)[~ALLOWED].any()
    assert np.asarray(lse)[2] == -np.inf
    live = [0, 1, 3, 4]
    assert_matches(got[np.array(live)], softmax, logits[live])
    assert_matches(lse[np.array(live)], lambda x: np.log(np.exp(x).sum(-1)), logits[live])


def test_weights_of_extreme_logits():
    logits = np.array([[1e4, 1e4 - 1, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    assert_matches(steps.weights(jnp.asarray(logits)), softmax, logits)

    def shifted(x):
        return x.max(-1) + np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1))

    assert_matches(steps.log_sum_exp(jnp.asarray(logits)), shifted, logits)


def test_mix_is_the_average_by_weight():
    weights = softmax(draw(T, S))
    assert_matches(steps.mix(jnp.asarray(weights), jnp.asarray(V)), np.matmul, weights, V)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("allowed", [None, CAUSAL], ids=["all", "causal"])
def test_single_head_names_every_intermediate(allowed, scale):
    head = steps.single_head(*map(jnp.asarray, (X, W_Q, W_K, W_V)), allowed, scale)
    assert head._fields == ("q", "k", "v", "raw", "scaled", "masked", "weights", "out")
    factor = np.float32(3**-0.5 if scale is None else scale)

    def hide(x):
        return x if allowed is None else np.where(allowed, x, -np.inf)

    def by_hand(name):
        def compute(x, w_q, w_k, w_v):
            steps = {"q": x @ w_q, "k": x @ w_k, "v": x @ w_v}
            steps["raw"] = steps["q"] @ steps["k"].T
            steps["scaled"] = steps["raw"] * factor
            steps["masked"] = hide(steps["scaled"])
            steps["weights"] = softmax(steps["masked"])
            steps["out"] = steps["weights"] @ steps["v"]
            return steps[name]

        return compute

    for name, got in head._asdict().items():
        assert_matches(got, by_hand(name), X, W_Q, W_K, W_V)


def test_single_head_matches_attention():
    head = steps.single_head(*map(jnp.asarray, (X, W_Q, W_K, W_V)), jnp.asarray(CAUSAL))
    q, k, v = (np.asarray(x)[:, None] for x in (head.q, head.k, head.v))
    want, naive = (oracle.attention(q, k, v, CAUSAL, dtype=d)[0] for d in (np.float64, np.float32))
    assert_close(head.out, want[:, 0], naive[:, 0])


def cut(w, head):
    width = w.shape[1] // HEADS
    return w[:, head * width : (head + 1) * width]


def test_multi_head_is_single_head_for_each_part_of_the_projections():
    x, w_q, w_k, w_v, w_o = map(
        jnp.asarray,
        (X, draw(M, HEADS * D), draw(M, HEADS * D), draw(M, HEADS * E), draw(HEADS * E, O)),
    )
    got = steps.multi_head(x, w_q, w_k, w_v, w_o, HEADS, jnp.asarray(CAUSAL))
    assert got.heads.weights.shape == (HEADS, T, T)
    for i in range(HEADS):
        one = steps.single_head(x, *(cut(w, i) for w in (w_q, w_k, w_v)), jnp.asarray(CAUSAL))
        for name, want in one._asdict().items():
            mapped = getattr(got.heads, name)[i]
            np.testing.assert_allclose(mapped, want, rtol=1e-5, atol=1e-6, err_msg=name)
    beside = np.concatenate(list(np.asarray(got.heads.out)), axis=-1)
    np.testing.assert_array_equal(got.concat, beside)
    assert_matches(got.out, np.matmul, beside, np.asarray(w_o))


def test_half_precision_is_summed_in_float32():
    low = [jnp.asarray(x, jnp.bfloat16) for x in (X, W_Q, W_K, W_V)]
    head = steps.single_head(*low)
    again = steps.single_head(*(x.astype(jnp.float32) for x in low))
    for got, want in zip(head, again, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("heads", "name", "columns"),
    [(2, "w_q", 9), (0, "w_q", 9), (-3, "w_q", 9)],
)
def test_multi_head_says_when_the_columns_do_not_divide(heads, name, columns):
    w = jnp.zeros((M, columns))
    with pytest.raises(ValueError, match=f"columns of {name}.*{columns} columns.*heads={heads};"):
        steps.multi_head(jnp.asarray(X), w, w, w, jnp.zeros((9, O)), heads)


def test_multi_head_names_the_projection_that_does_not_divide():
    w, w_v = jnp.zeros((M, 6)), jnp.zeros((M, 8))
    with pytest.raises(ValueError, match="w_v"):
        steps.multi_head(jnp.asarray(X), w, w, w_v, jnp.zeros((8, O)), 3)

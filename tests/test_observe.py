"""Every observation against the weights written out in float64, and what observing leaves alone."""

# pyright: reportArgumentType=false, reportCallIssue=false

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from catalogue import in_groups, observations
from oracle import observe as truth

import jaxattn as ja
from jaxattn import observe as see

pytestmark = pytest.mark.sampled(4)

B, T, S, H, N, D, E = 2, 29, 37, 4, 2, 5, 3
RNG = np.random.default_rng(0)
Q, K, V = (
    RNG.standard_normal(shape).astype(np.float32)
    for shape in ((B, T, H, D), (B, S, N, D), (B, S, N, E))
)
BACKENDS = (
    ja.Reference(),
    ja.Blockwise(),  # one tile to a row: observed on the way
    ja.Blockwise(q_block=8, k_block=S),  # the same, with rows that are met twice
    ja.Blockwise(q_block=8, k_block=16),  # several tiles: a second sweep
)
FROM_0 = ja.Positions(0, 0)
IDS = RNG.integers(-1, 3, (B, S)).astype(np.int32)
MASKS = {
    "everything": (ja.EVERYTHING, np.ones((1, 1, 1), bool)),
    "causal": (ja.Causal(-3), oracle.causal(T, S, -3)),
    "segments": (ja.Segments(IDS[:, :T], IDS), oracle.segments(IDS[:, :T], IDS)),
    "sink-window": (
        ja.Window(4) | ja.Lengths(k=2),
        oracle.window(T, S, 4) | (np.arange(S) < 2),
    ),
}


OBSERVATIONS = observations(T, S, H)
GROUPS = in_groups(OBSERVATIONS)


def assert_shows(observed, names, allowed):
    weights = truth.weights(Q, K, allowed)
    for name in names:
        want = OBSERVATIONS[name][1](weights)
        got = [np.asarray(x) for x in jax.tree.leaves(observed[name])]
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape, f"{name}: {a.shape}, want {b.shape}"
            size = np.abs(b, where=np.isfinite(b), out=np.zeros_like(b, float)).max()
            limit = 64 * np.finfo(np.float32).eps * max(size, 1)
            np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)


@pytest.mark.covered
@pytest.mark.optimized
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@pytest.mark.parametrize(
    "mask", ["causal", *(pytest.param(m, marks=pytest.mark.long) for m in MASKS if m != "causal")]
)
def test_observation_shows_what_the_weights_are(mask, names, backend):
    """And out and lse are, to the bit, what they are when nobody looks."""
    rule, allowed = MASKS[mask]
    wanted = {name: OBSERVATIONS[name][0] for name in names}
    given = {"mask": rule, "positions": FROM_0, "backend": backend}
    got = ja.attend(Q, K, V, **given, observe=wanted)
    assert_shows(got.observed, names, allowed)
    alone = ja.attend(Q, K, V, **given)
    np.testing.assert_array_equal(got.out, alone.out)
    np.testing.assert_array_equal(got.lse, alone.lse)
    assert alone.observed == {}


@pytest.mark.parametrize("mask", MASKS)
def test_observe_from_the_lse_of_another_kernel(mask):
    rule, allowed = MASKS[mask]
    lse = truth.weights(Q, K, allowed).lse
    names = ("entropy", "received", "map", "top")
    wanted = {name: OBSERVATIONS[name][0] for name in names}
    lse = np.moveaxis(lse, 1, 2).astype(np.float32)
    assert_shows(see.observe(Q, K, lse, wanted, mask=rule, positions=FROM_0), names, allowed)


def test_apply_of_the_values_is_out():
    values = np.repeat(V, H // N, axis=2).swapaxes(1, 2)
    got = ja.attend(Q, K, V, observe={"out": see.Apply(values)})
    np.testing.assert_allclose(got.observed["out"], got.out, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_sinks_take_their_share_of_the_weights(backend):
    sinks = jnp.asarray([0.0, 1.0, -jnp.inf, 3.0])
    got = ja.attend(Q, K, V, sinks=sinks, observe={"sum": see.MassOn(S)}, backend=backend)
    plain = ja.attend(Q, K, V, backend=backend)
    want = np.exp(np.asarray(plain.lse, np.float64) - np.asarray(got.lse, np.float64))
    np.testing.assert_allclose(got.observed["sum"], want, rtol=1e-5)


def dense_loss(q, k, bias):
    """Of entropy, received mass and the largest logits, from the whole matrix."""
    k = jnp.repeat(k, H // N, axis=2)
    logits = jnp.einsum("bthd,bshd->bhts", q, k, precision="highest") * D**-0.5 + bias
    logits = jnp.where(oracle.causal(T, S, 0), logits, -jnp.inf)
    p = jax.nn.softmax(logits, axis=-1)
    log_p = jnp.where(p > 0, jax.nn.log_softmax(logits, axis=-1), 0)
    received = p.sum(2)
    return -(p * log_p).sum() + (received**2).sum() + jnp.sum(logits.max((0, 2, 3)) ** 2)


def seen_loss(backend, q, k, bias):
    wanted = {"e": see.Entropy(), "r": see.Received(), "m": see.MaxLogit()}
    given = {"mask": ja.Causal(), "positions": FROM_0, "backend": backend}
    seen = ja.attend(q, k, V, score=ja.Bias(bias), observe=wanted, **given).observed
    return seen["e"].sum() + (seen["r"].mass ** 2).sum() + (seen["m"] ** 2).sum()


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_gradient_through_observations(backend):
    bias = np.random.default_rng(1).standard_normal((H, 1, S)).astype(np.float32)
    got = jax.jit(jax.grad(partial(seen_loss, backend), (0, 1, 2)))(Q, K, bias)
    want = jax.jit(jax.grad(dense_loss, (0, 1, 2)))(Q, K, bias)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_forward_over_reverse_through_observations():
    bias = np.zeros((H, 1, S), np.float32)

    def product(f):
        return jax.jvp(lambda q: jax.grad(f)(q, K, bias), (Q,), (np.flip(Q, 0).copy(),))[1]

    got = jax.jit(lambda: product(partial(seen_loss, BACKENDS[3])))()
    want = jax.jit(lambda: product(dense_loss))()
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.optimized
def test_memory_of_observing_is_linear():
    wanted = {"m": see.Map(64), "r": see.Received(), "e": see.Entropy(), "x": see.MaxLogit()}

    def temporary(t):
        shape = jax.ShapeDtypeStruct((1, t, 4, 64), jnp.float32)
        f = jax.jit(lambda *x: ja.attend(*x, mask=ja.Causal(), observe=wanted))
        analysis = f.lower(shape, shape, shape).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    small, large = temporary(4096), temporary(8192)
    assert large <= 2.3 * small
    assert large < 64 * 2**20


def test_observations_under_vmap_are_those_of_a_batch():
    wanted = {name: OBSERVATIONS[name][0] for name in ("entropy", "received", "map", "top", "fold")}
    given = {"mask": ja.Causal(-3), "positions": FROM_0, "observe": wanted}
    one = lambda q, k, v: ja.attend(q, k, v, **given).observed
    got = jax.vmap(one)(Q, K, V)
    assert_shows(got, wanted, MASKS["causal"][1])


def test_observations_see_logits_after_scores():
    """And MaxLogit may be asked for those before."""
    wanted = {"max": see.MaxLogit(), "before": see.MaxLogit(before_scores=True), "m": see.RowMax()}
    score = (lambda logit, at: logit + at.k, ja.SoftCap(5.0))
    got = ja.attend(Q, K, V, score=score, positions=FROM_0, observe=wanted)
    logits = truth.weights(Q, K, True).logits
    after = 5 * np.tanh((logits + np.arange(S)) / 5)
    np.testing.assert_allclose(got.observed["before"], logits.max((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(got.observed["max"], after.max((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(got.observed["m"], truth.per_query(after.max(-1)), rtol=1e-5)


def test_observed_are_the_weights_before_dropout():
    wanted = {"entropy": see.Entropy(), "map": see.Map(8)}
    dropped = ja.Dropout(0.5, jax.random.key(0))
    got = ja.attend(Q, K, V, dropout=dropped, observe=wanted).observed
    jax.tree.map(np.testing.assert_array_equal, got, ja.attend(Q, K, V, observe=wanted).observed)


def test_explain_shows_that_observing_changes_nothing_else():
    shape = jax.ShapeDtypeStruct((1, 2048, 2, 16), jnp.float32)
    wanted = {"map": see.Map(64), "entropy": see.Entropy()}
    for backend in (ja.AUTO, ja.Blockwise(256, 256)):
        plain = ja.explain(shape, shape, shape, mask=ja.Causal(), backend=backend)
        seen = ja.explain(shape, shape, shape, mask=ja.Causal(), observe=wanted, backend=backend)
        assert seen.second_sweep == (backend != ja.AUTO)
        assert not plain.second_sweep
        unlike = {"second_sweep": False, "temporary_bytes": None}
        assert replace(plain, **unlike) == replace(seen, **unlike)
        assert ("second sweep" in repr(seen)) == seen.second_sweep


def test_rollout_is_the_product_of_the_layers():
    layers = [see.Layer(Q, RNG.standard_normal((B, T, N, D)).astype(np.float32)) for _ in range(3)]
    product = np.eye(T)
    for layer in layers:
        q, k, _ = oracle.by_head(layer.q, layer.k, layer.k, np.float64)
        p, *_ = oracle.softmax(q @ k.swapaxes(-1, -2) * D**-0.5, np.ones((T, T), bool))
        product = (p.mean(1) + np.eye(T)) / 2 @ product
    vectors = RNG.standard_normal((T, 3)).astype(np.float32)
    got = see.rollout(layers, vectors)
    np.testing.assert_allclose(got, product.swapaxes(-1, -2) @ vectors, atol=1e-5)
    np.testing.assert_allclose(see.rollout_map(layers, T), product, atol=1e-5)


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match=r"dict of observations"):
        ja.attend(Q, K, V, observe=[see.Entropy()])
    with pytest.raises(TypeError, match=r"make one: Entropy\(\.\.\.\)"):
        ja.attend(Q, K, V, observe={"entropy": see.Entropy})
    with pytest.raises(ValueError, match="at least 1 cell"):
        see.Map(0)
    with pytest.raises(ValueError, match="at least 1"):
        see.TopKeys(0)
    with pytest.raises(ValueError, match="transpose it"):
        see.observe(Q, K, np.zeros((B, H, T)), {"entropy": see.Entropy()})
    with pytest.raises(TypeError, match="booleans"):
        ja.attend(Q, K, V, observe={"mass": see.MassOn(np.ones(S))})

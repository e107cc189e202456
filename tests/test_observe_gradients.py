"""Derivatives of observations: against finite differences of weights written out, in float64."""

# pyright: reportArgumentType=false, reportCallIssue=false

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

pytestmark = pytest.mark.sampled(2)

B, T, S, H, N, D = 2, 13, 19, 4, 2, 5
RANDOM = np.random.default_rng(3)
Q, K, DQ, DK = (RANDOM.standard_normal((B, n, h, D)) for n, h in ((T, H), (S, N)) * 2)
ALLOWED = oracle.causal(T, S, 2)
BACKENDS = (ja.Blockwise(), ja.Blockwise(4, 8), ja.Reference())
OBSERVATIONS = observations(T, S, H)


def floats(tree):
    """Its floating point leaves, from which a loss can be made; -inf counts as 0."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return [jnp.where(jnp.isfinite(x), x, 0) for x in leaves]


def weighted(arrays):
    """Σ c·x over arrays, each number with a weight of its own."""
    return sum((x * np.cos(np.arange(x.size)).reshape(x.shape)).sum() for x in arrays)


def ours(names, backend, q, k):
    """A number for each of the observations."""
    given = {"mask": ja.Causal(2), "positions": ja.Positions(0, 0), "backend": backend}
    got = ja.attend(q, k, k, **given, observe={name: OBSERVATIONS[name][0] for name in names})
    return jnp.stack([weighted(floats(got.observed[name])) for name in names])


def written_out(names, q, k):
    weights = truth.weights(q, k, ALLOWED)
    shown = ([x for x in OBSERVATIONS[name][1](weights) if x.dtype == float] for name in names)
    return np.array([weighted([np.where(np.isfinite(x), x, 0) for x in one]) for one in shown])


@pytest.mark.covered
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("names", in_groups(OBSERVATIONS), ids=lambda names: names[0])
def test_slope_is_that_of_finite_differences(names, backend):
    """In reverse and forward mode, of each observation by itself."""
    step = 1e-6
    want = written_out(names, Q + step * DQ, K + step * DK)
    want = (want - written_out(names, Q - step * DQ, K - step * DK)) / (2 * step)
    with jax.enable_x64():
        f = partial(ours, names, backend)
        dq, dk = jax.jit(jax.jacrev(f, (0, 1)))(jnp.asarray(Q), jnp.asarray(K))
        forward = jax.jit(lambda *x: jax.jvp(f, x[:2], x[2:])[1])(Q, K, DQ, DK)
    for i, name in enumerate(names):
        reverse = np.vdot(np.asarray(dq[i]), DQ) + np.vdot(np.asarray(dk[i]), DK)
        size = max(abs(want[i]), 1)
        assert abs(reverse - want[i]) < 1e-7 * size, name
        assert abs(float(forward[i]) - want[i]) < 1e-7 * size, name


@pytest.mark.optimized
def test_memory_of_a_gradient_through_an_observation_is_linear():
    def loss(q, k, v):
        got = ja.attend(q, k, v, mask=ja.Causal(), observe={"e": see.Entropy()})
        return got.out.sum() + got.observed["e"].sum()

    def temporary(t):
        shape = jax.ShapeDtypeStruct((1, t, 2, 64), jnp.float32)
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape)
        analysis = program.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    small, large = temporary(4096), temporary(8192)
    assert large < 2.3 * small
    assert large < 8192**2  # a fourth of the matrix of one head


def test_a_row_that_sees_nothing_gives_no_gradient():
    loss = lambda q: ours(["entropy"], ja.Blockwise(), q, jnp.asarray(K, jnp.float32)).sum()
    dead = ja.Lengths(q=np.array([5, 13]))

    def masked(q):
        wanted = {name: OBSERVATIONS[name][0] for name in ("entropy", "top", "map")}
        got = ja.attend(
            q, jnp.asarray(K, q.dtype), jnp.asarray(K, q.dtype), mask=dead, observe=wanted
        )
        return weighted(floats(got.observed))

    q = jnp.asarray(Q, jnp.float32)
    dq = jax.jit(jax.grad(masked))(q)
    assert np.isfinite(dq).all()
    np.testing.assert_array_equal(dq[0, 5:], 0)
    assert np.abs(dq[0, :5]).max() > 0
    assert np.isfinite(jax.jit(jax.grad(loss))(q)).all()


@pytest.mark.covered
@pytest.mark.parametrize("backend", [ja.Blockwise(8, 8), ja.Reference()], ids=repr)
def test_slope_of_maxima_of_numbers_that_are_computed_twice(backend):
    """In float32 a number made again, as in a pass back, is not always equal to the maximum."""
    score = lambda logit, at: logit * jnp.cos(0.3 * (at.q - at.k)) + jnp.sin(logit)
    wanted = [see.RowMax(), see.MaxLogit(), see.MaxLogit(before_scores=True), see.ReceivedMax()]
    at = RANDOM.standard_normal((2, 1, 24, 2, 5))

    def loss(qk, backend):
        q, k = qk
        rule = {"mask": ja.Causal(), "score": score, "backend": backend}
        observe = {str(i): one for i, one in enumerate(wanted)}
        return weighted(floats(ja.attend(q, k, k, **rule, observe=observe).observed))

    slope = jax.jit(jax.grad(loss), static_argnums=1)(jnp.asarray(at, jnp.float32), backend)
    along, step = np.asarray(slope, np.float64) / np.linalg.norm(slope), 1e-6
    with jax.enable_x64():
        ends = [float(loss(at + sign * step * along, ja.Reference())) for sign in (1, -1)]
    want = (ends[0] - ends[1]) / (2 * step)
    assert abs(np.vdot(slope, along) - want) < 1e-5 * abs(want)

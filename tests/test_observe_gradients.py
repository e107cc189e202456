"""Derivatives of observations: against finite differences of weights written out, in float64."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import observe as truth

import jaxattn as ja
from jaxattn import observe as see

pytestmark = pytest.mark.sampled(2)

B, T, S, H, N, D = 2, 13, 19, 4, 2, 5
RANDOM = np.random.default_rng(3)
Q, K, DQ, DK = (RANDOM.standard_normal((B, n, h, D)) for n, h in ((T, H), (S, N)) * 2)
U, W = RANDOM.standard_normal((S, 2)), RANDOM.standard_normal((H, T, 2))
ALLOWED = oracle.causal(T, S, 2)
BACKENDS = (
    ja.Blockwise(),
    pytest.param(ja.Blockwise(4, 8), marks=pytest.mark.long),
    pytest.param(ja.Reference(), marks=pytest.mark.long),
)

# Every observation that has a derivative: it, and what it must show.
CASES = {
    "lse": (see.LogSumExp(), truth.log_sum_exp),
    "row_max": (see.RowMax(), truth.row_max),
    "max_logit": (see.MaxLogit(), truth.max_logit),
    "entropy": (see.Entropy(), truth.entropy),
    "top": (see.TopKeys(3), lambda w: truth.top_keys(w, 3)[:1]),
    "received": (see.Received(), lambda w: truth.received(w)[:1]),
    "received_max": (see.ReceivedMax(), truth.received_max),
    "map": (see.Map(4), lambda w: truth.cells(w, 4)),
    "map_peak": (see.Map(4, see.PEAK), lambda w: truth.cells(w, 4, "peak")),
    "rows": (see.Rows([3, 7]), lambda w: truth.rows(w, [3, 7])),
    "columns": (see.Columns([1, 8]), lambda w: truth.columns(w, [1, 8])),
    "diagonal": (see.Diagonal(-1), lambda w: truth.diagonal(w, -1)),
    "distance": (see.Distance(), truth.distance),
    "mass_on": (see.MassOn(2), lambda w: truth.mass_on(w, np.arange(S) < 2)),
    "apply": (see.Apply(U), lambda w: truth.apply(w, U)),
    "transposed": (see.ApplyTransposed(W), lambda w: truth.apply_transposed(w, W)),
    "fold": (
        see.Fold(lambda: 0.0, lambda seen: (seen.weights**3).sum()),
        lambda w: [(w.p**3).sum((-1, -2))],
    ),
}


def floats(tree):
    """Its floating point leaves, from which a loss can be made; -inf counts as 0."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return [jnp.where(jnp.isfinite(x), x, 0) for x in leaves]


def weighted(arrays):
    """Σ c·x over arrays, each number with a weight of its own."""
    return sum((x * np.cos(np.arange(x.size)).reshape(x.shape)).sum() for x in arrays)


def ours(observation, backend, q, k):
    given = {"mask": ja.Causal(2), "positions": ja.Positions(0, 0), "backend": backend}
    got = ja.attend(q, k, k, **given, observe={"it": observation})
    return weighted(floats(got.observed))


def written_out(show, q, k):
    return weighted([np.where(np.isfinite(x), x, 0) for x in show(truth.weights(q, k, ALLOWED))])


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_slope_is_that_of_finite_differences(name, backend):
    """In reverse and forward mode."""
    observation, show = CASES[name]
    step = 1e-6
    want = written_out(show, Q + step * DQ, K + step * DK)
    want = (want - written_out(show, Q - step * DQ, K - step * DK)) / (2 * step)
    with jax.enable_x64():
        f = partial(ours, observation, backend)
        dq, dk = jax.jit(jax.grad(f, (0, 1)))(jnp.asarray(Q), jnp.asarray(K))
        forward = jax.jit(lambda *x: jax.jvp(f, x[:2], x[2:])[1])(Q, K, DQ, DK)
    reverse = np.vdot(np.asarray(dq), DQ) + np.vdot(np.asarray(dk), DK)
    size = max(abs(want), 1)
    assert abs(reverse - want) < 1e-7 * size
    assert abs(float(forward) - want) < 1e-7 * size


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
    loss = lambda q: ours(see.Entropy(), ja.Blockwise(), q, jnp.asarray(K, jnp.float32))
    dead = ja.Lengths(q=np.array([5, 13]))

    def masked(q):
        wanted = {
            name: case[0] for name, case in CASES.items() if name in ("entropy", "top", "map")
        }
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

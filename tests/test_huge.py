"""Finite but huge keys and values behind a mask reach nothing: results, observations, derivatives.

Their products overflow, and an infinite logit or tangent times a weight of 0 is NaN.
"""

# pyright: reportArgumentType=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import COT_LSE, COT_OUT, RNG, B, H, K, Q, S, T, V, for_backends

import jaxattn as ja
from jaxattn import observe as see

HIDDEN = 9  # and all keys after it
HUGE = [float(np.finfo(np.float32).min), 3e38]
TABLE = RNG.standard_normal((H, S)).astype(np.float32)
MASKS = {
    "lengths": ja.Lengths(k=HIDDEN),
    "lengths-each": ja.Lengths(k=np.array([HIDDEN, 5])),
    "causal": ja.Causal(HIDDEN - T) & ja.Lengths(q=HIDDEN),
    "dense": ja.Dense(np.arange(S) < HIDDEN),
    "segments": ja.Segments(np.zeros(T, int), np.where(np.arange(S) < HIDDEN, 0, 1)),
}


def rules(table):
    return {
        "plain": {},
        "capped": {"score": (ja.Bias(table[:, None]), ja.SoftCap(2.0))},
        "function": {"score": lambda logit, at: logit * logit * jnp.sin(table)[at.head, at.k]},
        "sinks": {"sinks": table[:, 0]},
        "dropout": {"dropout": ja.Dropout(0.3, jax.random.key(1))},
    }


RULES = list(rules(TABLE))


def spoil(where, huge):
    k, v = K.copy(), V.copy()
    if where != "value":
        k[:, HIDDEN:] = huge
    if where != "key":
        v[:, HIDDEN:] = huge
    return k, v


def attended(rule, mask, backend, *arrays):
    q, k, v, table = arrays
    given = {"mask": mask, "positions": ja.Positions(0, 0), "backend": backend}
    return ja.attend(q, k, v, **given, **rules(table)[rule])[:2]


def loss(*args):
    out, lse = attended(*args)
    return (out * COT_OUT).sum() + (jnp.where(jnp.isneginf(lse), 0, lse) * COT_LSE).sum()


@partial(jax.jit, static_argnums=(0, 2))
def derivatives(rule, mask, backend, q, k, v, table):
    """Results, gradients, how results move with each input, and a product with the Hessian."""
    inputs = jnp.asarray(q), k, v, table
    results = attended(rule, mask, backend, *inputs)
    value = partial(loss, rule, mask, backend)
    slopes = jax.grad(value, (0, 1, 2, 3))(*inputs)
    moves = []
    for i in range(4):
        one = lambda x, i=i: attended(rule, mask, backend, *inputs[:i], x, *inputs[i + 1 :])
        moves.append(jax.jvp(one, (inputs[i],), (jnp.ones_like(inputs[i]),))[1])
    along = lambda q, table: jnp.square(jax.grad(value, 1)(q, k, v, table)).sum()
    return results, slopes, moves, jax.grad(along, (0, 1))(jnp.asarray(q), table)


def same(got, want):
    """The same to rounding, where the truth is finite."""

    def one(got, want):
        assert np.isfinite(np.asarray(got)[np.isfinite(want)]).all()
        size = np.abs(want).max(initial=1, where=np.isfinite(want))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * size)

    jax.tree.map(one, jax.device_get(got), jax.device_get(want))


@pytest.mark.sampled(32)
@for_backends
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MASKS)
def test_derivatives(name, rule, backend):
    run = partial(derivatives, rule, MASKS[name], backend, Q)
    want = run(K, V, TABLE)
    for where in ("key", "value", "both"):
        for huge in HUGE:
            same(run(*spoil(where, huge), TABLE), want)


OBSERVED = {
    "entropy": see.Entropy(),
    "map": see.Map(4),
    "received": see.Received(),
    "columns": see.Columns([1, 3]),
    "apply": see.Apply(RNG.standard_normal((S, 2)).astype(np.float32)),
    "max": see.MaxLogit(before_scores=True),
}


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("rule", ["plain", "capped", "function"])
def test_observations(rule, backend):
    def seen(q, k, v, table):
        options = rules(table)[rule]
        given = {"mask": MASKS["lengths"], "positions": ja.Positions(0, 0), "backend": backend}
        return ja.attend(q, k, v, observe=OBSERVED, **given, **options).observed

    @jax.jit
    def both(k, v):
        total = lambda q, k, table: sum(
            jnp.sin(x).sum() for x in jax.tree.leaves(seen(q, k, v, table)) if x.dtype == q.dtype
        )
        return seen(Q, k, v, TABLE), jax.grad(total, (0, 1, 2))(Q, k, TABLE)

    want = both(K, V)
    for huge in HUGE:
        same(both(*spoil("both", huge)), want)


@for_backends
def test_huge_queries_that_see_nothing(backend):
    mask = ja.Lengths(q=6)
    huge = Q.copy()
    huge[:, 6:] = 3e38
    run = lambda q: derivatives("plain", mask, backend, q, K, V, TABLE)
    same(run(huge), run(Q))


def test_values_are_as_large_as_said():
    """The products do overflow, or nothing here is tested."""
    k, _ = spoil("key", HUGE[1])
    with np.errstate(over="ignore"):
        assert np.isinf(np.einsum("bthd,bsd->bhts", Q, k[:, :, 0])).any()
    assert B == 2

"""Functions of the user's own: gradients to what they close over, without any declaration."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import dense
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import SMALL
from oracle import scores as theirs
from small import BACKENDS, for_backends

import jaxattn as ja

TILED = ja.Blockwise(q_block=4, k_block=3)
FROM_0 = ja.Positions(0, 0)

# A function that the tests below differentiate in what it closes over.
POINT = np.random.default_rng(5)
QKV = [POINT.standard_normal(x) for x in (SMALL.q[1:], SMALL.k[1:], SMALL.v[1:])]
TABLE, CAPS = POINT.standard_normal((SMALL.h, SMALL.s)), 1 + POINT.random(SMALL.h)


def ours(backend, table, caps):
    def score(logit, at):
        logit = logit + jnp.where(at.k > at.q, 0.3, 1.0) * table[at.head, at.k]
        return caps[at.head] * jnp.tanh(logit / caps[at.head])

    given = {"score": score, "positions": FROM_0, "backend": backend}
    out, lse, _ = ja.attend(*map(jnp.asarray, QKV), **given)
    return (out**2).sum() + (lse**2).sum()


def whole(table, caps):
    def score(logits):
        after = jnp.arange(SMALL.s) > jnp.arange(SMALL.t)[:, None]
        logits = logits + jnp.where(after, 0.3, 1.0) * table[:, None, :]
        return caps[:, None, None] * jnp.tanh(logits / caps[:, None, None])

    out, lse = dense.attend(*map(jnp.asarray, QKV), score=score)
    return (out**2).sum() + (lse**2).sum()


def along(f):
    return lambda *x: jax.jvp(f, x, (jnp.cos(x[0]), jnp.sin(x[1])))


def mapped(f):
    return lambda x, y: jax.vmap(jax.grad(f, (0, 1)), (0, None))(jnp.stack([x, 2 * x, -x]), y)


CLOSED_OVER = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(f, (0, 1)),
    "jvp": along,
    "forward-over-reverse": lambda f: along(jax.grad(f, (0, 1))),
    "reverse-over-reverse": lambda f: jax.grad(lambda *x: (jax.grad(f)(*x) ** 2).sum(), (0, 1)),
    "vmap-of-grad": mapped,
    "hessian": lambda f: jax.hessian(f, 1),
}


USUAL = [(name, TILED) for name in CLOSED_OVER] + [
    ("forward-over-reverse", backend) for backend in BACKENDS[:2]
]
REST = [(name, b) for name in CLOSED_OVER for b in BACKENDS if (name, b) not in USUAL]


@pytest.mark.parametrize(
    ("name", "backend"),
    [*USUAL, *(pytest.param(*x, marks=pytest.mark.long) for x in REST)],
    ids=str,
)
def test_arrays_that_a_function_closes_over(name, backend):
    """They need no declaration, under any transformation."""
    transform = CLOSED_OVER[name]
    with jax.enable_x64(True):
        point = jnp.asarray(TABLE), jnp.asarray(CAPS)
        got = jax.jit(transform(partial(ours, backend)))(*point)
        want = jax.jit(transform(whole))(*point)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_gradient_of_a_function_outside_jit():
    with jax.enable_x64(True):
        point = jnp.asarray(TABLE), jnp.asarray(CAPS)
        got, want = (jax.grad(f, (0, 1))(*point) for f in (partial(ours, ja.AUTO), whole))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@for_backends
def test_a_method_reads_what_its_object_holds_now(backend):
    """Also where that is traced by then, as in a module whose weights are swapped."""

    class Model:
        table = jnp.zeros(SMALL.s)

        def score(self, logit, at):
            return logit + self.table[at.k]

        def sees(self, at):
            return self.table[at.k] > -1

    model, inputs = Model(), [jnp.asarray(x, jnp.float32) for x in QKV]

    def out(table, score, mask):
        model.table = table
        given = {"score": score, "mask": mask, "positions": FROM_0, "backend": backend}
        return (ja.attention(*inputs, **given) ** 2).sum()

    def given(table):
        score, mask = ja.Bias(table), ja.Dense(table > -1)
        return (ja.attention(*inputs, score=score, mask=mask, backend=backend) ** 2).sum()

    for factor in (0.0, 1.0, 2.0):
        table = factor * jnp.asarray(TABLE[0], jnp.float32)
        got, moved = jax.value_and_grad(out)(table, model.score, ja.Where(model.sees))
        want, should = jax.value_and_grad(given)(table)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        np.testing.assert_allclose(moved, should, rtol=1e-3, atol=1e-4)


@for_backends
def test_function_that_closes_over_other_dtypes(backend):
    """bfloat16 tables have bfloat16 gradients, and integers and booleans none."""
    q, k, v = (jnp.asarray(x, jnp.float32) for x in QKV)
    table, shift = jnp.asarray(TABLE, jnp.bfloat16), jnp.arange(SMALL.t) % 3
    on = jnp.arange(SMALL.h) > 2

    def out(table):
        def score(logit, at):
            extra = table[at.head, (at.k + shift[at.q]) % SMALL.s]
            return logit + jnp.where(on[at.head], extra, 0)

        return ja.attention(q, k, v, score=score, positions=FROM_0, backend=backend)

    index = np.arange(SMALL.h)[:, None, None], (np.arange(SMALL.s) + shift[:, None]) % SMALL.s
    added = np.asarray(table, np.float64)[index] * np.asarray(on)[:, None, None]
    want, _ = oracle.attention(q, k, v, extra=oracle.Extra((theirs.Bias(added),)))
    got, pull = jax.vjp(out, table)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    (dtable,) = pull(jnp.ones_like(got))
    assert dtable.dtype == jnp.bfloat16
    assert np.asarray(dtable[3:], np.float32).any(axis=1).all()
    assert not np.asarray(dtable[:3], np.float32).any()

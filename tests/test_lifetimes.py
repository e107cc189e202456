"""A user's functions are not kept alive, nor what they close over, and are compiled once."""

# pyright: reportArgumentType=false, reportCallIssue=false

import gc
import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compile import compilations

import jaxattn as ja

pytestmark = pytest.mark.covered

TILED = ja.Blockwise(q_block=4, k_block=4)
BACKENDS = (TILED, ja.Blockwise(), ja.Reference())
Q = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 2, 3)), jnp.float32)


class Table(np.ndarray):
    """An array that can be referred to weakly."""


def score(table, host):
    return lambda logit, at: logit + table[at.k] * jnp.asarray(host)[at.q]


def score_with_a_jit(table, host):
    inner = jax.jit(lambda logit, k: logit + table[k] + jnp.asarray(host)[k])
    return lambda logit, at: inner(logit, at.k)


def seen(table, host):
    return lambda at: table[at.k] + jnp.asarray(host)[at.q] > at.q


def absorbed(table, host):
    return lambda tile: (tile.weights * table[tile.k] * jnp.asarray(host)[tile.q][:, None]).sum()


def zero():
    return jnp.zeros(())


def folded(function):
    return {"observe": {"x": ja.observe.Fold(zero, function)}}


OPTIONS = {
    "score": (score, lambda function: {"score": function}),
    "score-with-a-jit": (score_with_a_jit, lambda function: {"score": [function, ja.SoftCap(9.0)]}),
    "where": (seen, lambda function: {"mask": ja.Causal() & ~ja.Where(function)}),
    "fold": (absorbed, folded),
}


def total(attended):
    return sum(x.sum() for x in jax.tree.leaves((attended.out, attended.observed)))


USES = {
    "call": lambda attend: attend(Q),
    "jit": lambda attend: jax.jit(attend)(Q),
    "grad": lambda attend: jax.grad(lambda q: total(attend(q)))(Q),
    "jit-of-grad": lambda attend: jax.jit(jax.grad(lambda q: total(attend(q))))(Q),
    "vmap": lambda attend: jax.vmap(attend)(Q[None]),
    "linearize": lambda attend: jax.linearize(lambda q: total(attend(q)), Q)[1](Q),
}


@contextmanager
def looking_at_what_is_new():
    """Python looks for cycles often here; what is there before is none of them, and is much."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def assert_gone(make, use):
    """Neither the function, nor the arrays that it closes over, outlive `use` of it."""
    table, host = jnp.arange(9.0), np.arange(9.0, dtype=np.float32).view(Table)
    function = make(table, host)
    left = {"function": function, "table": table, "host": host}
    left = {name: weakref.ref(x) for name, x in left.items()}
    del table, host
    jax.block_until_ready(use(function))
    assert left["function"]() is not None
    del function
    gc.collect()
    assert not [name for name, x in left.items() if x() is not None]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_function_goes_when_its_user_does(option, use, backend):
    make, option_of = OPTIONS[option]

    def call(function):
        return USES[use](lambda q: ja.attend(q, Q, Q, backend=backend, **option_of(function)))

    assert_gone(make, call)


OTHERS = {
    "explain": lambda **x: (ja.explain(Q, Q, Q, **x), None)[1],
    "explain-tiles": lambda **x: (ja.explain(Q, Q, Q, backend=TILED, **x), None)[1],
    "cache": lambda **x: ja.cache.attend(Q, Q, Q, ja.cache.empty((2,), 9, 2, 3), **x),
    "observe": lambda observe=None, **x: ja.observe.observe(
        Q, Q, Q[..., 0], observe or {"x": ja.observe.Entropy()}, **x
    ),
    "attention-function": lambda **x: _attention_fn(**x),
}


def _attention_fn(**options):
    nn = pytest.importorskip("jaxattn.nn")
    return nn.attention_fn(**options)(Q, Q, Q)


@pytest.mark.parametrize("use", OTHERS)
@pytest.mark.parametrize("option", OPTIONS)
def test_also_elsewhere(option, use):
    make, option_of = OPTIONS[option]
    assert_gone(make, lambda function: OTHERS[use](**option_of(function)))


@pytest.mark.sampled(12)
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize(
    "options",
    [
        lambda x: {"score": lambda logit, at: logit + x[at.k, 0, 0]},
        lambda x: {"score": jax.jit(lambda logit, at: logit + x[at.k, 0, 0])},
        lambda x: {"mask": ja.Where(lambda at: x[at.k, 0, 0] > 0)},
    ],
    ids=["score", "score-with-a-jit", "where"],
)
def test_what_is_traced_does_not_leak(options, backend):
    def loss(x):
        return ja.attention(x, x, x, backend=backend, **options(x)).sum()

    with looking_at_what_is_new(), jax.checking_leaks():
        jax.jit(jax.grad(loss))(Q[0])
        jax.grad(loss)(Q[0])
        jax.vmap(loss)(Q)


def test_a_cache_that_is_traced_does_not_leak():
    def step(q, cache):
        shift = q[0, 0, 0, 0]
        return ja.cache.attend(q, q, q, cache, score=lambda logit, at: logit + shift * at.q)

    with looking_at_what_is_new(), jax.checking_leaks():
        jax.jit(step)(Q, ja.cache.empty((2,), 9, 2, 3))


@dataclass(frozen=True)
class Slope:
    """A function that is equal to others."""

    slope: float

    def __call__(self, logit, at):
        return logit - self.slope * (at.q - at.k)


class Model:
    def score(self, logit, at):
        return logit * 2 + at.head


def half(logit, at):
    return logit / 2


def even(at):
    return (at.k % 2 == 0) | (at.k == at.q)


def mass(tile):
    return tile.weights.sum()


MODEL = Model()
CACHE = ja.cache.empty((2,), 9, 2, 3)
TWICE = {
    "function": lambda: ja.attend(Q, Q, Q, score=half),
    "equal-values": lambda: ja.attend(Q, Q, Q, score=Slope(0.5)),
    "method": lambda: ja.attend(Q, Q, Q, score=MODEL.score),
    "where": lambda: ja.attend(Q, Q, Q, mask=ja.Where(even)),
    "fold": lambda: ja.attend(Q, Q, Q, **folded(mass)),
    "fold-gradient": lambda: jax.grad(lambda q: total(ja.attend(q, Q, Q, **folded(mass))))(Q),
    "cache": lambda: ja.cache.attend(Q, Q, Q, CACHE, score=half, mask=ja.Where(even)),
    "observe": lambda: ja.observe.observe(Q, Q, Q[..., 0], **folded(mass), mask=ja.Where(even)),
}


@pytest.mark.parametrize("call", TWICE.values(), ids=TWICE)
def test_a_function_is_compiled_once(call):
    with compilations() as first:
        jax.block_until_ready(call())
    with compilations() as again:
        jax.block_until_ready(call())
    assert first
    assert not again


def test_another_function_is_another():
    """Also in the place in memory of one that is gone."""
    for i in range(5):
        score = [lambda logit, at: logit * at.k, lambda logit, at: logit + at.head][i % 2]
        table = jnp.full(9, float(i))
        inner = jax.jit(lambda logit, k, table=table: logit + table[k] * k)
        both = [score, lambda logit, at, inner=inner: inner(logit, at.k)]
        got = ja.attend(Q, Q, Q, score=both).out
        want = ja.attend(Q, Q, Q, score=both, backend=ja.Reference()).out
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_fold_is_differentiated_after_it_was_traced():
    """A program keeps what it calls again."""

    def plain(q):
        fold = ja.observe.Fold(zero, lambda tile: (tile.weights * Q[0, tile.k, 0, 0]).sum())
        return total(ja.attend(q, Q, Q, observe={"x": fold}, backend=TILED))

    loss = jax.jit(plain)
    loss(Q)
    gc.collect()
    late = jax.grad(loss)(Q)
    np.testing.assert_allclose(late, jax.grad(plain)(Q), rtol=1e-5)


def test_a_fold_goes_in_as_an_argument():
    fold = ja.observe.Fold(zero, mass)
    run = jax.jit(lambda q, fold: ja.attend(q, Q, Q, observe={"x": fold}).observed["x"])
    np.testing.assert_allclose(run(Q, fold), jnp.full((2, 2), 9.0), rtol=1e-5)


def test_a_fold_whose_functions_are_gone_says_so():
    lost = jax.jit(lambda: ja.observe.Fold(lambda: jnp.zeros(()), mass))()
    gc.collect()
    with pytest.raises(ReferenceError, match="make it anew"):
        ja.attend(Q, Q, Q, observe={"x": lost})

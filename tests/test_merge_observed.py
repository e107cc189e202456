"""merge of observations: of parts of the keys, they are those over all of them; or are refused."""

# pyright: reportArgumentType=false, reportCallIssue=false

from itertools import pairwise

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import H, K, Q, S, T, V

import jaxattn as ja
from jaxattn import observe as see

SEEN = np.random.default_rng(0).random((H, T, S)) < 0.4
SEEN[:, 3] = False  # a query that sees nothing in any part
SEEN[:, 5, :7] = False  # and one that sees nothing in the first
RNG = np.random.default_rng(1)
U = RNG.standard_normal((S, 3)).astype(np.float32)
SET = RNG.random(S) < 0.5
EDGES = (0, 4, 9, S)
SINKS = np.linspace(-1, 2, H).astype(np.float32)


def observations(a, b):
    return {
        "lse": see.LogSumExp(),
        "top": see.RowMax(),
        "max": see.MaxLogit(),
        "before": see.MaxLogit(before_scores=True),
        "entropy": see.Entropy(),
        "apply": see.Apply(U[a:b]),
        "mass": see.MassOn(SET[a:b]),
    }


def attend(q, k, a, b, names, sinks=None):
    wanted = {name: x for name, x in observations(a, b).items() if name in names}
    mask = ja.Dense(SEEN[:, :, a:b])
    return ja.attend(q, k[:, a:b], V[:, a:b], mask=mask, observe=wanted, sinks=sinks)


def in_parts(q, k, names, sinks=None):
    parts = [attend(q, k, a, b, names, sinks if a else None) for a, b in pairwise(EDGES[:3])]
    parts.append(attend(q, k, EDGES[2], S, names))
    wanted = {name: x for name, x in observations(0, 4).items() if name in names}
    return ja.merge(*parts, observe=wanted).observed


NAMES = tuple(observations(0, S))


def test_observed_parts_equal_the_whole():
    got = jax.jit(lambda: in_parts(Q, K, NAMES))()
    want = attend(Q, K, 0, S, NAMES).observed
    assert set(got) == set(want)
    for name in NAMES:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_observed_parts_of_which_one_has_sinks():
    names = [name for name in NAMES if name != "entropy"]
    got = jax.jit(lambda: in_parts(Q, K, names, SINKS))()
    want = attend(Q, K, 0, S, names, SINKS).observed
    for name in names:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_gradients_are_those_of_the_whole():
    """Also of queries that see nothing in one part, or in all."""

    def loss(f, q, k):
        seen = {name: jnp.where(jnp.isfinite(x), x, 0) for name, x in f(q, k).items()}
        return sum((x**2 + x).sum() for x in seen.values())

    whole = lambda q, k: attend(q, k, 0, S, NAMES).observed
    parts = lambda q, k: in_parts(q, k, NAMES)
    grad = jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)
    q, k = jnp.asarray(Q), jnp.asarray(K)
    for got, want in zip(grad(parts, q, k), grad(whole, q, k), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_what_speaks_of_places_is_refused_by_name():
    """All others."""
    unplaced = {type(x) for x in observations(0, S).values()}
    every = {name: x for name, (x, _) in catalogue.observations(T, S, H).items()}
    placed = {name for name, x in every.items() if type(x) not in unplaced} | {"mass"}
    part = ja.attend(Q, K, V, positions=ja.Positions(0, 0), observe=every)
    for name in placed:
        one = part._replace(observed={name: part.observed[name]})
        with pytest.raises(ValueError, match=rf"as '{name}'.*observe\(q, k, merged.lse"):
            ja.merge(one, one, observe={name: every[name]})
    assert len(placed) > 10


def test_errors_say_what_to_do():
    seen = ja.attend(Q, K, V, observe={"e": see.Entropy()})
    plain = ja.attend(Q, K, V)
    with pytest.raises(ValueError, match=r"pass observe=.*_replace\(observed"):
        ja.merge(seen, seen)
    with pytest.raises(ValueError, match="same names"):
        ja.merge(seen, plain, observe={"e": see.Entropy()})
    with pytest.raises(TypeError, match="dict of observations"):
        ja.merge(seen, seen, observe=[see.Entropy()])
    assert ja.merge(seen._replace(observed={}), plain).observed == {}
    for other in (plain.out, (plain.out, plain.lse), None):
        with pytest.raises(TypeError, match="results of attend"):
            ja.merge(plain, other)

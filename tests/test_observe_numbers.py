"""Whole numbers in observations: of any integer dtype, as far out as one likes, and no others."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import observe as see

T, S = 5, 300
RNG = np.random.default_rng(0)
Q, K = (RNG.standard_normal((1, n, 2, 4)).astype(np.float32) for n in (T, S))


def show(observation):
    at = ja.Positions(0, 0)
    return ja.attend(Q, K, K, positions=at, observe={"it": observation}).observed["it"]


SAME = {
    "map": (see.Map(np.int64(8)), see.Map(8)),
    "top": (see.TopKeys(np.int64(3)), see.TopKeys(3)),
    "mass": (see.MassOn(np.int64(3)), see.MassOn(3)),
    "mass of all": (see.MassOn(2**40), see.MassOn(S)),
    "mass of none": (see.MassOn(-(2**40)), see.MassOn(0)),
    "diagonal": (see.Diagonal(np.int16(2)), see.Diagonal(2)),
    "diagonal beyond": (see.Diagonal(2**40), see.Diagonal(S)),
    "diagonal before": (see.Diagonal(-(2**40)), see.Diagonal(-T)),
    "columns of few bits": (see.Columns(np.array([3, 7], np.uint8)), see.Columns([3, 7])),
    "columns of few bits in JAX": (see.Columns(jnp.array([3, 7], np.int8)), see.Columns([3, 7])),
    "columns far out": (
        see.Columns(np.array([2**32 + 3, 5, -(2**32) + 3])),
        see.Columns([-1, 5, S]),
    ),
    "columns unsigned": (see.Columns(np.array([2**64 - 1, 5], np.uint64)), see.Columns([-1, 5])),
    "columns unsigned in JAX": (
        see.Columns(jnp.array([2**32 - 1, 5], np.uint32)),
        see.Columns([-1, 5]),
    ),
    "rows far out": (see.Rows(np.array([2**32 + 3, 4])), see.Rows([-1, 4])),
    "rows of few bits": (see.Rows(np.array([4, 200], np.uint8)), see.Rows([4, -1])),
}


@pytest.mark.parametrize("name", SAME)
def test_same_number_shows_the_same(name):
    one, other = (show(x) for x in SAME[name])
    for a, b in zip(
        *(jnp.asarray(x).ravel() if not isinstance(x, tuple) else x for x in (one, other)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_position_outside_has_no_weight():
    assert not np.asarray(show(see.Columns(np.array([2**32 + 3, -1, S])))).any()
    assert not np.asarray(show(see.Rows(np.array([2**32 + 3, -1, T])))).any()
    assert np.asarray(show(see.Columns([S - 1]))).all()
    np.testing.assert_allclose(show(see.MassOn(2**40)), 1, rtol=1e-6)


WRONG = {
    "diagonal of an array": (lambda: see.Diagonal(np.array([1, 2])), "one whole number"),
    "diagonal of END": (lambda: see.Diagonal(ja.END), r"positions=\.\.\."),
    "diagonal of a float": (lambda: see.Diagonal(1.0), "one whole number"),
    "diagonal of a boolean": (lambda: see.Diagonal(True), "one whole number"),
    "map of a boolean": (lambda: see.Map(True), "at least 1 cell"),
    "top of a boolean": (lambda: see.TopKeys(True), "at least 1"),
    "mass on a boolean": (lambda: see.MassOn(True), "number of keys or an array"),
    "columns of floats": (lambda: show(see.Columns([1.5])), "Columns takes tokens"),
    "rows of booleans": (lambda: show(see.Rows(np.ones(T, bool))), "np.flatnonzero"),
    "rows of two axes": (lambda: show(see.Rows(np.ones((2, 2), int))), "along one axis"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_numbers_are_refused(name):
    make, words = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=words):
        make()

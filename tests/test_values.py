"""Masks, scores and observations are equal, and hash alike, when their content is the same."""

# pyright: reportArgumentType=false, reportCallIssue=false

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import observations

import jaxattn as ja
from jaxattn import nn
from jaxattn import observe as see

Q = np.ones((5, 2, 3), np.float32)
TRIANGLE, ARRAY = np.tri(5, dtype=bool), np.linspace(0, 1, 5)
f, g = (lambda at: at.k < 3), (lambda at: at.k < 3)
absorb = lambda seen: seen.weights.sum()
start = lambda: jnp.zeros(())

# Each is made twice alike; no two entries are equal.
ALIKE = {
    "Causal": lambda: ja.Causal(),
    "Causal(1)": lambda: ja.Causal(1),
    "END": lambda: ja.Positions(ja.END),
    "starts": lambda: ja.Positions(np.arange(2)),
    "starts of fewer bits": lambda: ja.Positions(np.arange(2, dtype=np.int8)),
    "Window": lambda: ja.Window(3),
    "and": lambda: ja.Causal() & ja.Window(3),
    "or": lambda: ja.Causal() | ja.Window(3),
    "not": lambda: ~(ja.Causal() & ja.Window(3)),
    "deep": lambda: ja.Segments(np.zeros(5, int)) & (ja.Causal() | ja.Dense(TRIANGLE.copy())),
    "Dense": lambda: ja.Dense(TRIANGLE.copy()),
    "transposed": lambda: ja.Dense(TRIANGLE.T),
    "ids in a list": lambda: ja.Segments([0, 0, 1, 1, 1]),
    "Lengths": lambda: ja.Lengths(k=3),
    "Positions": lambda: ja.Positions(np.arange(5), np.arange(5)),
    "Where f": lambda: ja.Where(f),
    "Where g": lambda: ja.Where(g),
    "EVERYTHING": lambda: ja.EVERYTHING,
    "ALiBi": lambda: ja.ALiBi(),
    "slopes": lambda: ja.ALiBi(np.ones(2)),
    "SoftCap": lambda: ja.SoftCap(30.0),
    "whole cap": lambda: ja.SoftCap(30),
    "jax cap": lambda: ja.SoftCap(jnp.float32(30)),
    "Bias": lambda: ja.Bias(ARRAY.copy()),
    "nan": lambda: ja.Bias(np.array([np.nan])),
    "finer Map": lambda: see.Map(5),
    "Fold": lambda: see.Fold(start, absorb),
    "Fold with arrays": lambda: see.Fold(start, absorb, arrays=(ARRAY,)),
    "Dropout": lambda: ja.Dropout(0.5, jax.random.key(0)),
    "another key": lambda: ja.Dropout(0.5, jax.random.key(1)),
    "attention_fn": lambda: nn.attention_fn(ja.Dense(TRIANGLE.copy()), [ja.ALiBi()]),
    "attention_fn that observes": lambda: nn.attention_fn(observe={"a": see.Map(4)}),
    "attention_fn with sinks": lambda: nn.attention_fn(sinks=np.zeros(2)),
    **{name: lambda name=name: observations(5, 7, 2)[name][0] for name in observations(5, 7, 2)},
}


@pytest.mark.parametrize("name", ALIKE)
def test_equal_to_what_is_made_alike_and_to_nothing_else(name):
    value = ALIKE[name]()
    others = {other: make() for other, make in ALIKE.items()}
    assert [other for other, made in others.items() if value == made] == [name]
    assert hash(value) == hash(others[name])
    assert {made: other for other, made in others.items()}[value] == name


def test_arrays_of_numpy_and_jax_are_equal_where_their_content_is():
    numpy, ours = ja.Dense(TRIANGLE), ja.Dense(jnp.asarray(TRIANGLE))
    assert numpy == ours
    assert len({numpy, ours}) == 1
    assert ja.Bias(np.zeros(2, np.float32)) != ja.Bias(np.zeros(2, np.float16))
    assert ja.Bias(np.zeros((1, 2))) != ja.Bias(np.zeros((2, 1)))


def test_traced_arrays_are_equal_only_to_themselves():
    @jax.jit
    def compare(x, y):
        a, again, b = ja.Dense(x), ja.Dense(x), ja.Dense(y)
        assert a == again
        assert hash(a) == hash(again)
        assert a != b
        assert a != ja.Dense(TRIANGLE)
        return x

    compare(TRIANGLE, TRIANGLE)


def test_a_class_of_a_users_own_compares_arrays_too():
    @dataclass(frozen=True)
    class Mine(ja.Mask):
        array: np.ndarray

    assert Mine(ARRAY) == Mine(ARRAY.copy())
    assert len({Mine(ARRAY), Mine(ARRAY.copy()), Mine(2 * ARRAY)}) == 2


def test_as_static_arguments_they_compile_once_for_equal_values():
    traced = []

    @partial(jax.jit, static_argnames=("mask", "score", "watched"))
    def run(q, mask, score, watched):
        traced.append(mask)
        return ja.attend(q, q, q, mask=mask, score=score, observe={"seen": watched})

    alike = lambda: {
        "mask": ja.Causal() & ja.Dense(TRIANGLE.copy()),
        "score": ja.Bias(ARRAY.copy()),
        "watched": see.MassOn(np.arange(5) < 2),
    }
    run(Q, **alike())
    run(Q, **alike())
    assert len(traced) == 1
    for other in (
        {"mask": ja.Causal() & ja.Dense(TRIANGLE.T)},
        {"score": ja.Bias(2 * ARRAY)},
        {"watched": see.MassOn(np.arange(5) < 3)},
    ):
        before = len(traced)
        run(Q, **alike() | other)
        run(Q, **alike() | other)
        assert len(traced) == before + 1


FIVE = [[1.0], [2.0], [3.0], [4.0], [5.0]]
LISTS = {
    "Lengths": {"mask": ja.Lengths(q=[5, 4], k=[1, 2])},
    "PrefixLM": {"mask": ja.PrefixLM([1, 2])},
    "Segments": {"mask": ja.Segments([0, 0, 1, 1, 1])},
    "Dense": {"mask": ja.Dense([[True] * 5] * 5)},
    "Positions": {"mask": ja.Causal(), "positions": ja.Positions([0, 1], [0, 0])},
    "scores": {"score": (ja.Bias([1.0, 2, 3, 4, 5]), ja.ALiBi([1.0, 2]))},
    "RelativeBias": {"score": ja.RelativeBias([[1.0, 2]] * 8)},
    "of queries": {"observe": {"a": see.Apply(FIVE), "b": see.Columns([1]), "c": see.Rows([2, 0])}},
    "of keys": {"observe": {"a": see.ApplyTransposed(FIVE), "b": see.Received([1.0, 2, 3, 4, 5])}},
    "MassOn": {"observe": {"a": see.MassOn([True, False, True, True, False])}},
}


@pytest.mark.parametrize("options", LISTS.values(), ids=LISTS)
def test_lists_of_numbers_go_through_jit(options):
    q = np.random.default_rng(0).standard_normal((2, 5, 2, 3)).astype(np.float32)
    run = lambda options: ja.attend(q, q, q, **options)
    got, want = jax.jit(run)(options), run(options)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

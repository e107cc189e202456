"""Errors about scores, functions, sinks, dropout and merge, as in test_errors.py."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_errors import UNPLACED, ask, assert_says

import jaxattn as ja

# name: what is done, the error, and what its message must hold: the rule, what came, the remedy.
WRONG = {
    "a bare array as the score": (
        lambda: ask(score=np.zeros((5, 7))),
        TypeError,
        ["score", "array", "[5, 7]", "Bias(array)"],
    ),
    "a number as the score": (lambda: ask(score=3.0), TypeError, ["score", "Bias(array)", "3.0"]),
    "a class as the score": (lambda: ask(score=ja.ALiBi), TypeError, ["score", "ALiBi"]),
    "an array in a sequence of scores": (
        lambda: ask(score=[ja.ALiBi(), np.zeros(7)], positions=ja.END),
        TypeError,
        ["score", "[7]", "Bias(array)"],
    ),
    "bias shape": (
        lambda: ask(score=ja.Bias(np.zeros((5, 6)))),
        ValueError,
        ["Bias", "[*b h t s]", "[2, 4, 5, 7]", "(5, 6)", "or 1"],
    ),
    "bias of booleans": (
        lambda: ask(score=ja.Bias(np.ones((5, 7), bool))),
        TypeError,
        ["Bias", "real", "bool", "cast"],
    ),
    "alibi alignment": (
        lambda: ask(score=ja.ALiBi()),
        ValueError,
        ["ALiBi", *UNPLACED],
    ),
    "alibi slopes": (
        lambda: ask(score=ja.ALiBi(np.ones(3))),
        ValueError,
        ["ALiBi", "each query head", "4", "(3,)", "None"],
    ),
    "relative table": (
        lambda: ask(score=ja.RelativeBias(np.zeros((4, 8)))),
        ValueError,
        ["RelativeBias", "[buckets h]", "4", "(4, 8)", "transpose"],
    ),
    "relative table with few buckets": (
        lambda: ask(score=ja.RelativeBias(np.zeros((3, 4)))),
        ValueError,
        ["RelativeBias", "at least 4 buckets", "3 buckets"],
    ),
    "relative max_distance": (
        lambda: ask(score=ja.RelativeBias(np.zeros((32, 4)), max_distance=8)),
        ValueError,
        ["RelativeBias", "max_distance", "above 8", "max_distance=8"],
    ),
    "cap of 0": (lambda: ja.SoftCap(0), ValueError, ["above 0", "0", "leave SoftCap out"]),
    "negative cap": (lambda: ja.SoftCap(-2.5), ValueError, ["above 0", "-2.5"]),
    "cap of each head": (
        lambda: ask(score=ja.SoftCap(np.ones(4, np.float32))),
        ValueError,
        ["soft cap", "one number", "(4,)", "function"],
    ),
    "function of a row": (
        lambda: ask(score=lambda logit, at: logit + jnp.zeros(7)),
        ValueError,
        ["score function", "one pair", "(7,)", "scalars"],
    ),
    "function of nothing": (
        lambda: ask(score=lambda logit, at: None),
        ValueError,
        ["score function", "one number", "[]"],
    ),
    "function that masks": (
        lambda: ask(score=lambda logit, at: at.k <= at.q),
        TypeError,
        ["score function", "floating", "bool", "Where(function)"],
    ),
    "where of an array": (
        lambda: ask(mask=ja.Where(np.ones((5, 7), bool))),
        TypeError,
        ["Where", "function", "Dense(array)"],
    ),
    "where of numbers": (
        lambda: ask(mask=ja.Where(lambda at: at.q - at.k)),
        TypeError,
        ["Where", "boolean", "int32", "!= 0"],
    ),
    "where of a row": (
        lambda: ask(mask=ja.Where(lambda at: jnp.ones(7, bool))),
        ValueError,
        ["Where", "one pair", "(7,)", "scalars"],
    ),
    "a function as the mask": (
        lambda: ask(mask=lambda at: at.k <= at.q),
        TypeError,
        ["mask", "function", "Where(function)"],
    ),
    "or with a function": (
        lambda: ja.Causal() | (lambda at: at.k <= at.q),
        TypeError,
        ["mask", "function", "Where(function)"],
    ),
    "prefix length": (
        lambda: ask(mask=ja.PrefixLM(np.zeros(3, int)), positions=ja.END),
        ValueError,
        ["PrefixLM.length", "[2]", "(3,)"],
    ),
    "prefix alignment": (
        lambda: ask(mask=ja.PrefixLM(3)),
        ValueError,
        ["PrefixLM", *UNPLACED],
    ),
    "relative alignment": (
        lambda: ask(score=ja.RelativeBias(np.zeros((4, 4)))),
        ValueError,
        ["RelativeBias", *UNPLACED],
    ),
    "function alignment": (
        lambda: ask(score=lambda logit, at: logit * at.k),
        ValueError,
        ["a score function", *UNPLACED],
    ),
    "where alignment": (
        lambda: ask(mask=ja.Where(lambda at: at.k < at.q)),
        ValueError,
        ["a Where", *UNPLACED],
    ),
    "distance alignment": (
        lambda: ask(observe={"it": ja.observe.Distance()}),
        ValueError,
        ["Distance", *UNPLACED],
    ),
    "diagonal alignment": (
        lambda: ask(observe={"it": ja.observe.Diagonal()}),
        ValueError,
        ["Diagonal", *UNPLACED],
    ),
    "fold alignment": (
        lambda: ask(observe={"it": ja.observe.Fold(lambda: 0, lambda seen: seen.q.sum())}),
        ValueError,
        ["an observation that reads `q` or `k`", *UNPLACED],
    ),
    "sinks of key heads": (
        lambda: ask(sinks=np.zeros(2, np.float32)),
        ValueError,
        ["sinks", "each query head", "h=4", "[2]"],
    ),
    "sinks of integers": (
        lambda: ask(sinks=np.zeros(4, int)),
        ValueError,
        ["sinks", "floating", "int", "[4]"],
    ),
    "rate above 1": (
        lambda: ja.Dropout(1.5, jax.random.key(0)),
        ValueError,
        ["rate", "from 0 to 1", "1.5"],
    ),
    "negative rate": (lambda: ja.Dropout(-0.1, jax.random.key(0)), ValueError, ["rate", "-0.1"]),
    "rate of each head": (
        lambda: ask(dropout=ja.Dropout(jnp.ones(4), jax.random.key(0))),
        ValueError,
        ["rate", "one number", "(4,)"],
    ),
    "a seed as the key": (
        lambda: ask(dropout=ja.Dropout(0.1, 7)),
        TypeError,
        ["key", "jax.random", "int", "jax.random.key(0)"],
    ),
    "several keys": (
        lambda: ask(dropout=ja.Dropout(0.1, jax.random.split(jax.random.key(0), 3))),
        ValueError,
        ["one key", "(3,)"],
    ),
    "a rate as the dropout": (
        lambda: ask(dropout=0.1),
        TypeError,
        ["Dropout(rate, key)", "0.1", "None"],
    ),
    "merge of other queries": (
        lambda: ja.merge(
            ja.Attended(jnp.zeros((5, 4, 6)), jnp.zeros((5, 4))),
            ja.Attended(jnp.zeros((3, 4, 6)), jnp.zeros((3, 4))),
        ),
        ValueError,
        ["same queries", "(5, 4, 6)", "(3, 4, 6)", "same q"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_says_rule_what_came_and_remedy(name):
    assert_says(*WRONG[name])


def test_a_function_of_whole_axes_is_told_that_positions_are_scalars():
    """The error is the user's own, with a note."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask(score=lambda logit, at: logit + (at.q[:, None] - at.k[None, :]))
    assert any("scalars" in note for note in caught.value.__notes__)
    with pytest.raises(ZeroDivisionError) as caught:
        ask(mask=ja.Where(lambda at: at.q > 1 // 0))
    assert any("Where" in note for note in caught.value.__notes__)


TABLE = np.arange(7.0)
NOTES = {
    "array": (lambda x, at: x + TABLE[at.k], "jnp.asarray(table)[at.k]"),
    "list": (lambda x, at: x + [*TABLE][at.k], "jnp.asarray(table)[at.k]"),
    "numpy": (lambda x, at: x * np.sqrt(at.k), "those of jax.numpy"),
    "and": (lambda x, at: jnp.where(at.k < 3 and at.q > 2, x, 0), "&, | and ~"),
    "or": (lambda x, at: jnp.where(at.k < 3 or at.q > 2, x, 0), "&, | and ~"),
    "not": (lambda x, at: jnp.where(not at.k, x, 0), "&, | and ~"),
    "if": (lambda x, at: x if at.k < 3 else 0 * x, "jnp.where(condition, x, y)"),
    "chain": (lambda x, at: jnp.where(0 <= at.k <= 3, x, 0), "(a <= b) & (b <= c)"),
    "float": (lambda x, at: x * float(at.k), "x.astype(jnp.float32)"),
    "math": (lambda x, at: x * math.sqrt(at.k), "those of jax.numpy"),
    "range": (lambda x, at: x + sum(range(at.k)), "a range"),
}


@pytest.mark.parametrize("as_mask", [False, True], ids=["score", "Where"])
@pytest.mark.parametrize("name", NOTES)
def test_the_note_says_what_to_write_instead(name, as_mask):
    function, remedy = NOTES[name]
    where = ja.Where(lambda at: function(jnp.float32(1), at) > 0)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask(mask=where) if as_mask else ask(score=function)
    ours = [note for note in caught.value.__notes__ if "every pair" in note]
    assert len(ours) == 1
    assert remedy in ours[0]

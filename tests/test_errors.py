"""Every error says the rule, what came, and what to do about it."""

# pyright: reportArgumentType=false, reportCallIssue=false
# NumPy arrays and wrong types go in on purpose.

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja


def ask(q=(2, 5, 4, 3), k=(2, 7, 2, 3), v=(2, 7, 2, 6), dtypes=(jnp.float32,) * 3, **options):
    arrays = (jnp.zeros(shape, dtype) for shape, dtype in zip((q, k, v), dtypes, strict=True))
    return ja.attend(*arrays, **options)


SQUARE = {"k": (2, 5, 2, 3), "v": (2, 5, 2, 6)}
F32, F16, I32 = jnp.float32, jnp.float16, jnp.int32

# name: what is done, the error, and what its message must hold: the rule, what came, the remedy.
WRONG = {
    "rank of q": (
        lambda: ask(q=(5, 3)),
        ValueError,
        ["q", "at least 3", "(5, 3)", "q[:, None, :]"],
    ),
    "rank of k": (
        lambda: ask(k=(7, 3)),
        ValueError,
        ["k", "at least 3", "(7, 3)", "k[:, None, :]"],
    ),
    "rank of v": (lambda: ask(v=(6,)), ValueError, ["v", "at least 3", "(6,)"]),
    "batch": (lambda: ask(k=(3, 7, 2, 3)), ValueError, ["batch", "(2,)", "(3,)", "broadcast"]),
    "batch of v": (lambda: ask(v=(7, 2, 6)), ValueError, ["batch", "(2,)", "()", "broadcast"]),
    "d": (lambda: ask(k=(2, 7, 2, 9)), ValueError, ["d", "3 in q", "9 in k", "[*b t h d]"]),
    "s": (lambda: ask(v=(2, 8, 2, 6)), ValueError, ["s", "7 in k", "8 in v", "[*b s n e]"]),
    "n": (lambda: ask(v=(2, 7, 4, 6)), ValueError, ["n", "2 in k", "4 in v", "[*b s n e]"]),
    "heads": (
        lambda: ask(q=(2, 5, 3, 3)),
        ValueError,
        ["multiple", "h=3", "n=2", "(2, 5, 3, 3)", "(2, 7, 2, 3)", "repeat k and v"],
    ),
    "fewer query heads": (lambda: ask(q=(2, 5, 1, 3)), ValueError, ["multiple", "h=1", "n=2"]),
    "no key heads": (
        lambda: ask(k=(2, 7, 0, 3), v=(2, 7, 0, 6)),
        ValueError,
        ["multiple", "h=4", "n=0"],
    ),
    "scale": (
        lambda: ask(scale=jnp.ones(4)),
        ValueError,
        ["scale", "one number", "(4,)", "multiply q"],
    ),
    "causal": (
        lambda: ask(mask=ja.Causal()),
        ValueError,
        ["t != s", "t=5", "s=7", "offset=0", "offset=END", "first query", "last query"],
    ),
    "window": (
        lambda: ask(mask=ja.Window(3)),
        ValueError,
        ["Window", "t != s", "t=5", "s=7", "offset=0", "offset=END"],
    ),
    "causal in a combination": (
        lambda: ask(mask=ja.Lengths(k=3) & ja.Causal()),
        ValueError,
        ["Causal", "t=5", "s=7", "offset=0", "offset=END"],
    ),
    "causal offset shape": (
        lambda: ask(mask=ja.Causal(np.zeros(3, int))),
        ValueError,
        ["Causal.offset", "broadcast", "[2]", "(3,)", "or 1"],
    ),
    "causal offset dtype": (
        lambda: ask(mask=ja.Causal(np.zeros(2))),
        TypeError,
        ["Causal.offset", "integers", "float", "(2,)", "cast"],
    ),
    "dense shape": (
        lambda: ask(mask=ja.Dense(np.ones((5, 6), bool))),
        ValueError,
        ["Dense", "[*b h t s]", "[2, 4, 5, 7]", "(5, 6)", "or 1"],
    ),
    "dense rank": (
        lambda: ask(mask=ja.Dense(np.ones((1, 2, 4, 5, 7), bool))),
        ValueError,
        ["Dense", "[2, 4, 5, 7]", "(1, 2, 4, 5, 7)"],
    ),
    "dense heads of the keys": (
        lambda: ask(mask=ja.Dense(np.ones((2, 2, 5, 7), bool))),
        ValueError,
        ["Dense", "[2, 4, 5, 7]", "(2, 2, 5, 7)"],
    ),
    "dense of numbers": (
        lambda: ask(mask=ja.Dense(np.ones((5, 7), np.float32))),
        TypeError,
        ["Dense", "booleans", "float32", "(5, 7)", "!= 0"],
    ),
    "segments shape": (
        lambda: ask(mask=ja.Segments(np.zeros((2, 6), int), np.zeros((2, 7), int))),
        ValueError,
        ["Segments.q_ids", "each position", "5", "(2, 6)", "[*b 5]"],
    ),
    "segments of the keys": (
        lambda: ask(mask=ja.Segments(np.zeros((2, 5), int), np.zeros((2, 6), int))),
        ValueError,
        ["Segments.k_ids", "7", "(2, 6)", "[*b 7]"],
    ),
    "segments batch": (
        lambda: ask(mask=ja.Segments(np.zeros((3, 5), int)), **SQUARE),
        ValueError,
        ["Segments.q_ids", "broadcast", "[2, 5]", "(3, 5)"],
    ),
    "segments dtype": (
        lambda: ask(mask=ja.Segments(np.zeros((2, 5))), **SQUARE),
        TypeError,
        ["Segments.q_ids", "integers", "float", "cast"],
    ),
    "segments without key ids": (
        lambda: ask(mask=ja.Segments(np.zeros((2, 5), int))),
        ValueError,
        ["Segments", "t=5", "s=7", "Segments(q_ids, k_ids)"],
    ),
    "lengths shape": (
        lambda: ask(mask=ja.Lengths(k=np.zeros(3, int))),
        ValueError,
        ["Lengths.k", "broadcast", "[2]", "(3,)"],
    ),
    "lengths rank": (
        lambda: ask(mask=ja.Lengths(q=np.zeros((2, 1), int))),
        ValueError,
        ["Lengths.q", "broadcast", "[2]", "(2, 1)"],
    ),
    "lengths dtype": (
        lambda: ask(mask=ja.Lengths(k=np.zeros(2))),
        TypeError,
        ["Lengths.k", "integers", "float", "cast"],
    ),
    "integers": (
        lambda: ask(dtypes=(F32, I32, F32)),
        TypeError,
        ["floating point", "k", "int32", "k.astype(jnp.float32)"],
    ),
    "booleans": (
        lambda: ask(dtypes=(F32, F32, bool)),
        TypeError,
        ["floating", "v", "bool", "cast"],
    ),
    "complex": (
        lambda: ask(dtypes=(jnp.complex64,) * 3),
        TypeError,
        ["real", "q", "complex64", "cast"],
    ),
    "mixed dtypes": (
        lambda: ask(dtypes=(F32, F16, F32)),
        TypeError,
        ["one dtype", "float32", "float16", "cast"],
    ),
    "negative left": (lambda: ja.Window(-1), ValueError, ["at least 0", "left=-1", "offset"]),
    "negative right": (lambda: ja.Window(2, -3), ValueError, ["at least 0", "right=-3", "offset"]),
    "fraction of a window": (lambda: ja.Window(2.5), ValueError, ["whole", "left=2.5"]),
    "no queries in a block": (
        lambda: ja.Blockwise(q_block=0),
        ValueError,
        ["at least 1", "q_block=0", "None"],
    ),
    "negative key block": (
        lambda: ja.Blockwise(k_block=-8),
        ValueError,
        ["at least 1", "k_block=-8", "None"],
    ),
    "an array as the mask": (
        lambda: ask(mask=np.ones((5, 7), bool)),
        TypeError,
        ["mask", "array", "5, 7]", "Dense(array)"],
    ),
    "a word as the mask": (lambda: ask(mask="causal"), TypeError, ["mask", "Causal()", "'causal'"]),
    "no mask": (lambda: ask(mask=None), TypeError, ["mask", "EVERYTHING", "None"]),
    "a class as the mask": (lambda: ask(mask=ja.Causal), TypeError, ["mask", "Causal"]),
    "and with an array": (
        lambda: ja.Causal() & np.ones((5, 7), bool),
        TypeError,
        ["mask", "5, 7]", "Dense(array)"],
    ),
    "a bare array as the score": (
        lambda: ask(score=np.zeros((5, 7))),
        TypeError,
        ["score", "array", "[5, 7]", "Bias(array)"],
    ),
    "a number as the score": (lambda: ask(score=3.0), TypeError, ["score", "Bias(array)", "3.0"]),
    "a class as the score": (lambda: ask(score=ja.ALiBi), TypeError, ["score", "ALiBi"]),
    "an array in a sequence of scores": (
        lambda: ask(score=[ja.ALiBi(offset=0), np.zeros(7)]),
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
        ["ALiBi", "t=5", "s=7", "offset=0", "offset=END"],
    ),
    "alibi slopes": (
        lambda: ask(score=ja.ALiBi(np.ones(3), 0)),
        ValueError,
        ["ALiBi", "each query head", "4", "(3,)", "None"],
    ),
    "relative table": (
        lambda: ask(score=ja.RelativeBias(np.zeros((4, 8)), offset=0)),
        ValueError,
        ["RelativeBias", "[buckets h]", "4", "(4, 8)", "transpose"],
    ),
    "relative table with few buckets": (
        lambda: ask(score=ja.RelativeBias(np.zeros((3, 4)), offset=0)),
        ValueError,
        ["RelativeBias", "at least 4 buckets", "3 buckets"],
    ),
    "relative max_distance": (
        lambda: ask(score=ja.RelativeBias(np.zeros((32, 4)), max_distance=8, offset=0)),
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
        lambda: ask(mask=ja.PrefixLM(np.zeros(3, int), 0)),
        ValueError,
        ["PrefixLM.length", "[2]", "(3,)"],
    ),
    "prefix alignment": (
        lambda: ask(mask=ja.PrefixLM(3)),
        ValueError,
        ["PrefixLM", "t=5", "s=7", "offset=END"],
    ),
    "positions of the keys": (
        lambda: ask(mask=ja.Positions(np.zeros(5, int), np.zeros(6, int))),
        ValueError,
        ["Positions.k", "7", "(6,)"],
    ),
    "positions left": (
        lambda: ja.Positions(np.zeros(5, int), np.zeros(7, int), left=-1),
        ValueError,
        ["at least 0", "left=-1"],
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
    "a word as the backend": (
        lambda: ask(backend="xla"),
        TypeError,
        ["backend", "Reference()", "Blockwise(", "AUTO", "'xla'"],
    ),
    "a class as the backend": (
        lambda: ask(backend=ja.Blockwise),
        TypeError,
        ["backend", "AUTO", "Blockwise"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_says_rule_what_came_and_remedy(name):
    act, kind, parts = WRONG[name]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert re.search(r"\bgot\b", message), f"does not say what came: {message}"
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def test_a_function_of_whole_axes_is_told_that_positions_are_scalars():
    """The error is the user's own, with a note."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask(score=lambda logit, at: logit + (at.q[:, None] - at.k[None, :]))
    assert any("scalars" in note for note in caught.value.__notes__)
    with pytest.raises(ZeroDivisionError) as caught:
        ask(mask=ja.Where(lambda at: at.q > 1 // 0))
    assert any("Where" in note for note in caught.value.__notes__)


def test_errors_come_while_tracing():
    with pytest.raises(ValueError, match="multiple"):
        jax.eval_shape(ja.attention, *(jnp.zeros(x) for x in ((5, 3, 3), (7, 2, 3), (7, 2, 6))))


@pytest.mark.parametrize("mask", [ja.Causal(), ja.Window(3), ja.Window(3, offset=None)], ids=repr)
def test_alignment_may_be_left_out_for_equal_lengths(mask):
    assert ask(mask=mask, **SQUARE).out.shape == (2, 5, 4, 6)


def test_bounds_that_are_right_are_taken():
    ja.Window(0, 0)
    ja.Window(None, None)
    ja.Blockwise(1, 1)
    ja.Blockwise(None, None)

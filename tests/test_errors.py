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

ROW = np.arange(5)
UNPLACED = [
    "positions",
    "t != s",
    "t=5",
    "s=7",
    "Positions(0, 0)",
    "END",
    "first query",
    "last query",
]

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
        ["Causal", *UNPLACED],
    ),
    "window": (
        lambda: ask(mask=ja.Window(3)),
        ValueError,
        ["Window", *UNPLACED],
    ),
    "causal in a combination": (
        lambda: ask(mask=ja.Lengths(k=3) & ja.Causal()),
        ValueError,
        ["Causal", *UNPLACED],
    ),
    "a word as an offset": (lambda: ja.Causal("END"), TypeError, ["Causal.offset", "'END'"]),
    "END as an offset": (
        lambda: ja.Causal(ja.END),
        TypeError,
        ["Causal.offset", "whole", "END", "positions=Positions("],
    ),
    "an array as an offset": (
        lambda: ja.Window(3, 0, np.zeros(3, int)),
        TypeError,
        ["Window.offset", "whole", "int64[3]", "positions=Positions("],
    ),
    "positions shape": (
        lambda: ask(mask=ja.Causal(), positions=ja.Positions(np.zeros(3, int))),
        ValueError,
        ["positions q", "[*b] = [2]", "[2, 5]", "(3,)", "or 1"],
    ),
    "positions rank": (
        lambda: ask(positions=ja.Positions(0, np.zeros((1, 2, 7), int))),
        ValueError,
        ["positions k", "[2, 7]", "(1, 2, 7)"],
    ),
    "positions dtype": (
        lambda: ask(positions=ja.Positions(np.zeros(2))),
        TypeError,
        ["positions q", "integers", "float", "(2,)", "cast"],
    ),
    "positions that fit in two ways": (
        lambda: ask(q=(5, 5, 4, 3), k=(5, 7, 2, 3), v=(5, 7, 2, 6), positions=ja.Positions(ROW)),
        ValueError,
        ["positions q", "(5,)", "both fit", "q[..., None] for starts", "q[None] for tokens"],
    ),
    "positions of fewer keys": (
        lambda: ask(q=(2, 9, 4, 3), positions=ja.Positions(ja.END, np.arange(7))),
        ValueError,
        ["END", "t=9", "s=7", "queries' positions"],
    ),
    "positions of no kind": (
        lambda: ask(positions=np.arange(5)),
        TypeError,
        ["Positions(q=..., k=...)", "END", "int64[5]"],
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


def assert_says(act, kind, parts):
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert re.search(r"\bgot\b", message), f"does not say what came: {message}"
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


@pytest.mark.parametrize("name", WRONG)
def test_error_says_rule_what_came_and_remedy(name):
    assert_says(*WRONG[name])


def test_errors_come_while_tracing():
    with pytest.raises(ValueError, match="multiple"):
        jax.eval_shape(ja.attention, *(jnp.zeros(x) for x in ((5, 3, 3), (7, 2, 3), (7, 2, 6))))


@pytest.mark.parametrize(
    "mask", [ja.Causal(), ja.Window(3), ja.Where(lambda at: at.k < at.q)], ids=["c", "w", "f"]
)
def test_positions_may_be_left_out_for_equal_lengths(mask):
    assert ask(mask=mask, **SQUARE).out.shape == (2, 5, 4, 6)


def test_bounds_that_are_right_are_taken():
    ja.Window(0, 0)
    ja.Window(None, None)
    ja.Blockwise(1, 1)
    ja.Blockwise(None, None)

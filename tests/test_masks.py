"""Which pairs each mask lets through, read off the outputs, against its dense definition."""

# pyright: reportArgumentType=false, reportCallIssue=false

import re
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from rules import (
    Shape,
    both,
    causal,
    dense,
    either,
    everything,
    inverse,
    lengths,
    looked_up,
    packed,
    positions,
    prefix,
    scattered,
    strided,
    window,
)

import jaxattn as ja

pytestmark = pytest.mark.sampled(3)

T, S = 13, 17
WIDE = Shape((2,), T, S, 4, 2, 1, S)
TALL = WIDE._replace(t=S, s=T, e=T)
SQUARE = WIDE._replace(s=T, e=T)
BACKENDS = (ja.Reference(), ja.Blockwise(q_block=4, k_block=3))


def seen(shape, mask, backend):
    """[*b h t s]: the keys that got weight. The values are the unit vectors, so out shows it."""
    value = np.broadcast_to(np.eye(shape.s, dtype=np.float32)[:, None, :], shape.v)
    q, k = jnp.zeros(shape.q), jnp.zeros(shape.k)
    out = ja.attention(q, k, jnp.asarray(value), mask=mask, backend=backend)
    return np.asarray(out).swapaxes(-2, -3) > 0


def assert_lets_through(allowed, mask, shape, backend):
    want = np.broadcast_to(allowed, shape.scores)
    np.testing.assert_array_equal(seen(shape, mask, backend), want)


RULES = {
    "everything": (WIDE, everything),
    "causal": (SQUARE, causal()),
    "causal-0": (WIDE, causal(0)),
    "causal-end": (WIDE, causal(ja.END)),
    "causal-0-tall": (TALL, causal(0)),
    "causal-end-tall": (TALL, causal(ja.END)),
    "causal-far-behind": (SQUARE, causal(-100)),
    "causal-far-ahead": (SQUARE, causal(100)),
    "causal-each": (WIDE, causal(np.array([-3, 6]))),
    "window": (SQUARE, window(3)),
    "window-right": (SQUARE, window(0, 3)),
    "window-itself": (SQUARE, window(0, 0)),
    "window-end": (WIDE, window(2, 1, ja.END)),
    "window-end-tall": (TALL, window(2, 1, ja.END)),
    "window-away": (SQUARE, window(2, 1, 30)),
    "window-no-left": (WIDE, window(None, 2, 0)),
    "window-no-right": (WIDE, window(2, None, ja.END)),
    "window-no-bounds": (WIDE, window(None, None, 0)),
    "window-each": (WIDE, window(2, 1, np.array([-3, 6]))),
    "lengths-keys": (WIDE, lengths(k=np.array([0, 9]))),
    "lengths-queries": (WIDE, lengths(q=np.array([13, 4]))),
    "lengths-both": (WIDE, lengths(np.array([2, 13]), np.array([17, 3]))),
    "lengths-one-for-all": (WIDE, lengths(np.array([5]), 3)),
    "lengths-scalars": (WIDE, lengths(np.array(5), np.array(3))),
    "lengths-none": (WIDE, lengths()),
    "segments-packed": (SQUARE, packed),
    "segments-scattered": (WIDE, scattered),
    "dense-ts": (WIDE, dense("ts")),
    "dense-hts": (WIDE, dense("hts")),
    "dense-b1ts": (WIDE, dense("b1ts")),
    "dense-bhts": (WIDE, dense("bhts")),
    "dense-b11s": (WIDE, dense("b11s")),
    "dense-bht1": (WIDE, dense("bht1")),
    "dense-1": (WIDE, dense("1")),
    "causal-window": (WIDE, both(causal(ja.END), window(3, 3, 2))),
    "causal-segments": (SQUARE, both(causal(), packed)),
    "window-dense-lengths": (WIDE, both(window(4, 4, 0), dense("h11", 0.5), lengths(k=11))),
    "all-at-once": (SQUARE, both(causal(2), window(6, 1), packed, lengths(9, 11), dense("ts"))),
    "disjoint": (SQUARE, both(causal(-3), window(2, 2))),
    "prefix": (WIDE, prefix(5)),
    "prefix-end": (WIDE, prefix(3, ja.END)),
    "prefix-each": (WIDE, prefix(np.array([9, 0]), np.array([-3, 2]))),
    "prefix-of-all": (SQUARE, prefix(50)),
    "ring-buffer": (WIDE, positions(4)),
    "ring-buffer-both-sides": (WIDE, positions(2, 3, roll=-4)),
    "ring-buffer-unbounded": (WIDE, positions(None, None)),
    "strided": (WIDE, strided()),
    "looked-up": (WIDE, looked_up),
    "not-everything": (WIDE, inverse(everything)),
    "not-causal": (WIDE, inverse(causal(ja.END))),
    "not-window": (SQUARE, inverse(window(2, 1))),
    "not-not-window": (SQUARE, inverse(inverse(window(2, 1)))),
    "not-lengths": (WIDE, inverse(lengths(np.array([2, 13]), np.array([17, 3])))),
    "not-segments": (WIDE, inverse(scattered)),
    "not-looked-up": (WIDE, inverse(looked_up)),
    "window-or-first-keys": (SQUARE, either(window(2), lengths(k=2))),
    "two-windows": (SQUARE, either(window(1, 0, -5), window(0, 1, 5))),
    "everything-or": (WIDE, either(everything, scattered)),
    "nothing-or": (WIDE, either(inverse(everything), scattered)),
    "segments-or-strided": (SQUARE, either(packed, strided(4), dense("hts", 0.1))),
    "causal-and-either": (SQUARE, both(causal(), either(packed, lengths(k=2)))),
    "either-and-either": (WIDE, both(either(scattered, strided()), either(prefix(2), looked_up))),
    "nested": (SQUARE, inverse(both(either(window(3), inverse(packed)), inverse(strided(2))))),
}


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("name", RULES)
def test_mask_lets_through_what_its_definition_says(name, backend):
    shape, build = RULES[name]
    mask, allowed = build(shape, np.random.default_rng(0))
    assert_lets_through(allowed, mask, shape, backend)


def test_segments_of_a_shared_row_broadcast_over_the_batch():
    ids = np.array([0] * 5 + [1] * 6 + [-1] * 2)
    for backend in BACKENDS:
        assert_lets_through(oracle.segments(ids), ja.Segments(ids), SQUARE, backend)


def test_rank_2_batch_takes_masks_of_its_shape():
    shape = SQUARE._replace(batch=(2, 3))
    offset = np.arange(6).reshape(2, 3) - 3
    for backend in BACKENDS:
        assert_lets_through(
            oracle.causal(T, T, offset), ja.Causal(jnp.asarray(offset)), shape, backend
        )
        assert_lets_through(
            oracle.lengths(T, T, k=offset[:, :1] + 5),
            ja.Lengths(k=jnp.asarray(offset[:, :1] + 5)),
            shape,
            backend,
        )


def test_and_is_associative_and_commutative():
    one, two, three = ja.Causal(1), ja.Window(3, 2), ja.Lengths(k=9)
    masks = ((one & two) & three, one & (two & three), three & two & one, (one & two) & one & three)
    first, *rest = (seen(SQUARE, mask, BACKENDS[1]) for mask in masks)
    assert first.any()
    assert not first.all()
    for other in rest:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_laws_of_de_morgan(backend):
    one, two = ja.Causal(1), ja.Segments(np.arange(T) // 4)
    for left, right in ((~(one & two), ~one | ~two), (~(one | two), ~one & ~two)):
        got = seen(SQUARE, left, backend)
        assert got.any()
        assert not got.all()
        np.testing.assert_array_equal(got, seen(SQUARE, right, backend))


def test_where_takes_arrays_that_are_traced():
    """Under jit and vmap, and one that a gradient flows to, which does not reach through it."""
    tables = np.random.default_rng(0).integers(0, T, (3, S))
    allowed = tables[:, None, :] > np.arange(T)[:, None]

    def run(table):
        value = jnp.broadcast_to(jnp.eye(S)[:, None, :], WIDE.v)
        mask = ja.Where(lambda at: table[at.k] > at.q)
        q, k = jnp.zeros(WIDE.q), jnp.zeros(WIDE.k)
        return ja.attention(q, k, value, mask=mask, backend=BACKENDS[1]).swapaxes(-2, -3) > 0

    got = jax.jit(jax.vmap(run))(jnp.asarray(tables))
    want = np.broadcast_to(allowed[:, None, None], got.shape)
    np.testing.assert_array_equal(got, want)

    def out(x):
        q, k, v = (jnp.ones(shape) for shape in (WIDE.q, WIDE.k, WIDE.v))
        mask = ja.Where(lambda at: x[at.k] > 0)
        return ja.attention(q, k, v * x[:, None, None], mask=mask, backend=BACKENDS[1]).sum()

    x = jnp.asarray([-1.0, 1.0] * (S // 2) + [2.0])
    gradient = np.asarray(jax.grad(out)(x))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient != 0, np.asarray(x) > 0)


SHOWN = {
    "Causal(offset=END) & Window(left=3, right=0, offset=None)": ja.Causal(ja.END) & ja.Window(3),
    "Causal(offset=None) | ~Lengths(q=None, k=4)": ja.Causal() | ~ja.Lengths(k=4),
    "(EVERYTHING | PrefixLM(length=2, offset=0)) & ~(Causal(offset=1) & Causal(offset=2))": (
        (ja.EVERYTHING | ja.PrefixLM(2, 0)) & ~(ja.Causal(1) & ja.Causal(2))
    ),
    "Causal(offset=1) & Causal(offset=2) | Causal(offset=3)": (
        ja.Causal(1) & ja.Causal(2) | ja.Causal(3)
    ),
    "Positions(q=int64[2, 5], k=int64[7], left=None, right=0)": ja.Positions(
        np.zeros((2, 5), int), np.zeros(7, int)
    ),
}


@pytest.mark.parametrize("text", SHOWN)
def test_repr_is_as_it_would_be_written(text):
    assert repr(SHOWN[text]) == text


MASKS = {
    "everything": ja.EVERYTHING,
    "causal": ja.Causal(3),
    "causal-end": ja.Causal(ja.END),
    "causal-array": ja.Causal(np.array([1, 2])),
    "window": ja.Window(3, None, ja.END),
    "lengths": ja.Lengths(k=np.array([1, 2])),
    "segments": ja.Segments(np.zeros((2, 5), int)),
    "dense": ja.Dense(np.ones((3, 5), bool)),
    "and": ja.Causal() & ja.Segments(np.zeros((2, 5), int)),
    "or": ja.Causal() | ja.Segments(np.zeros((2, 5), int)),
    "not": ~ja.PrefixLM(np.array([1, 2])),
    "positions": ja.Positions(np.zeros((2, 5), int), np.zeros(5, int)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mask_is_a_frozen_pytree(mask):
    leaves, structure = jax.tree.flatten(mask)
    again = jax.tree.unflatten(structure, leaves)
    assert repr(again) == repr(mask)
    assert jax.tree.structure(again) == structure
    assert hash(jax.tree.structure(again)) == hash(structure)
    assert not re.search(r"\[\[|array\(", repr(mask))  # arrays by dtype and shape, not by value
    with pytest.raises(AttributeError):
        mask.offset = 1


def test_equal_masks_have_equal_structure_and_others_not():
    structure = jax.tree.structure
    assert structure(ja.Causal(3) & ja.Window(2)) == structure(ja.Causal(3) & ja.Window(2))
    assert structure(ja.Causal(3)) != structure(ja.Causal(4))
    assert structure(ja.Causal(ja.END)) != structure(ja.Causal())
    assert structure(ja.Window(3)) != structure(ja.Window(None))
    assert ja.Causal(3) == ja.Causal(3) != ja.Causal(4)
    assert hash(ja.Causal(3)) == hash(ja.Causal(3))


@partial(jax.jit, static_argnums=0)
def seen_traced(backend, mask):
    """As `seen` on WIDE, with every array of the mask traced: one compilation for all examples."""
    value = jnp.broadcast_to(jnp.eye(S)[:, None, :], WIDE.v)
    q, k = jnp.zeros(WIDE.q), jnp.zeros(WIDE.k)
    return ja.attention(q, k, value, mask=mask, backend=backend).swapaxes(-2, -3) > 0


numbers = partial(st.integers, -25, 25)
pair = st.tuples(numbers(), numbers())
ids = partial(st.lists, st.integers(-2, 3))


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    offset=pair,
    shift=pair,
    q_lengths=pair,
    k_lengths=pair,
    q_ids=st.tuples(*[ids(min_size=T, max_size=T)] * 2),
    k_ids=st.tuples(*[ids(min_size=S, max_size=S)] * 2),
)
def test_any_arrays_in_a_mask(backend, offset, shift, q_lengths, k_lengths, q_ids, k_ids):
    """Also lengths and offsets outside the axes, which select nothing or everything."""
    array = partial(np.array, dtype=np.int32)
    rules = (
        (ja.Causal(array(offset)), oracle.causal(T, S, offset)),
        (ja.Window(3, 2, array(shift)), oracle.window(T, S, 3, 2, shift)),
        (
            ja.Lengths(array(q_lengths), array(k_lengths)),
            oracle.lengths(T, S, np.clip(q_lengths, 0, T), np.clip(k_lengths, 0, S)),
        ),
        (ja.Segments(array(q_ids), array(k_ids)), oracle.segments(q_ids, k_ids)),
    )
    for mask, allowed in rules:
        want = np.broadcast_to(allowed, WIDE.scores)
        np.testing.assert_array_equal(seen_traced(backend, mask), want, err_msg=repr(mask))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: ja.Causal() and ja.Window(3),
        lambda: ja.Causal() or ja.Window(3),
        lambda: not ja.Causal(),
        lambda: 1 if ja.EVERYTHING else 2,
        lambda: bool(ja.Causal() & ~ja.Window(3)),
    ],
)
def test_a_mask_is_neither_true_nor_false(ask):
    with pytest.raises(TypeError, match=r"& \| and ~, got .*Python asks"):
        ask()

"""Which pairs each mask lets through, read off the outputs, against its dense definition."""

# pyright: reportArgumentType=false, reportCallIssue=false

import re
from dataclasses import dataclass
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from catalogue import KINDS, MASKS, sampled
from hypothesis import strategies as st
from jaxtyping import Array, Bool
from rules import Shape

import jaxattn as ja
from jaxattn import masks

pytestmark = pytest.mark.sampled(6)

T, S = 13, 17
WIDE = Shape((2,), T, S, 4, 2, 1, S)
SQUARE = WIDE._replace(s=T, e=T)
BACKENDS = (ja.Reference(), ja.Blockwise(q_block=4, k_block=3))


def seen(shape, mask, backend):
    """[*b h t s]: the keys that got weight. The values are the unit vectors, so out shows it."""
    value = np.broadcast_to(np.eye(shape.s, dtype=np.float32)[:, None, :], shape.v)
    q, k = jnp.zeros(shape.q), jnp.zeros(shape.k)
    given = {"mask": mask, "positions": shape.positions, "backend": backend}
    out = ja.attention(q, k, jnp.asarray(value), **given)
    return np.asarray(out).swapaxes(-2, -3) > 0


def assert_lets_through(allowed, mask, shape, backend):
    want = np.broadcast_to(allowed, shape.scores)
    np.testing.assert_array_equal(seen(shape, mask, backend), want)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("name", sampled(MASKS, 20))
def test_mask_lets_through_what_its_definition_says(name, backend):
    shape, build = MASKS[name]
    shape = shape._replace(h=4, n=2, d=1, e=shape.s)
    mask, allowed = build(shape, np.random.default_rng(0))
    assert_lets_through(allowed, mask, shape, backend)


def test_segments_of_a_shared_row_broadcast_over_the_batch():
    ids = np.array([0] * 5 + [1] * 6 + [-1] * 2)
    for backend in BACKENDS:
        assert_lets_through(oracle.segments(ids), ja.Segments(ids), SQUARE, backend)


def test_rank_2_batch_takes_masks_of_its_shape():
    shape = SQUARE._replace(batch=(2, 3))
    starts = np.arange(6).reshape(2, 3) - 3
    for backend in BACKENDS:
        for given in (jnp.asarray(starts), starts[..., None], starts[..., None] + np.arange(T)):
            assert_lets_through(oracle.causal(T, T, starts), ja.Causal(), shape.at(given), backend)
        assert_lets_through(
            oracle.lengths(T, T, k=starts[:, :1] + 5),
            ja.Lengths(k=jnp.asarray(starts[:, :1] + 5)),
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
        given = {"mask": mask, "positions": ja.Positions(0, 0), "backend": BACKENDS[1]}
        return ja.attention(q, k, value, **given).swapaxes(-2, -3) > 0

    got = jax.jit(jax.vmap(run))(jnp.asarray(tables))
    want = np.broadcast_to(allowed[:, None, None], got.shape)
    np.testing.assert_array_equal(got, want)

    def out(x):
        q, k, v = (jnp.ones(shape) for shape in (WIDE.q, WIDE.k, WIDE.v))
        mask = ja.Where(lambda at: x[at.k] > 0)  # END: keys from 0 on
        given = {"mask": mask, "positions": ja.END, "backend": BACKENDS[1]}
        return ja.attention(q, k, v * jnp.expand_dims(x, (1, 2)), **given).sum()

    x = jnp.asarray([-1.0, 1.0] * (S // 2) + [2.0])
    gradient = np.asarray(jax.grad(out)(x))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient != 0, np.asarray(x) > 0)


SHOWN = {
    "Causal(offset=2) & Window(left=3, right=0, offset=0)": ja.Causal(2) & ja.Window(3),
    "Causal(offset=0) | ~Lengths(q=None, k=4)": ja.Causal() | ~ja.Lengths(k=4),
    "(EVERYTHING | PrefixLM(length=2)) & ~(Causal(offset=1) & Causal(offset=2))": (
        (ja.EVERYTHING | ja.PrefixLM(2)) & ~(ja.Causal(1) & ja.Causal(2))
    ),
    "Causal(offset=1) & Causal(offset=2) | Causal(offset=3)": (
        ja.Causal(1) & ja.Causal(2) | ja.Causal(3)
    ),
    "Positions(q=int64[2, 5], k=0)": ja.Positions(np.zeros((2, 5), int)),
    "Positions(q=END, k=int64[7])": ja.Positions(ja.END, np.zeros(7, int)),
}


@pytest.mark.parametrize("text", SHOWN)
def test_repr_is_as_it_would_be_written(text):
    assert repr(SHOWN[text]) == text


PYTREES = {
    name: build(shape, np.random.default_rng(0)).mask for name, (shape, build) in KINDS.items()
}
PYTREES["positions"] = ja.Positions(np.zeros((2, 5), int), np.zeros(5, int))


@pytest.mark.parametrize("mask", PYTREES.values(), ids=PYTREES)
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
    assert structure(ja.Positions(ja.END)) != structure(ja.Positions())
    assert structure(ja.Window(3)) != structure(ja.Window(None))
    assert ja.Causal(3) == ja.Causal(3) != ja.Causal(4)
    assert hash(ja.Causal(3)) == hash(ja.Causal(3))


@partial(jax.jit, static_argnums=0)
def seen_traced(backend, mask, positions):
    """As `seen` on WIDE, with every array of the mask traced: one compilation for all examples."""
    value = jnp.broadcast_to(jnp.eye(S)[:, None, :], WIDE.v)
    q, k = jnp.zeros(WIDE.q), jnp.zeros(WIDE.k)
    given = {"mask": mask, "positions": positions, "backend": backend}
    return ja.attention(q, k, value, **given).swapaxes(-2, -3) > 0


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
    """Also lengths and positions outside the axes, which select nothing or everything."""
    array = partial(np.array, dtype=np.int32)
    starts = lambda x: ja.Positions(array(x), 0)
    rules = (
        (ja.Causal(), starts(offset), oracle.causal(T, S, offset)),
        (ja.Window(3, 2), starts(shift), oracle.window(T, S, 3, 2, shift)),
        (
            ja.Lengths(array(q_lengths), array(k_lengths)),
            None,
            oracle.lengths(T, S, np.clip(q_lengths, 0, T), np.clip(k_lengths, 0, S)),
        ),
        (ja.Segments(array(q_ids), array(k_ids)), None, oracle.segments(q_ids, k_ids)),
        (ja.Causal(), ja.Positions(array(q_ids), array(k_ids)), oracle.near(q_ids, k_ids, None, 0)),
    )
    for mask, positions, allowed in rules:
        want = np.broadcast_to(allowed, WIDE.scores)
        got = seen_traced(backend, mask, positions)
        np.testing.assert_array_equal(got, want, err_msg=repr(mask))


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


@dataclass(frozen=True, eq=False, repr=False)
class Awake(masks.BoundMask):
    """Some queries see everything. Its annotation is words, as all are in some files."""

    rows: "Bool[Array, '*#b t']"

    def allows(self, place):
        return jnp.broadcast_to(place.each_q(self.rows), (place.q + place.k).shape)


def test_a_mask_of_a_users_own_is_read_by_its_annotations():
    rows = np.arange(11) % 3 > 0
    q = np.random.default_rng(0).standard_normal((2, 11, 2, 4)).astype(np.float32)
    attend = lambda mask: ja.attention(q, q, q, mask=mask, backend=ja.Blockwise(4, 3))
    got, want = attend(Awake(jnp.asarray(rows[None]))), attend(ja.Dense(rows[:, None]))
    np.testing.assert_array_equal(got, want)

"""Rotary embeddings: against float64, and what has to hold of any rotation."""

# pyright: reportArgumentType=false, reportCallIssue=false
# NumPy arrays and wrong types go in on purpose.

from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
from oracle import rope as oracle
from test_errors import assert_says
from tolerance import eps

import jaxattn as ja
from jaxattn.rope import (
    INTERLEAVED,
    DynamicNTK,
    Layout,
    Linear,
    Llama3,
    LongRoPE,
    Rope,
    YaRN,
    apply_rope,
    rotate,
)

DTYPES = (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)
SHAPE = (2, 7, 3, 14)  # b t h d
R = 10
EACH = np.array([[0, 1, 2, 3, 4, 5, 6], [40, 41, 3, 3, -8, 0, 999]], np.int32)
layouts = pytest.mark.parametrize("layout", Layout, ids=repr)


def draw(shape=SHAPE, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pairs(x, layout, r=R):
    """[... r/2 2] of [... d]."""
    x = np.asarray(x, np.float64)[..., :r]
    if layout is INTERLEAVED:
        return x.reshape(*x.shape[:-1], r // 2, 2)
    return np.stack([x[..., : r // 2], x[..., r // 2 :]], -1)


def assert_rotated(got, x, positions, rope, amplitude=1.0, frequencies=None, back=False):
    """Within half a unit in the last place of the result, and 4 eps of the dtype computed in.

    Both of the norm of a pair. In float64 the angle has float64's rounding, here and in the oracle.
    """
    frequencies = rope.frequencies() if frequencies is None else frequencies
    interleaved = rope.layout is INTERLEAVED
    want = oracle.rotate(x, positions, frequencies, interleaved, amplitude, back)
    norm = amplitude * np.linalg.norm(pairs(x, rope.layout, rope.rotary_dim), axis=-1).max()
    inner = np.float64 if x.dtype == np.float64 else np.float32
    angle = np.abs(positions).max() * frequencies.max() if x.dtype == np.float64 else 0
    limit = (eps(x.dtype) / 2 + eps(inner) * (4 + 2 * angle)) * norm
    assert got.dtype == x.dtype
    assert got.shape == x.shape
    assert np.abs(np.asarray(got, np.float64) - want).max() <= limit


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_matches_float64(dtype, layout):
    rope = Rope(R, layout=layout)
    x = draw(dtype=dtype)
    with jax.enable_x64(dtype == np.float64):
        got = apply_rope(x, EACH, rope)
        assert_rotated(got, x, EACH, rope)
        np.testing.assert_array_equal(np.asarray(got)[..., R:], x[..., R:])


@layouts
def test_gradient_matches_float64(layout):
    """It is the rotation back. A tangent is rotated like x."""
    rope = Rope(R, layout=layout, scaling=YaRN(4.0, 64))
    x, cot = draw(), draw(seed=1)
    run = lambda x: apply_rope(x, EACH, rope)
    _, pull = jax.vjp(run, x)
    check = partial(assert_rotated, rope=rope, amplitude=rope.amplitude)
    check(pull(cot)[0], cot, EACH, back=True)
    check(jax.jvp(run, (x,), (cot,))[1], cot, EACH)
    half = x.astype(ml_dtypes.bfloat16)
    (dx,) = jax.vjp(run, half)[1](cot.astype(ml_dtypes.bfloat16))
    check(dx, cot.astype(ml_dtypes.bfloat16), EACH, back=True)


@layouts
@pytest.mark.parametrize("start", [10**6, -(10**6), 2**24 + 1])
def test_large_positions_are_as_precise_as_small_ones(start, layout):
    """The same tolerance. float32 times float32 is wrong by 0.05 rad at a million."""
    rope = Rope(14, theta=500000.0, layout=layout)
    x = draw((101, 3, 14))
    positions = np.arange(start, start + 101)
    assert_rotated(apply_rope(x, positions, rope), x, positions, rope)


def test_positions_up_to_the_ends_of_int32():
    """To 1e-6 rad, and what float64 itself loses in a product of 2³¹."""
    rope = Rope(64)
    positions = np.array([2**31 - 1, -(2**31), 2**30 + 1])
    cos, sin = rope.cos_sin(positions)
    want = np.exp(1j * positions[:, None] * rope.frequencies())
    assert np.abs(np.asarray(cos) + 1j * np.asarray(sin) - want).max() < 1e-6 + 2**31 * eps(float)


@layouts
def test_scores_depend_on_distance_alone(layout):
    rope = Rope(14, layout=layout)
    q, k = draw((1, 3, 14)), draw((1, 3, 14), seed=1)
    at = jax.jit(lambda p: (apply_rope(q, p, rope) * apply_rope(k, p - 11, rope)).sum(-1))
    near = np.asarray(at(np.array([11])))
    size = np.linalg.norm(q, axis=-1) * np.linalg.norm(k, axis=-1)
    for p in (12, 400, 10**5, 10**6):
        assert (np.abs(at(np.array([p])) - near) <= 10 * eps(np.float32) * size).all()
    other = (apply_rope(q, np.array([11]), rope) * apply_rope(k, np.array([1]), rope)).sum(-1)
    assert np.abs(near - other).max() > 1e-2


def test_attention_depends_on_distances_alone():
    rope = Rope(8)
    q, k, v = (draw((2, 7, 3, 8), seed=i) for i in range(3))

    def run(first):
        p = first + np.arange(7)
        return ja.attention(apply_rope(q, p, rope), apply_rope(k, p, rope), v, mask=ja.Causal())

    np.testing.assert_allclose(run(0), run(123456), rtol=0, atol=1e-5)


@layouts
@pytest.mark.parametrize("amplitude", [1.0, 1.25])
def test_norms_are_kept_times_the_amplitude(amplitude, layout):
    scaling = None if amplitude == 1 else YaRN(4.0, 32, attention_factor=amplitude)
    x = draw()
    got = apply_rope(x, EACH, Rope(R, layout=layout, scaling=scaling))
    norm = lambda x: np.linalg.norm(pairs(x, layout), axis=-1)
    np.testing.assert_allclose(norm(got), amplitude * norm(x), rtol=1e-6)


def test_layouts_are_permutations_of_each_other():
    x, r = draw(), 10
    order = np.concatenate([np.arange(r).reshape(2, r // 2).T.ravel(), np.arange(r, 14)])
    half = np.asarray(apply_rope(x, EACH, Rope(r)))
    interleaved = apply_rope(x[..., order], EACH, Rope(r, layout=INTERLEAVED))
    np.testing.assert_allclose(half[..., order], interleaved, rtol=1e-6, atol=1e-6)


@layouts
def test_position_0_changes_nothing(layout):
    for dtype in (np.float32, ml_dtypes.bfloat16):
        x = draw(dtype=dtype)
        got = apply_rope(x, np.zeros(7, int), Rope(14, layout=layout))
        np.testing.assert_array_equal(np.asarray(got), x)


POSITIONS = [(7,), (1, 7), (2, 7), (2, 1), (1,), ()]


@pytest.mark.parametrize("shape", POSITIONS, ids=str)
def test_positions_broadcast(shape):
    x, positions = draw(), np.random.default_rng(0).integers(0, 99, shape)
    full = np.broadcast_to(positions, SHAPE[:2])
    rope = Rope(R)
    np.testing.assert_array_equal(apply_rope(x, positions, rope), apply_rope(x, full, rope))


@pytest.mark.parametrize("shape", [(7, 3, 14), (5, 2, 7, 3, 14), (0, 7, 3, 14), (2, 0, 3, 14)])
def test_any_batch(shape):
    x = draw(shape)
    positions = np.random.default_rng(0).integers(0, 99, shape[:-2])
    got = apply_rope(x, positions, Rope(R))
    assert got.shape == shape
    want = oracle.rotate(x, positions, Rope(R).frequencies())
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_transforms():
    """jit with the Rope as an ordinary argument and as a static one, vmap, and traced positions."""
    x, rope = draw(), Rope(R, layout=INTERLEAVED)
    want = np.asarray(apply_rope(x, EACH, rope))
    close = partial(np.testing.assert_allclose, desired=want, rtol=1e-6, atol=1e-6)
    close(jax.jit(apply_rope)(x, EACH, rope))
    close(jax.jit(apply_rope, static_argnums=2)(x, EACH, rope))
    close(jax.vmap(apply_rope, (0, 0, None))(x, EACH, rope))
    close(jax.vmap(lambda x: apply_rope(x, EACH, rope), 2, 2)(x[..., None, :])[..., 0, :])
    assert jax.tree.leaves(rope) == []
    assert hash(rope) == hash(Rope(R, layout=INTERLEAVED))
    assert rope != Rope(R)


def test_cos_sin_serve_queries_and_keys():
    """bfloat16 features take float32 ones."""
    rope = Rope(R, scaling=YaRN(4.0, 32))
    cos, sin = rope.cos_sin(EACH)
    assert cos.shape == sin.shape == (2, 7, R // 2)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        x = draw(dtype=dtype)
        assert cos.dtype == np.float32
        got, want = rotate(x, cos, sin, rope.layout), apply_rope(x, EACH, rope)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)
DYNAMIC = {
    "dynamic": DynamicNTK(3.0, 16),
    "longrope": LongRoPE(4.0, (1.0,) * 5, FACTORS, 16),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_length_may_be_a_number_an_array_or_traced(name):
    """And one of each sequence. An array's frequencies have float32's rounding."""
    rope, x = Rope(R, scaling=DYNAMIC[name]), draw()
    apply = lambda length: np.asarray(apply_rope(x, EACH[:1] % 7, rope, length))
    short, long = apply(16), apply(40)
    assert np.abs(short - long).max() > 0.1
    np.testing.assert_array_equal(short, apply(3))
    for got in (jax.jit(apply_rope)(x, EACH[:1] % 7, rope, 40), apply(np.array([40]))):
        np.testing.assert_allclose(got, long, atol=1e-5)
    each = apply(np.array([16, 40]))
    np.testing.assert_allclose(each, np.stack([short[0], long[1]]), atol=1e-5)
    assert_rotated(long, x, EACH[:1] % 7, rope, rope.amplitude, rope.frequencies(40))


def test_a_traced_length_keeps_distances():
    """Its rounding is of the frequencies, the same at every position."""
    rope, x = Rope(14, scaling=DynamicNTK(3.0, 16)), draw((2, 3, 14))

    @jax.jit
    def score(first, length):
        q, k = apply_rope(x, first + np.array([11, 0]), rope, length)
        return (q * k).sum(-1)

    far, near = score(10**6, 10**6), score(0, 10**6)
    np.testing.assert_allclose(far, near, atol=1e-5)


def ask(x=SHAPE, positions=EACH, rope=None, length=None, dtype=np.float32):
    return apply_rope(np.zeros(x, dtype), positions, rope or Rope(R), length)


# name: what is done, the error, and what its message must hold: the rule, what came, the remedy.
WRONG = {
    "odd": (lambda: Rope(7), ValueError, ["even", "rotary_dim", "7", "round"]),
    "none": (lambda: Rope(0), ValueError, ["at least 2", "0"]),
    "not whole": (lambda: Rope(8.0), ValueError, ["even", "8.0"]),
    "theta": (lambda: Rope(8, -1.0), ValueError, ["theta", "above 0", "-1.0"]),
    "theta of 1": (lambda: Rope(8, 1), ValueError, ["theta", "above 1", "1", "10000"]),
    "traced theta": (
        lambda: jax.jit(lambda x: Rope(8, x).frequencies())(2.0),
        ValueError,
        ["theta", "plain number", "float32", "compiled program"],
    ),
    "layout": (lambda: Rope(8, layout="half"), TypeError, ["HALF or INTERLEAVED", "'half'"]),
    "scaling": (
        lambda: Rope(8, scaling={"rope_type": "linear", "factor": 2.0}),
        TypeError,
        ["scaling", "Linear(factor", "{'rope_type'", "from_config"],
    ),
    "factor": (lambda: Linear(0), ValueError, ["Linear.factor", "above 0", "0"]),
    "betas": (
        lambda: YaRN(4.0, 4096, beta_fast=1, beta_slow=32),
        ValueError,
        ["beta_fast above beta_slow", "beta_fast=1", "beta_slow=32"],
    ),
    "llama factors": (
        lambda: Llama3(low_freq_factor=4.0, high_freq_factor=4.0),
        ValueError,
        ["high_freq_factor above low_freq_factor", "4.0"],
    ),
    "long factors": (
        lambda: LongRoPE(4.0, (1.0, 0.0), FACTORS, 16),
        ValueError,
        ["short_factor", "above 0", "(1.0, 0.0)", "tuple"],
    ),
    "few factors": (
        lambda: Rope(12, scaling=DYNAMIC["longrope"]),
        ValueError,
        ["each frequency", "6", "5 in short_factor", "5 in long_factor"],
    ),
    "no length": (
        lambda: ask(rope=Rope(R, scaling=DYNAMIC["dynamic"])),
        ValueError,
        ["DynamicNTK", "length", "none", "pass length="],
    ),
    "length of another batch": (
        lambda: ask(length=np.array([1, 2, 3])),
        ValueError,
        ["length", "[*b] = [2]", "(3,)"],
    ),
    "length in floats": (lambda: ask(length=np.ones(2)), TypeError, ["length", "integers", "cast"]),
    "rotary_dim above d": (
        lambda: ask(rope=Rope(16)),
        ValueError,
        ["rotary_dim", "16", "d=14", "(2, 7, 3, 14)", "[*b t h d]"],
    ),
    "arguments in another order": (
        lambda: apply_rope(np.zeros(SHAPE), Rope(R), EACH),
        TypeError,
        ["rope is a Rope", "int32[2, 7]", "after positions"],
    ),
    "rank": (lambda: ask(x=(7, 14)), ValueError, ["at least 3", "(7, 14)", "x[:, None, :]"]),
    "integers": (lambda: ask(dtype=np.int32), TypeError, ["x", "floating", "int32", "cast"]),
    "positions in floats": (
        lambda: ask(positions=np.ones(7, np.float32)),
        TypeError,
        ["positions", "integers", "float32[7]", "Linear(factor)", "cast"],
    ),
    "positions of other tokens": (
        lambda: ask(positions=np.arange(6)),
        ValueError,
        ["positions", "[*b t] = [2, 7]", "(6,)", "or 1"],
    ),
    "positions of heads": (
        lambda: ask(positions=np.zeros((2, 7, 3), int)),
        ValueError,
        ["positions", "[*b t]", "(2, 7, 3)"],
    ),
    "cos of heads": (
        lambda: rotate(np.zeros(SHAPE), np.ones((7, 3, 5)), np.ones((7, 3, 5))),
        ValueError,
        ["[*b t f] = [2, 7, 5]", "(7, 3, 5)", "heads"],
    ),
    "cos without sin": (
        lambda: rotate(np.zeros(SHAPE), np.ones((7, 5)), np.ones((7, 4))),
        ValueError,
        ["one shape", "(7, 5)", "(7, 4)"],
    ),
    "cos of more features": (
        lambda: rotate(np.zeros(SHAPE), np.ones((7, 8)), np.ones((7, 8))),
        ValueError,
        ["16", "d=14"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_says_rule_what_came_and_remedy(name):
    assert_says(*WRONG[name])

"""Temporary memory, as the compiler plans it: linear in the length, whatever the derivative.

Nothing is run: programs are compiled for shapes alone.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

pytestmark = pytest.mark.optimized

MIB = 2**20
QKV = (0, 1, 2)


def temporary(f, t, heads, batch=1, width=64, mask_of=lambda t: ja.EVERYTHING):
    """Bytes beside the arguments and the results of f(mask, q, k, v), at t queries and keys."""
    shape = jax.ShapeDtypeStruct((batch, t, heads, width), jnp.float32)
    lowered = jax.jit(f).lower(mask_of(t), shape, shape, shape)
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def forward(mask, q, k, v):
    return ja.attend(q, k, v, mask=mask)


def loss(q, k, v, mask):
    out, lse, _ = ja.attend(q, k, v, mask=mask)
    return (out**2).sum() + lse.sum()


def gradient(mask, q, k, v):
    return jax.grad(loss, QKV)(q, k, v, mask)


def tangent(mask, q, k, v):
    return jax.jvp(lambda *x: forward(mask, *x), (q, k, v), (k, v, q))


def forward_over_reverse(mask, q, k, v):
    return jax.jvp(lambda *x: gradient(mask, *x), (q, k, v), (k, v, q))


def reverse_over_reverse(mask, q, k, v):
    return jax.grad(lambda *x: sum((g**2).sum() for g in gradient(mask, *x)), QKV)(q, k, v)


DERIVATIVES = (forward, gradient, tangent, forward_over_reverse, reverse_over_reverse)


@pytest.mark.parametrize("f", DERIVATIVES, ids=lambda f: f.__name__)
def test_memory_is_linear(f):
    """Twice the length takes at most 2.3 times the memory, and less than a sixth of the scores."""
    small, large = (temporary(f, t, heads=4) for t in (4096, 8192))
    assert large <= 2.3 * small
    assert large < 4 * 8192**2 * 4 / 6


MASKS = {
    "causal": lambda t: ja.Causal(),
    "window": lambda t: ja.Window(512),
    "segments": lambda t: ja.Segments(jax.ShapeDtypeStruct((1, t), np.int32)),
    "lengths": lambda t: ja.Causal() & ja.Lengths(k=jax.ShapeDtypeStruct((1,), np.int32)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",
    [
        "causal",
        "segments",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("window", "lengths")),
    ],
)
def test_memory_is_linear_with_a_mask(name):
    small, large = (temporary(gradient, t, 4, mask_of=MASKS[name]) for t in (4096, 8192))
    assert large <= 2.3 * small
    assert large < 4 * 8192**2 * 4 / 6


def with_options(t, options):
    """The gradient in q, k, v and in what `options` makes of an array [4]."""

    def loss(q, k, v, x):
        out, lse, _ = ja.attend(q, k, v, mask=ja.Causal(), **options(x))
        return (out**2).sum() + lse.sum()

    shape, x = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((1, t, 4, 64), (4,)))
    lowered = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(shape, shape, shape, x)
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


KEY = jax.random.key(0)
OPTIONS = {
    "sinks-dropout": lambda x: {"sinks": x, "dropout": ja.Dropout(0.1, KEY)},
    "alibi-cap": lambda x: {"score": (ja.ALiBi(x), ja.SoftCap(x[0]))},
    "relative": lambda x: {"score": ja.RelativeBias(jnp.ones((32, 1)) * x)},
    "function": lambda x: {"score": lambda logit, at: logit + x[at.head] * ((at.q - at.k) % 7)},
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",
    [
        "sinks-dropout",
        *(pytest.param(x, marks=pytest.mark.long) for x in ("function", "alibi-cap", "relative")),
    ],
)
def test_memory_is_linear_with_options(name):
    small, large = (with_options(t, OPTIONS[name]) for t in (4096, 8192))
    assert large <= 2.3 * small
    assert large < 4 * 8192**2 * 4 / 6


@pytest.mark.parametrize(("t", "limit"), [(8192, 40 * MIB), (16384, 64 * MIB)])
def test_forward_fits(t, limit):
    assert temporary(forward, t, heads=12) <= limit


@pytest.mark.parametrize("axis", ["heads", "batch"])
def test_tiles_are_not_held_for_all_heads_at_once(axis):
    """Eight times the heads take eight times the rows at most, never eight times the tiles."""
    one = temporary(forward, 2048, **{"heads": 1, "batch": 1})
    many = temporary(forward, 2048, **{"heads": 1, "batch": 1, axis: 8})
    rows = 8 * 2048 * (3 * 64 + 64 + 1) * 4
    assert many <= one + rows


def test_the_measure_sees_a_score_matrix():
    """The reference holds the scores, and this shows."""
    held = temporary(
        lambda mask, *x: ja.attention(*x, mask=mask, backend=ja.Reference()), 1024, heads=2
    )
    assert held >= 2 * 1024**2 * 4

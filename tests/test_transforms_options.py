"""Transformations with scores, sinks, dropout and every kind of mask, against the dense form.

In float64, as in test_transforms.py.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import kept
from rules import Shape
from test_transforms import ALLOWED, ALONG, MASK, POINT, W_LSE, W_OUT, D, E, H, N, S, T
from tolerance import assert_close, peak

import jaxattn as ja

TILED = ja.Blockwise(q_block=3, k_block=2)
BACKENDS = (TILED, ja.Blockwise(), ja.Reference())
RNG = np.random.default_rng(3)
BIAS, TABLE, SINKS = RNG.standard_normal((H, 1, S)), RNG.standard_normal((H, S)), np.arange(H) - 1.0
ARRAYS = (BIAS, TABLE, np.asarray(1.7), SINKS)
WAYS = (*ALONG, *(RNG.standard_normal(x.shape) for x in ARRAYS))
DROPOUT = ja.Dropout(0.3, jax.random.key(0))
ALL = tuple(range(7))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def package(backend, mask=MASK, positions=ja.END):
    def attend(q, k, v, bias, table, cap, sinks):
        score = (ja.Bias(bias), lambda logit, at: logit * table[at.head, at.q], ja.SoftCap(cap))
        given = {"mask": mask, "score": score, "sinks": sinks, "dropout": DROPOUT}
        given["positions"] = positions
        return ja.attend(q, k, v, **given, backend=backend)

    return attend


def whole(allowed=ALLOWED, positions=ja.END):
    shape = Shape((), T, S, H, N, D, E, positions)
    shape = shape.at(ja.END) if positions is ja.END else shape
    factor, at = kept(shape, DROPOUT, ja.Reference()) / 0.7, shape.at_q

    def attend(q, k, v, bias, table, cap, sinks):
        score = lambda x: cap * jnp.tanh((x + bias) * table[:, at, None] / cap)
        return dense.attend(q, k, v, allowed, None, score, sinks, jnp.asarray(factor, q.dtype))

    return attend


def loss(attend):
    def of(*inputs):
        out, lse = attend(*inputs)[:2]
        return (jnp.sin(out) * W_OUT).sum() + (lse**2 * W_LSE).sum()

    return of


def along(f, which=ALL):
    def moved(*x):
        ways = (WAYS[i] if i in which else 0 * WAYS[i] for i in ALL)
        ways = (np.broadcast_to(way, y.shape) for way, y in zip(ways, x, strict=True))
        ways = tuple(jnp.asarray(way, y.dtype) for way, y in zip(ways, x, strict=True))
        return jax.jvp(f, x, ways)[1]

    return moved


def squared_grad(f):
    return lambda *x: sum((g**2).sum() for g in jax.grad(loss(f), ALL)(*x))


def mapped(f):
    many = lambda *x: jax.vmap(jax.grad(loss(f), ALL), (0, None, None, 0, None, 0, 0))(*x)
    return lambda *x: many(
        *(jnp.stack([y, 2 * y]) if i in (0, 3, 5, 6) else y for i, y in enumerate(x))
    )


TRANSFORMS = {
    "jvp": along,
    "jvp-along-scores-only": lambda f: along(f, (3, 4, 5)),
    "grad-of-scores-only": lambda f: jax.grad(loss(f), (3, 5)),
    "jvp-of-grad": lambda f: along(jax.grad(loss(f), ALL)),
    "grad-of-grad": lambda f: jax.grad(squared_grad(f), ALL),
    "vmap-of-grad": mapped,
    "jacrev": lambda f: jax.jacrev(lambda *x: f(*x)[0], (1, 4, 6)),
    "jacfwd": lambda f: jax.jacfwd(lambda *x: f(*x)[0], (2, 3, 5)),
    "hessian": lambda f: jax.hessian(loss(f), (4, 6)),
}
USUAL = ("jvp-of-grad", "vmap-of-grad")


def agree(transform, got_of, want_of):
    def run(attend, dtype, cap=ARRAYS[2]):
        inputs = (jnp.asarray(x, dtype) for x in (*POINT, BIAS, TABLE, cap, SINKS))
        return [np.asarray(x) for x in jax.tree.leaves(jax.jit(transform(attend))(*inputs))]

    got, want, naive = run(got_of, np.float64), run(want_of, np.float64), run(want_of, np.float32)
    # What rounding acts on in the one number of the cap are its terms: those of a cap of each pair.
    terms = run(want_of, np.float64, np.full((H, T, S), ARRAYS[2]))
    for i, leaves in enumerate(zip(got, want, naive, strict=True)):
        size = None if leaves[1].ndim else max(peak(leaves[1]), np.abs(terms[i]).sum())
        assert_close(*leaves, np.float64, f"result {i}", size)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=() if usual else pytest.mark.long)
        for name in TRANSFORMS
        for backend in BACKENDS
        for usual in [backend == TILED or name in USUAL]
    ],
    ids=str,
)
def test_transform(name, backend):
    agree(TRANSFORMS[name], package(backend), whole())


IDS = RNG.integers(0, 3, (T + S))
LOOKED_UP = RNG.integers(0, T, S)
FIRST = np.arange(S) < 3
FROM_0 = ja.Positions(0, 0)
MASKS = {
    "or": (
        lambda: (ja.Segments(IDS[:T], IDS[T:]) | ja.Lengths(k=3), FROM_0),
        (IDS[:T, None] == IDS[T:]) | FIRST,
    ),
    "not-and-where": (
        lambda: (
            ~ja.Lengths(k=3) & ja.Where(lambda at: jnp.asarray(LOOKED_UP)[at.k] >= at.q),
            FROM_0,
        ),
        ~FIRST & (np.arange(T)[:, None] <= LOOKED_UP),
    ),
    "positions": (
        lambda: (ja.Window(5), ja.Positions(np.arange(T) + 4, (np.arange(S) + 3) % S)),
        (((np.arange(S) + 3) % S) <= np.arange(T)[:, None] + 4)
        & (((np.arange(S) + 3) % S) >= np.arange(T)[:, None] - 1),
    ),
    "prefix": (
        lambda: (ja.PrefixLM(jnp.asarray(3)), ja.Positions(jnp.asarray(2), 0)),
        FIRST | (np.arange(S) <= np.arange(T)[:, None] + 2),
    ),
}


@pytest.mark.parametrize(
    "name", [x if x == "prefix" else pytest.param(x, marks=pytest.mark.long) for x in MASKS]
)
def test_second_order_with_every_mask(name):
    make, allowed = MASKS[name]
    mask, positions = make()
    agree(TRANSFORMS["jvp-of-grad"], package(TILED, mask, positions), whole(allowed, positions))

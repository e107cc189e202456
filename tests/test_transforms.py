"""Every transformation of JAX, alone and in pairs, against the same one of the dense form.

In float64, where a wrong term cannot hide in rounding. The budget is the error of the dense form in
float32, carried over (tolerance.py).
"""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import dense
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tolerance import assert_close

import jaxattn as ja

pytestmark = pytest.mark.sampled(4)

T, S, H, N, D, E = 7, 11, 4, 2, 3, 5
BATCH = 3
TILED = ja.Blockwise(q_block=3, k_block=2)
BACKENDS = (TILED, ja.Blockwise(), ja.Reference())
OTHERS_LONG = [TILED, *(pytest.param(b, marks=pytest.mark.long) for b in BACKENDS[1:])]
QKV = (0, 1, 2)

RNG = np.random.default_rng(0)
POINT = tuple(RNG.standard_normal(shape) for shape in ((T, H, D), (S, N, D), (S, N, E)))
ALONG = tuple(RNG.standard_normal(x.shape) for x in POINT)
BATCHES = tuple(RNG.standard_normal((BATCH, *x.shape)) for x in POINT)
W_OUT, W_LSE = RNG.standard_normal((T, H, E)), RNG.standard_normal((T, H))
SEEN = RNG.random((H, T, S)) < 0.8
SEEN[:, 2] = False  # a query that sees nothing, in every transformation
ALLOWED = oracle.causal(T, S, S - T) & SEEN
MASK = ja.Causal() & ja.Dense(SEEN)
GIVEN = {"mask": MASK, "positions": ja.END}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def package(backend):
    return lambda q, k, v, scale=None: ja.attend(q, k, v, **GIVEN, scale=scale, backend=backend)


def whole(q, k, v, scale=None):
    return dense.attend(q, k, v, ALLOWED, scale)


def agree(transform, got_of, want_of, inputs=POINT):
    """`transform` of the package and of the dense form, on the same inputs, give the same."""

    def run(attend, dtype):
        got = jax.jit(transform(attend))(*(jnp.asarray(x, dtype) for x in inputs))
        return [np.asarray(x) for x in jax.tree.leaves(got)]

    got, want = run(got_of, np.float64), run(want_of, np.float64)
    naive = run(want_of, np.float32)
    for i, leaves in enumerate(zip(got, want, naive, strict=True)):
        assert np.nan_to_num(leaves[1], neginf=0).any(), "nothing to compare with"
        assert_close(*leaves, np.float64, f"result {i}")


def loss(attend, *inputs):
    """Curved in out and in lse, so that second derivatives have every term."""
    out, lse = attend(*inputs)[:2]
    lse = jnp.where(lse == -jnp.inf, 0, lse)
    return (jnp.sin(out) * W_OUT).sum() + (lse**2 * W_LSE).sum()


def grad(f):
    return jax.grad(partial(loss, f), QKV)


def along(x):
    """The fixed directions in the dtype of the point x."""
    return tuple(jnp.asarray(a, x[0].dtype) for a in ALONG)


def jvp(f):
    return lambda *x: jax.jvp(f, x, along(x))[1]


def squared_grad(f):
    return lambda *x: sum((g**2).sum() for g in grad(f)(*x))


def out_only(f):
    return lambda *x: f(*x)[0]


def scanned(f):
    """Three layers by scan: each output moves the queries of the next."""

    def layers(q, k, v):
        def layer(q, shift):
            out, lse = f(q + shift, k, v)[:2]
            return q + out[..., :D], jnp.where(lse == -jnp.inf, 0, lse)

        return jax.lax.scan(layer, q, jnp.arange(3, dtype=q.dtype))

    return layers


def summed(f):
    return lambda *x: sum(y.sum() for y in jax.tree.leaves(f(*x)))


TRANSFORMS = {
    "jit": lambda f: f,
    "grad": grad,
    "jvp": jvp,
    "jvp-of-jvp": lambda f: jvp(jvp(f)),
    "jvp-of-grad": lambda f: jvp(grad(f)),
    "grad-of-jvp": lambda f: jax.grad(lambda *x: jvp(partial(loss, f))(*x), QKV),
    "grad-of-grad": lambda f: jax.grad(squared_grad(f), QKV),
    "jacrev": lambda f: jax.jacrev(out_only(f), QKV),
    "jacfwd": lambda f: jax.jacfwd(out_only(f), QKV),
    "hessian": lambda f: jax.hessian(partial(loss, f), (0, 2)),
    "scan": scanned,
    "grad-of-scan": lambda f: jax.grad(summed(scanned(f)), QKV),
    "grad-of-remat": lambda f: grad(jax.checkpoint(f)),
    "jvp-of-grad-of-remat": lambda f: jvp(grad(jax.checkpoint(f))),
}


# Those whose programs differ most run on every backend by default.
TELLING = ("jvp-of-grad", "grad-of-grad", "jacrev")


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=() if telling else pytest.mark.long)
        for name in TRANSFORMS
        for backend in BACKENDS
        for telling in [backend == TILED or name in TELLING]
    ],
    ids=str,
)
def test_transform(name, backend):
    agree(TRANSFORMS[name], package(backend), whole)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_third_derivative(backend):
    agree(lambda f: jvp(jax.grad(squared_grad(f), QKV)), package(backend), whole)


MAPPED = {
    "all": (0, 0, 0),
    "queries": (0, None, None),
    "keys": (None, 0, None),
    "keys-and-values": (None, 0, 0),
    "values-on-the-last-axis": (None, None, 3),
    "queries-on-axis-1": (1, None, None),
}


def mapped_inputs(in_axes):
    pairs = zip(POINT, BATCHES, in_axes, strict=True)
    return tuple(x if axis is None else np.moveaxis(many, 0, axis) for x, many, axis in pairs)


@pytest.mark.parametrize("backend", OTHERS_LONG, ids=repr)
@pytest.mark.parametrize("in_axes", MAPPED.values(), ids=MAPPED)
def test_vmap_of_value_and_gradient(in_axes, backend):
    agree(
        lambda f: jax.vmap(lambda *x: (f(*x), grad(f)(*x)), in_axes),
        package(backend),
        whole,
        mapped_inputs(in_axes),
    )


@pytest.mark.parametrize("backend", OTHERS_LONG, ids=repr)
@pytest.mark.parametrize("in_axes", [(0, None, None), (None, 0, 0)], ids=str)
def test_gradient_of_vmap(in_axes, backend):
    agree(
        lambda f: jax.grad(lambda *x: jax.vmap(partial(loss, f), in_axes)(*x).sum(), QKV),
        package(backend),
        whole,
        mapped_inputs(in_axes),
    )


@pytest.mark.long
def test_second_order_of_vmap():
    """A Hessian product for each example of a batch."""
    agree(
        lambda f: jax.vmap(lambda *x: jax.jvp(grad(f), x, along(x))),
        package(TILED),
        whole,
        mapped_inputs((0, 0, 0)),
    )


def test_vmap_equals_a_batch_axis():
    q, k, v = map(jnp.asarray, BATCHES)
    attend = partial(ja.attend, **GIVEN, backend=TILED)
    for a, b in zip(attend(q, k, v)[:2], jax.vmap(attend)(q, k, v)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("backend", OTHERS_LONG, ids=repr)
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.value_and_grad(partial(loss, f), (0, 3)),
        lambda f: jax.hessian(partial(loss, f), 3),
        lambda f: lambda q, k, v, x: jax.vmap(lambda y: f(q, k, v, x * y))(jnp.arange(3.0) + 1),
    ],
    ids=["grad", "hessian", "vmap"],
)
def test_traced_scale(transform, backend):
    agree(transform, package(backend), whole, (*POINT, np.asarray(0.6)))


MASK_ARRAYS = {
    "starts": (
        lambda x: (ja.Causal(), ja.Positions(x)),
        partial(oracle.causal, T, S),
        [-2, 0, 4],
    ),
    "starts-of-a-window": (
        lambda x: (ja.Window(2, 1), ja.Positions(1, 1 - x)),
        partial(oracle.window, T, S, 2, 1),
        [-2, 0, 4],
    ),
    "positions": (
        lambda x: (ja.Causal(), ja.Positions(x[..., :T], x)),
        lambda x: oracle.near(x[..., :T], x, None, 0),
        RNG.integers(-9, 9, (3, S)),
    ),
    "key-lengths": (
        lambda x: (ja.Lengths(k=x), None),
        lambda x: oracle.lengths(T, S, None, x),
        [0, 5, 11],
    ),
    "query-lengths": (
        lambda x: (ja.Lengths(q=x), None),
        lambda x: oracle.lengths(T, S, x),
        [0, 5, 7],
    ),
    "segments": (
        lambda x: (ja.Segments(x[..., :T], x), None),
        lambda x: oracle.segments(x[..., :T], x),
        RNG.integers(-1, 3, (3, S)),
    ),
    "dense": (lambda x: (ja.Dense(x), None), lambda x: x, RNG.random((3, H, T, S)) < 0.5),
}


@pytest.mark.parametrize("backend", OTHERS_LONG, ids=repr)
@pytest.mark.parametrize("name", MASK_ARRAYS)
def test_vmap_over_the_arrays_of_a_mask(name, backend):
    """One trace for three masks, gradients included."""
    make, allowed_of, values = MASK_ARRAYS[name]
    allowed = np.stack([np.broadcast_to(allowed_of(x), (H, T, S)) for x in np.asarray(values)])
    attend = partial(ja.attend, backend=backend)
    arrays = jnp.asarray(values)

    def package_of(x, *inputs):
        mask, positions = make(x)
        return attend(*inputs, mask=mask, positions=positions)

    def every(f, arrays):
        def one(x, *inputs):
            return (f(x, *inputs), grad(partial(f, x))(*inputs))

        return lambda *inputs: jax.vmap(one, (0, None, None, None))(arrays, *inputs)

    agree(
        lambda f: f,
        every(package_of, arrays),
        every(lambda x, *inputs: dense.attend(*inputs, x), jnp.asarray(allowed)),
    )


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_mask_that_depends_on_what_is_differentiated(backend):
    """The integers and booleans of a mask have no derivative, and do not stop the others'."""

    def attend(q, k, v):
        mask = ja.Dense((q[:, :1, :1] > 0).transpose(1, 0, 2)) & ja.Lengths(k=(v > -1).sum() // 10)
        return ja.attend(q, k, v, mask=mask, backend=backend)

    def by_hand(q, k, v):
        allowed = (q[:, :1, :1] > 0).transpose(1, 0, 2) & (jnp.arange(S) < (v > -1).sum() // 10)
        return dense.attend(q, k, v, allowed)

    agree(grad, attend, by_hand)
    agree(jvp, attend, by_hand)


def test_eager_and_compiled_agree():
    q, k, v = map(jnp.asarray, POINT)
    f = package(TILED)
    for transform in (lambda f: f, grad):
        eager, compiled = transform(f)(q, k, v), jax.jit(transform(f))(q, k, v)
        for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_linearize_is_evaluated_many_times():
    f = package(TILED)
    q, k, v = map(jnp.asarray, POINT)
    _, push = jax.linearize(f, q, k, v)
    for factor in (1.0, 3.0):
        moved = push(*(factor * a for a in along((q,))))
        want = jax.jvp(whole, (q, k, v), tuple(factor * a for a in along((q,))))[1]
        for a, b in zip(moved[:2], want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

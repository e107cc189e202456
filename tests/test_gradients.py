"""vjp of out and of lse, together and apart, and jvp, against hand-derived float64."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import BACKENDS, CASES, DTYPES, TILED, named
from tolerance import assert_close, eps, peak, recomputed

import jaxattn as ja

pytestmark = pytest.mark.sampled(2)

DEFAULT = named(
    "small",
    "everything",
    "one-query",
    "rank-2-batch",
    "one-shared-head",
    "causal",
    "causal-end-tall",
    "causal-behind",
    "causal-array",
    "window-both-sides",
    "window-end-tall",
    "lengths-both",
    "segments-scattered",
    "dense-bhts",
    "window-segments-lengths",
)
APART = named("causal-end-wide", "segments")
LONG = named("many-batches", "long-causal", "longer-causal-segments")


def low(dtype):
    return np.float32 if dtype == np.float64 else dtype


def arrays(case):
    """The inputs and the scale, as arrays that can be differentiated."""
    q, k, v = case.inputs()
    scale = np.asarray(q.shape[-1] ** -0.5 if case.scale is None else case.scale, np.float32)
    return q, k, v, scale.astype(oracle.accumulator(case.dtype))


def attend(asked, backend, q, k, v, scale):
    mask, positions = asked
    return ja.attend(q, k, v, mask=mask, scale=scale, positions=positions, backend=backend)


@partial(jax.jit, static_argnums=1)
def pull_back(asked, backend, inputs, cotangents):
    return jax.vjp(partial(attend, asked, backend), *inputs)[1](ja.Attended(*cotangents))


@partial(jax.jit, static_argnums=1)
def pull_back_out(asked, backend, inputs, cot_out):
    def out(*inputs):
        return attend(asked, backend, *inputs).out

    return jax.vjp(out, *inputs)[1](cot_out)


@partial(jax.jit, static_argnums=1)
def pull_back_lse(asked, backend, inputs, cot_lse):
    def lse(*inputs):
        return attend(asked, backend, *inputs).lse

    return jax.vjp(lse, *inputs)[1](cot_lse)


@partial(jax.jit, static_argnums=1)
def push_forward(asked, backend, inputs, tangents):
    return jax.jvp(partial(attend, asked, backend), inputs, tangents)


def check_vjp(case, got, cot_out, cot_lse):
    """`got` against the oracle's gradients for these cotangents."""
    inputs = arrays(case)
    rest = case.masks().allowed, inputs[3], cot_out, cot_lse
    want = oracle.gradients(*inputs[:3], *rest)
    naive = oracle.gradients(*inputs[:3], *rest, dtype=low(case.dtype))
    _, lse = oracle.attention(*inputs[:3], *rest[:2])
    wide, cancelled = oracle.accumulator(case.dtype), terms_of_gradients(*inputs, *rest)
    vanishes = lambda name, x: peak(x) <= 4 * eps(np.float64) * cancelled.get(name, -1)
    for name, a, b, c in zip("qkv", got[:3], want[:3], naive[:3], strict=True):
        size = recomputed(b, lse)
        if vanishes(name, b):
            size = cancelled[name] * eps(wide) / eps(case.dtype)
        assert_close(a, b, c, case.dtype, f"d{name}", size)
    # dscale is a sum over all pairs, of which Σ q·dq / scale shows the size.
    size = np.abs(np.asarray(inputs[0], np.float64) * want.q).sum() / inputs[3]
    size = cancelled["scale"] if vanishes("scale", want.scale) else float(size)
    assert_close(got[3], want.scale, naive.scale, wide, "dscale", size=size)


def terms_of_gradients(q, k, v, scale, allowed, _, cot_out, cot_lse):
    """How large the sums are that dq, dk and dscale are, without signs: their terms are those of
    p · (|dp| + |p·dp| + |dlse|), where p · (dp - p·dp + dlse) is the gradient of the logits.

    Where every query sees a single key the gradients vanish, and these do not.
    """
    q, k, v = oracle.by_head(q, k, v, np.float64)
    products = q @ k.swapaxes(-1, -2)
    p, *_ = oracle.softmax(products * scale, oracle.everywhere(allowed, q, k))
    dp = np.asarray(cot_out, np.float64).swapaxes(-2, -3) @ v.swapaxes(-1, -2)
    dlse = np.abs(np.asarray(cot_lse, np.float64).swapaxes(-1, -2))[..., None]
    terms = p * (np.abs(dp) + np.abs((p * dp).sum(-1, keepdims=True)) + dlse)
    return {
        "q": peak(terms @ np.abs(k)) * scale,
        "k": peak(terms.swapaxes(-1, -2) @ np.abs(q)) * scale,
        "scale": float((terms * np.abs(products)).sum()),
    }


def compiled(function, asked, backend):
    """`function` of what is left; a mask that is a function cannot be an argument of `jax.jit`."""
    if any(map(callable, jax.tree.leaves(asked))):
        return jax.jit(partial(function.__wrapped__, asked, backend))
    return partial(function, asked, backend)


def check_gradients(case, backend):
    inputs, (cot_out, cot_lse) = arrays(case), case.cotangents()
    pull = compiled(pull_back, case.asked, backend)
    with case.precision():
        for pair in (
            (cot_out, cot_lse),
            (cot_out, np.zeros_like(cot_lse)),
            (np.zeros_like(cot_out), cot_lse),
        ):
            check_vjp(case, pull(inputs, pair), *pair)


def check_jvp(case, backend):
    inputs, allowed = arrays(case), case.masks().allowed
    tangents = (*case.tangents(), np.asarray(0.7, inputs[3].dtype))
    with case.precision():
        push = compiled(push_forward, case.asked, backend)
        primal, moved = push(inputs, tangents)
        primal, moved = (ja.Attended(*map(np.asarray, x[:2])) for x in (primal, moved))
    dtype, wide = case.dtype, oracle.accumulator(case.dtype)
    _, truth = oracle.attention(*inputs[:3], allowed, inputs[3])
    for got, known in (
        (primal, partial(oracle.attention, *inputs[:3], allowed, inputs[3])),
        (moved, partial(oracle.tangent, *inputs[:3], allowed, inputs[3], *tangents)),
    ):
        (out, lse), (low_out, low_lse) = known(), known(dtype=low(dtype))
        sizes = (recomputed(out, truth), recomputed(lse, truth)) if got is moved else (None, None)
        assert_close(got.out, out, low_out, dtype, "out", sizes[0])
        assert_close(got.lse, lse, low_lse, wide, "lse", sizes[1])


@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_vjp_matches_float64(case):
    check_gradients(case, TILED)


@pytest.mark.parametrize("case", DEFAULT[::2], ids=str)
def test_jvp_matches_float64(case):
    check_jvp(case, TILED)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != TILED], ids=repr)
@pytest.mark.parametrize("case", named("causal-end-tall", "segments-scattered"), ids=str)
def test_derivatives_on_every_backend(case, backend):
    check_gradients(case, backend)
    check_jvp(case, backend)


@pytest.mark.parametrize("case", LONG, ids=str)
def test_vjp_with_the_default_tiles(case):
    check_gradients(case, ja.Blockwise())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.__name__)
@pytest.mark.long
def test_derivatives_in_every_dtype(dtype):
    (case,) = named("causal-end-tall")
    check_gradients(case.to(dtype), TILED)
    check_jvp(case.to(dtype), TILED)


@pytest.mark.parametrize("backend", [ja.Reference(), TILED], ids=repr)
@pytest.mark.parametrize("case", APART, ids=str)
def test_vjp_of_out_alone(case, backend):
    """The loss never touches lse, so JAX hands the rule no cotangent for it at all."""
    cot_out, cot_lse = case.cotangents()
    got = pull_back_out(case.asked, backend, arrays(case), cot_out)
    check_vjp(case, got, cot_out, np.zeros_like(cot_lse))


@pytest.mark.parametrize("backend", [ja.Reference(), TILED], ids=repr)
@pytest.mark.parametrize("case", APART, ids=str)
def test_vjp_of_lse_alone(case, backend):
    cot_out, cot_lse = case.cotangents()
    got = pull_back_lse(case.asked, backend, arrays(case), cot_lse)
    assert not np.asarray(got[2]).any()
    check_vjp(case, got, np.zeros_like(cot_out), cot_lse)


@pytest.mark.parametrize("name", ["q", "k", "v", "scale"])
def test_jvp_along_one_input(name):
    """The tangents of the other inputs are symbolic zeros."""
    (case,) = named("causal-end-wide")
    inputs, allowed = arrays(case), case.masks().allowed
    which = ("q", "k", "v", "scale").index(name)
    along = (*case.tangents(), np.asarray(0.7, np.float32))[which]
    asked = case.asked

    @jax.jit
    def push(x, dx):
        def at(x):
            return attend(asked, TILED, *inputs[:which], x, *inputs[which + 1 :])

        return jax.jvp(at, (x,), (dx,))[1]

    got = push(jnp.asarray(inputs[which]), along)
    tangents = [np.zeros_like(x) for x in inputs]
    tangents[which] = along
    args = (*inputs[:3], allowed, inputs[3], *tangents)
    (out, lse), (low_out, low_lse) = oracle.tangent(*args), oracle.tangent(*args, dtype=np.float32)
    _, truth = oracle.attention(*inputs[:3], allowed, inputs[3])
    assert_close(got.out, out, low_out, what="out", size=recomputed(out, truth))
    assert_close(got.lse, lse, low_lse, what="lse", size=recomputed(lse, truth))


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_matrix(case, dtype, backend):
    check_gradients(case.to(dtype), backend)
    check_jvp(case.to(dtype), backend)

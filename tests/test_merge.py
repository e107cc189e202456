"""merge: results over disjoint keys, put together, are those over all of them."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from small import BACKENDS, COT_LSE, COT_OUT, H, K, Q, S, T, V, for_backends
from tolerance import assert_close, recomputed

import jaxattn as ja

pytestmark = pytest.mark.sampled(2)

SINKS = np.linspace(-1, 2, H).astype(np.float32)
SEEN = np.random.default_rng(0).random((H, T, S)) < 0.4
SEEN[:, 3] = False  # a query that sees nothing in any part
SEEN[:, 5, :7] = False  # and one that sees nothing in the first
CUTS = {"halves": (6,), "thirds": (4, 9), "one-of-nothing": (0, 5), "whole": ()}


def in_parts(cuts, backend, q, k, v, sinks):
    """Each part attends to its keys; the last one has the sinks."""
    edges = (0, *cuts, S)
    parts = [
        ja.attend(
            q,
            k[:, a:b],
            v[:, a:b],
            mask=ja.Dense(SEEN[:, :, a:b]),
            sinks=sinks if b == S else None,
            backend=backend,
        )
        for a, b in pairwise(edges)
    ]
    return ja.merge(*parts)


def check(backend, cuts, cotangents, sinks=None, dtype=np.float32):
    q, k, v = (x.astype(dtype) for x in (Q, K, V))

    @jax.jit
    def run(*inputs):
        result, pull = jax.vjp(partial(in_parts, cuts, backend), *inputs)
        return result, pull(ja.Attended(cotangents[0].astype(dtype), cotangents[1]))

    result, pulled = run(*map(jnp.asarray, (q, k, v)), sinks)
    extra = oracle.Extra(sinks=sinks)
    want, naive = (
        oracle.attention(q, k, v, SEEN, dtype=d, extra=extra) for d in (np.float64, dtype)
    )
    rounding = len(cuts) + 1  # each part rounds its out to the dtype
    assert_close(result.out, want[0], naive[0], dtype, "out", rounding * np.abs(want[0]).max())
    assert_close(result.lse, want[1], naive[1], np.float32, "lse")
    rest = q, k, v, SEEN, None, cotangents[0].astype(dtype), cotangents[1]
    want, naive = (oracle.gradients(*rest, dtype=d, extra=extra) for d in (np.float64, dtype))
    lse = oracle.attention(q, k, v, SEEN, extra=extra)[1]
    for name, *leaves in zip("qkv", pulled, want, naive, strict=False):
        assert_close(*leaves, dtype, f"d{name}", rounding * recomputed(leaves[1], lse))
    if sinks is not None:
        size = float(want.sinks.size.max()) * (1 + np.abs(lse).max())
        assert_close(pulled[3], want.sinks.value, naive.sinks.value, what="dsinks", size=size)


@for_backends
@pytest.mark.parametrize("name", ["halves", "thirds"])
def test_parts_equal_the_whole(name, backend):
    check(backend, CUTS[name], (COT_OUT, COT_LSE))


@pytest.mark.parametrize("name", ["one-of-nothing", "whole"])
def test_a_part_without_keys_and_a_single_part(name):
    check(BACKENDS[1], CUTS[name], (COT_OUT, COT_LSE))


@pytest.mark.covered
@for_backends
@pytest.mark.parametrize("which", ["out", "lse"])
def test_gradient_through_one_of_the_results(which, backend):
    zero = np.zeros_like
    pair = (COT_OUT, zero(COT_LSE)) if which == "out" else (zero(COT_OUT), COT_LSE)
    check(backend, CUTS["halves"], pair)


@for_backends
def test_parts_of_which_one_has_sinks(backend):
    check(backend, CUTS["halves"], (COT_OUT, COT_LSE), SINKS)


def test_parts_in_bfloat16():
    check(BACKENDS[1], CUTS["thirds"], (COT_OUT, COT_LSE), dtype=ml_dtypes.bfloat16)


def draw(parts, dtype=np.float32):
    rng = np.random.default_rng(1)
    outs = [rng.standard_normal((2, 5, 3, 7)).astype(dtype) for _ in range(parts)]
    lses = [rng.standard_normal((2, 5, 3)).astype(np.float32) * 30 for _ in range(parts)]
    lses[0][0, 1:3] = -np.inf
    for lse, out in zip(lses, outs, strict=True):
        lse[1, 4] = -np.inf
        out[lse == -np.inf] = 0
    return outs, lses


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=lambda x: x.__name__)
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_merge_of_any_results(parts, dtype):
    """Also of lse far apart, and where some parts, or all, see no key."""
    outs, lses = draw(parts, dtype)
    rng = np.random.default_rng(2)
    cot_out = rng.standard_normal(outs[0].shape).astype(dtype)
    cot_lse = rng.standard_normal(lses[0].shape).astype(np.float32)

    @jax.jit
    def run(outs, lses):
        merge = lambda outs, lses: ja.merge(*map(ja.Attended, outs, lses))
        result, pull = jax.vjp(merge, outs, lses)
        return result, pull(ja.Attended(cot_out, cot_lse))

    result, (douts, dlses) = run(*jax.tree.map(jnp.asarray, (outs, lses)))
    want, naive = (oracle.merge(outs, lses, dtype=d) for d in (np.float64, dtype))
    assert_close(result.out, want[0], naive[0], dtype, "out")
    assert_close(result.lse, want[1], naive[1], np.float32, "lse")
    args = outs, lses, cot_out, cot_lse
    want, naive = (oracle.merge_gradients(*args, dtype=d) for d in (np.float64, dtype))
    size = max(float(np.abs(x).max()) for x in want[1]) * 10
    for i in range(parts):
        assert_close(douts[i], want[0][i], naive[0][i], dtype, f"dout {i}")
        assert_close(dlses[i], want[1][i], naive[1][i], np.float32, f"dlse {i}", size)


def test_order_of_the_parts_is_free():
    outs, lses = draw(3)
    parts = [ja.Attended(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(outs, lses, strict=True)]
    want = ja.merge(*parts)
    for other in (ja.merge(*parts[::-1]), ja.merge(ja.merge(*parts[:2]), parts[2])):
        for a, b in zip(other[:2], want[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_nan_is_not_lost():
    """A part that saw a NaN gives NaN, not the lse of a query that sees no key."""
    outs, lses = draw(2)
    outs[1][0, 0], lses[1][0, 0] = np.nan, np.nan
    out, lse, _ = ja.merge(
        *(ja.Attended(*map(jnp.asarray, x)) for x in zip(outs, lses, strict=True))
    )
    assert np.isnan(np.asarray(out)[0, 0]).all()
    assert np.isnan(np.asarray(lse)[0, 0]).all()
    assert np.isfinite(np.asarray(out)[0, 1:]).all()

"""One small problem with its cotangents, which the tests of policies share."""

# pyright: reportArgumentType=false

from functools import partial

import jax
import numpy as np
import oracle
import pytest
from tolerance import assert_close, recomputed

import jaxattn as ja

B, T, S, H, N, D, E = 2, 11, 13, 6, 3, 5, 7
SMALL = ja.Blockwise(q_block=4, k_block=3)
FROM_0 = ja.Positions(0, 0)
BACKENDS = (ja.Reference(), ja.Blockwise(), SMALL)
RNG = np.random.default_rng(0)
SHAPES = ((B, T, H, D), (B, S, N, D), (B, S, N, E))
Q, K, V = (RNG.standard_normal(shape).astype(np.float32) for shape in SHAPES)
COT_OUT, COT_LSE = RNG.standard_normal((B, T, H, E)), RNG.standard_normal((B, T, H))
COT_OUT, COT_LSE = COT_OUT.astype(np.float32), COT_LSE.astype(np.float32)

for_backends = pytest.mark.parametrize("backend", BACKENDS, ids=repr)


@partial(jax.jit, static_argnums=0)
def result_and_gradients(backend, mask, q, k, v, cotangents, positions=FROM_0):
    """(out, lse) and (dq, dk, dv)."""
    attend = partial(ja.attend, mask=mask, positions=positions, backend=backend)
    result, pull = jax.vjp(attend, q, k, v)
    return result, pull(ja.Attended(*cotangents))


@partial(jax.jit, static_argnums=0)
def tangents(backend, mask, q, k, v):
    """How out and lse move when q moves by q, k by k and v by v."""
    attend = partial(ja.attend, mask=mask, positions=FROM_0, backend=backend)
    return jax.jvp(attend, (q, k, v), (q, k, v))[1]


def check_against_oracle(
    backend, mask, allowed, q=Q, k=K, v=V, cotangents=(COT_OUT, COT_LSE), positions=FROM_0
):
    result, pulled = result_and_gradients(backend, mask, q, k, v, cotangents, positions)
    (out, lse), (low_out, low_lse) = (
        oracle.attention(q, k, v, allowed, dtype=dtype) for dtype in (np.float64, np.float32)
    )
    assert_close(result.out, out, low_out, what="out")
    assert_close(result.lse, lse, low_lse, what="lse")
    want, naive = (
        oracle.gradients(q, k, v, allowed, None, *cotangents, dtype=dtype)
        for dtype in (np.float64, np.float32)
    )
    for name, *leaves in zip("qkv", pulled, want, naive, strict=False):
        assert_close(*leaves, what=f"d{name}", size=recomputed(leaves[1], lse))


def hidden_rows(rows, cells):
    """Dense booleans in which `rows` of head 1 see nothing."""
    allowed = np.ones((H, T, S), bool)
    allowed[cells, rows] = False
    return allowed


SEGMENT_IDS = np.array([0, 0, -1, 1, 1, 1, 5, 2, 2, -1, 2]), np.array([0] * 5 + [1] * 3 + [2] * 5)

"""Few queries over many keys: several tiles of one block of queries, and programs of bounded size.

The plan's own tiles throughout: they are small enough for the float64 oracle.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from oracle import observe as truth
from tolerance import assert_close, recomputed

import jaxattn as ja
from jaxattn import observe as see
from jaxattn._lowering import lowered_for
from jaxattn._problem import check
from jaxattn._value import Sizes
from jaxattn.backends.blockwise.plan import make_plan, whole_rows
from jaxattn.positions import frame_of

B, T, S, H, N, D, E = 2, 3, 9001, 4, 2, 5, 6
HELD = np.array([S, 2500])
RNG = np.random.default_rng(0)
Q, K, V, COT_OUT = (
    RNG.standard_normal(x).astype(np.float32)
    for x in ((B, T, H, D), (B, S, N, D), (B, S, N, E), (B, T, H, E))
)
COT_LSE = RNG.standard_normal((B, T, H)).astype(np.float32)
MASKS = {
    "everything": (ja.EVERYTHING, None, None),
    "causal": (ja.Causal(), ja.Positions(ja.END), oracle.causal(T, S, S - T)),
    "ragged": (ja.Lengths(k=HELD), None, oracle.lengths(T, S, k=HELD)),
    "ragged-causal": (
        ja.Lengths(k=HELD) & ja.Causal(),
        ja.Positions(HELD - T),
        oracle.lengths(T, S, k=HELD) & oracle.causal(T, S, HELD - T),
    ),
}


@jax.jit
def attend(q, k, v, mask, positions, observe=None):
    return ja.attend(q, k, v, mask=mask, positions=positions, observe=observe)


@pytest.mark.parametrize("name", MASKS)
def test_results_and_gradients_of_several_tiles(name):
    *rule, allowed = MASKS[name]
    problem, _ = check(Q, K, V, rule[0], None, None, None, None, rule[1])
    with lowered_for("cpu"):
        walk = ja.Blockwise().forward_walk(problem)
    assert walk.plan.q_blocks == 1
    assert walk.plan.k_tiles > 1
    got, pull = jax.vjp(lambda *x: attend(*x, *rule)[:2], Q, K, V)
    want, low = (oracle.attention(Q, K, V, allowed, dtype=d) for d in (np.float64, np.float32))
    for field, *leaves in zip(("out", "lse"), got, want, low, strict=True):
        assert_close(*leaves, what=field)
    args = Q, K, V, allowed, None, COT_OUT, COT_LSE
    true, naive = (oracle.gradients(*args, dtype=d) for d in (np.float64, np.float32))
    each = zip("qkv", pull((COT_OUT, COT_LSE)), true[:3], naive[:3], strict=True)
    for field, *leaves in each:
        assert_close(*leaves, what=f"d{field}", size=recomputed(leaves[1], want[1]))


@pytest.mark.parametrize("name", ["everything", "ragged"])
def test_bfloat16_is_read_as_it_is(name):
    *rule, allowed = MASKS[name]
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (Q, K, V))
    exact = [np.asarray(x, np.float32) for x in (q, k, v)]
    want, low = (oracle.attention(*exact, allowed, dtype=d) for d in (np.float64, np.float32))
    out, lse, _ = attend(q, k, v, *rule)
    assert_close(out, want[0], low[0].astype(out.dtype), what="out")
    assert_close(lse, want[1], low[1], what="lse")


@pytest.mark.parametrize("name", ["everything", "ragged"])
def test_observations(name):
    *rule, allowed = MASKS[name]
    allowed = np.broadcast_to(True if allowed is None else allowed, (B, H, T, S))
    watched = {"map": see.Map(8), "received": see.Received()}
    got = attend(Q, K, V, *rule, observe=watched).observed
    weights = truth.weights(Q, K, allowed)
    truths = {"map": truth.cells(weights, 8), "received": truth.received(weights)}
    for key, wants in truths.items():
        for have, want in zip(jax.tree.leaves(got[key]), wants, strict=True):
            limit = 64 * np.finfo(np.float32).eps * max(np.abs(want).max(), 1)
            np.testing.assert_allclose(have, want, rtol=0, atol=limit, err_msg=key)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("at", [2, 2499, 2500, 8999])
def test_non_finite_value_shows_to_those_who_see_it(at, bad):
    v = V.copy()
    v[:, at, 1, 2] = bad
    for *rule, allowed in (MASKS["everything"], MASKS["ragged-causal"]):
        want = np.array(attend(Q, K, V, *rule).out)
        sees = np.broadcast_to(True if allowed is None else allowed, (B, H, T, S))[:, 2:, :, at]
        assert sees.any()
        np.moveaxis(want[:, :, 2:, 2], 2, 1)[sees] = np.nan
        np.testing.assert_allclose(attend(Q, K, v, *rule).out, want, rtol=1e-5, atol=1e-6)


WIDTH = 64
RAGGED = jax.ShapeDtypeStruct((1,), np.int32)


def shapes(t, s, heads, dtype=np.float32):
    q, k = (jax.ShapeDtypeStruct((1, x, heads, WIDTH), dtype) for x in (t, s))
    return q, k, k, RAGGED


def masked(q, k, v, n, **options):
    out, _, observed = ja.attend(q, k, v, mask=ja.Lengths(k=n), **options)
    return out.astype(np.float32).sum(), observed


CALLS = {
    "forward": masked,
    "gradient": jax.grad(lambda *x: masked(*x)[0], (0, 1, 2)),
    "map": lambda *x: masked(*x, observe={"map": see.Map(16)}),
    "full": lambda q, k, v, n: ja.attention(q, k, v),
    "full gradient": jax.grad(lambda q, k, v, n: ja.attention(q, k, v).sum(), (0, 1, 2)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("t", [1, 8, 64])
@pytest.mark.parametrize("name", CALLS)
def test_the_program_does_not_grow_with_the_keys(name, t):
    """As many lines, so as many branches: 2^20 keys are written as 2^17 are."""
    lines = [
        jax.jit(CALLS[name]).lower(*shapes(t, s, 2)).as_text().count(" = ") for s in (2**17, 2**20)
    ]
    assert lines[0] > 20
    assert lines[0] == lines[1]


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "mask", [ja.EVERYTHING, ja.Lengths(k=np.full(B, 900))], ids=["full", "ragged"]
)
def test_widths_are_few(mask, platform):
    for t in (1, 2, 4, 8, 16, 64, 100):
        for s in (1000, 8192, 2**14, 2**15, 2**17, 2**20, 2**24):
            sizes = Sizes((B,), 12, t, s)
            bound = mask.resolve(frame_of(None, sizes))
            plan = make_plan(bound, sizes, 12, platform)
            forward = whole_rows(plan, bound, sizes, 12) if platform == "cpu" else plan
            assert max(len(plan.widths), len(forward.widths)) <= 16
            assert len(plan.held_widths) <= 8 or plan.k_tiles == 1
            assert plan.k_tiles * plan.k_block >= s


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["forward", "full"])
def test_no_copy_of_the_keys(name, dtype):
    """A cache is read where it lies, in whatever dtype."""
    x = shapes(8, 2**16, 12, dtype)
    analysis = jax.jit(CALLS[name]).lower(*x).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < x[1].size * 2 / 8

"""jax's splash attention as a backend: what it takes, and its kernel interpreted on a CPU.

That it compiles for a TPU: test_splash_compiled.py.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import Case
from catalogue import KINDS, MASKS
from oracle import scores
from rules import Shape, both, causal, everything, inverse, lengths, packed, prefix, window
from tolerance import assert_close, eps, peak

import jaxattn as ja
from jaxattn._lowering import Devices, lowered_for
from jaxattn._problem import check
from jaxattn._value import Zero
from jaxattn.backends.protocol import Call, Moves
from jaxattn.backends.splash.backend import _by_kernel

BF16, F32 = ml_dtypes.bfloat16, np.float32
X = jax.ShapeDtypeStruct((2, 300, 4, 64), jnp.bfloat16)


def call(platform="tpu", q=X, k=X, v=X, mask=ja.EVERYTHING, score=None, dropout=None, **rest):
    given = mask, score, None, rest.get("sinks"), dropout, rest.get("positions")
    problem = jax.eval_shape(lambda q, k, v: check(q, k, v, *given)[0], q, k, v)
    return Call(problem, (), platform=platform)


TAKEN = {
    "plain": {},
    "causal": {"mask": ja.Causal() & ja.Window(50) | ~ja.Lengths(k=3)},
    "prefix": {"mask": ja.PrefixLM(7), "positions": ja.END},
    "nothing": {"mask": ~ja.EVERYTHING},
    "segments": {"mask": ja.Segments(np.zeros(300, int)) & ja.Causal()},
    "padding": {"mask": ja.Lengths(k=np.array([3, 300])) & ja.Segments(np.zeros(300, int))},
    "cap": {"score": ja.SoftCap(50), "sinks": np.zeros(4, np.float32)},
    "float32": {x: X.update(dtype=jnp.float32) for x in "qkv"},
}
REFUSED = {
    "cpu": ({"platform": "cpu"}, "it runs on TPUs"),
    "float16": ({x: X.update(dtype=jnp.float16) for x in "qkv"}, "float32 and bfloat16, not float"),
    "wide": ({x: X.update(shape=(300, 4, 320)) for x in "qkv"}, "1 to 256 features, got d=320"),
    "few": ({"q": X.update(shape=(2, 1, 4, 64))}, "it takes 128 queries or more, got t=1"),
    "long": ({x: X.update(shape=(2**18, 1, 64)) for x in "qkv"}, "place for 131,072 tiles"),
    "dropout": ({"dropout": ja.Dropout(0.1, jax.random.key(0))}, "no dropout in its kernel"),
    "alibi": ({"score": ja.ALiBi()}, "one SoftCap of a Python integer"),
    "cap": ({"score": ja.SoftCap(50.0)}, "one SoftCap of a Python integer"),
    "caps": ({"score": (ja.SoftCap(5), ja.SoftCap(5))}, "one SoftCap of a Python integer"),
    "dense": ({"mask": ja.Dense(np.ones((300, 300), bool))}, "Segments and Lengths, not Dense"),
    "or": ({"mask": ja.Segments(np.zeros(300, int)) | ja.Causal()}, "and Lengths, not Or"),
    "function": ({"mask": ja.Where(lambda at: at.q > at.k)}, "Segments and Lengths, not Where"),
    "starts": (
        {"mask": ja.Causal(), "positions": ja.Positions(np.array([[0], [5]]))},
        "Segments and Lengths, not Band",
    ),
    "two": (
        {"mask": ja.Segments(np.zeros(300, int)) & ja.Segments(np.ones(300, int))},
        "takes one",
    ),
}


@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN)
def test_auto_takes_it_on_a_tpu(options):
    assert ja.Splash().refuses(call(**options)) is None
    assert ja.AUTO.choose(call(**options)) == ja.Splash()


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_it_says(options, reason):
    asked = call(**options)
    assert reason in (ja.Splash().refuses(asked) or "")
    assert ja.AUTO.choose(asked) == ja.Blockwise()


def test_a_program_for_several_devices_is_refused():
    with lowered_for("tpu", Devices(divided=True)):
        assert "over devices" in (ja.Splash().refuses(call()) or "")


def test_asked_for_by_name_it_is_not_replaced():
    x = jnp.zeros((128, 1, 8))
    with pytest.raises(ja.Unsupported, match="it runs on TPUs"):
        ja.attention(x, x, x, backend=ja.Splash())


def interpreted(*arrays, mask=ja.EVERYTHING, score=None, scale=None, positions=None):
    """`Results`, by the kernel's steps on a CPU."""
    problem = check(*map(jnp.asarray, arrays), mask, score, scale, None, None, positions)[0]
    return jax.jit(lambda problem: ja.Splash().run(problem, (), interpret=True))(problem)


def check_forward(case, score=None, extra=oracle.NOTHING, bits=None):
    """bits: to how many the scaled queries are taken, where that is less than float32 has."""
    q, k, v = case.inputs()
    (mask, positions), allowed = case.asked, case.masks().allowed
    got = interpreted(q, k, v, mask=mask, positions=positions, score=score)
    truth = lambda dtype: oracle.attention(q, k, v, allowed, dtype=dtype, extra=extra)
    want, low, fine = truth(np.float64), truth(case.dtype), truth(F32)
    assert_close(np.asarray(got.out).astype(case.dtype), want[0], low[0], case.dtype, "out")
    size = None if bits is None else peak(want[1]) * 2.0**-bits / eps(F32)
    assert_close(got.lse.value, want[1], fine[1], F32, "lse", size)


SEVERAL = Shape((2,), 600, 1100, 2, 1, 64, 40).at(ja.END)
PACKED = SEVERAL._replace(s=600, positions=None)
TAKES = {
    **{name: KINDS[name] for name in ("everything", "prefix", "segments", "lengths-both")},
    **{name: MASKS[name] for name in ("disjoint", "nothing", "window-segments-lengths")},
    "several": (SEVERAL, everything),
    "several-causal": (SEVERAL, causal()),
    "several-window": (SEVERAL, both(window(70), lengths(k=900))),
    "several-prefix": (SEVERAL, both(prefix(100), inverse(window(9)))),
    "several-segments": (PACKED, both(causal(-3), packed)),
    "one-query": (Shape((), 1, 131, 6, 2, 16, 7).at(ja.END), causal()),
    "rank-2-batch": (Shape((2, 1), 17, 130, 2, 2, 16, 40).at(ja.END), both(causal(), window(20))),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", TAKES)
def test_forward_matches_float64(name):
    case = Case(name, *TAKES[name], dtype=BF16)
    exact = case.shape.d in (16, 64)  # 1/√d is a power of 2
    check_forward(case, bits=None if exact else 17)


@pytest.mark.parametrize("name", ["segments", "several-window", "several-segments"])
def test_float32(name):
    check_forward(Case(name, *TAKES[name]))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_soft_cap(dtype):
    extra = oracle.Extra(score=[scores.Cap(2)])
    check_forward(Case("cap", SEVERAL, causal(), dtype=dtype), ja.SoftCap(2), extra)


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(F32) for shape in shapes]


@pytest.mark.parametrize("what", ["nan key", "inf value", "huge key", "huge values"])
def test_what_is_hidden_is_not_noticed(what):
    q, k, v = drawn((200, 2, 64), (200, 1, 64), (200, 1, 64))
    array, number = {"nan": (k, np.nan), "inf": (v, np.inf), "huge": (k, 3e38)}[what.split()[0]]
    array = v if what == "huge values" else array
    array[70, 0, 3] = number
    mask = ja.Causal() & ja.Window(60)
    got = interpreted(q, k, v, mask=mask)
    want = ja.attend(q, k, v, mask=mask, backend=ja.Reference())
    for x, y in ((got.out, want.out), (got.lse.value, want.lse)):
        unseen = np.r_[:70, 131:200]
        np.testing.assert_allclose(x[unseen], y[unseen], rtol=1e-5, atol=2e-6)
        if "huge" not in what:
            np.testing.assert_array_equal(np.isnan(x), np.isnan(y))


def test_gradients_are_made_from_its_lse():
    arrays = drawn((2, 130, 4, 16), (2, 130, 2, 16), (2, 130, 2, 8))
    mask = ja.Causal() & ja.Segments(np.arange(130) // 50)
    problem = check(*map(jnp.asarray, arrays), mask, None, None, None, None, None)[0]
    results = jax.jit(lambda p: ja.Splash().run(p, (), interpret=True))(problem)
    attend = lambda *x: ja.attend(*x, mask=mask, backend=ja.Reference())[:2]
    (out, lse), pull = jax.vjp(attend, *arrays)
    g, dlse = jnp.cos(7 * out), jnp.sin(7 * lse)
    moving = jax.tree.map(lambda _: Zero(), problem)
    moving = moving._replace(**{x: jax.typeof(getattr(problem, x)) for x in "qkv"}), ()
    got, _ = ja.Splash().transpose(problem, (), results, moving, Moves(g, dlse, ()))
    for x, y in zip(got[:3], pull((g, dlse)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_under_vmap_it_remains_a_branch():
    arrays = drawn((3, 130, 2, 16), (3, 130, 1, 16), (3, 130, 1, 16))
    run = jax.vmap(lambda *x: interpreted(*x, mask=ja.Causal()).out)
    want = ja.attention(*arrays, mask=ja.Causal(), backend=ja.Reference())
    np.testing.assert_allclose(run(*arrays), want, rtol=1e-4, atol=1e-5)
    assert " cond[" in str(jax.make_jaxpr(run)(*arrays))


def test_float32_is_multiplied_in_float32():
    """A TPU rounds operands to bfloat16 where it is not told otherwise."""
    for dtype, products in ((F32, 2), (BF16, 0)):
        x = jnp.zeros((130, 2, 16), dtype)
        problem = check(x, x, x, ja.Causal(), None, None, None, None, None)[0]
        text = str(jax.make_jaxpr(_by_kernel, static_argnums=2)(problem, x.astype(F32), False))
        assert text.count("HIGHEST") == 2 * products


def test_cost_counts_the_tiles_of_the_known_mask():
    x = jnp.zeros((2, 2048, 4, 64), jnp.bfloat16)
    problem, frame = check(x, x, x, ja.Causal(), None, None, None, None, None)
    cost = ja.Splash().cost(problem, ja.Causal().resolve(frame), ())
    assert (cost.q_block, cost.k_block, cost.heads) == (512, 512, 1)
    assert (cost.visited, cost.tiles) == (8 * 10, 8 * 16)
    assert cost.flops == 2 * 8 * 10 * 512 * 512 * (2 * 64 + 64)

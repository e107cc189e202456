"""The kernels for Hopper in Pallas's interpreter, against float64, with race detection.

It is exact but for products with a left operand in registers, which it has no instruction for.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import BY_NAME, Case
from catalogue import KINDS, MASKS
from rules import Shape, both, causal, everything, prefix, window
from tolerance import assert_close

import jaxattn as ja
from jaxattn._problem import check
from jaxattn._value import Zero
from jaxattn.backends.protocol import Moves, Results

BF16 = ml_dtypes.bfloat16
pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the interpreter of Mosaic GPU is in jax 0.11"
)


@pytest.fixture
def interpreted(monkeypatch):
    """From options of a call to `Results`, on a CPU; at the end no race was found, and every
    barrier was waited for as often as it was completed.

    Without the call around it: the interpreter's callbacks are in order, which a call is not.
    """
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as interpreter
    from jax._src.pallas.mosaic_gpu.interpret.shared_memory import Barrier
    from jax.experimental.pallas import mosaic_gpu

    is_gone, drained = Barrier.has_zero_ref_count, []

    def noted(barrier):
        if gone := is_gone(barrier):
            waited = set(barrier.last_observed_phase_by_thread.values()) or {0}
            drained.append(waited == {barrier.phase} and not barrier.arrivals_count)
        return gone

    monkeypatch.setattr(Barrier, "has_zero_ref_count", noted)
    interpreter.gpu_callbacks.reset_gpu_interpret_mode_state()
    stand_in = mosaic_gpu.InterpretGPUParams(detect_races=True)

    def results(*rest, schedule=None, **options):
        run = ja.Hopper(block_kv=64, schedule=schedule).run
        return jax.jit(lambda problem: run(problem, (), stand_in))(problem_of(*rest, **options))

    results.stand_in, results.drained = stand_in, drained
    yield results
    assert not interpreter.get_races().races_found
    assert drained
    assert all(drained)


def problem_of(q, k, v, mask=ja.EVERYTHING, score=None, scale=None, dropout=None, positions=None):
    q, k, v = map(jnp.asarray, (q, k, v))
    return check(q, k, v, mask, score, scale, None, dropout, positions)[0]


def check_forward(case, interpreted, **rest):
    q, k, v = case.inputs()
    (mask, positions), allowed = case.asked, case.masks().allowed
    got = interpreted(q, k, v, mask=mask, positions=positions, **rest)
    want, low = (oracle.attention(q, k, v, allowed, dtype=d) for d in (np.float64, case.dtype))
    out = np.asarray(got.out).astype(case.dtype)
    assert_close(out, want[0], low[0], case.dtype, "out")
    fine = oracle.attention(q, k, v, allowed, dtype=np.float32)[1]
    assert_close(got.lse.value, want[1], fine, np.float32, "lse")


SEVERAL = Shape((2,), 190, 190, 2, 1, 64, 64)
TAKES = {
    **{name: rule for name, rule in KINDS.items() if name != "strided"},
    "several-tiles": (SEVERAL, everything),
    "several-tiles-causal": (SEVERAL, causal()),
    "several-tiles-window": (SEVERAL, window(70)),
    "several-tiles-prefix": (SEVERAL, prefix(100)),
    "one-query": (Shape((), 1, 131, 2, 1, 128, 64).at(ja.END), causal()),
    "rank-2-batch": (Shape((2, 1), 17, 130, 2, 2, 80, 40).at(ja.END), both(causal(), window(20))),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", TAKES)
def test_forward_matches_float64(name, interpreted):
    check_forward(Case(name, *TAKES[name], dtype=BF16), interpreted)


def test_float16(interpreted):
    check_forward(BY_NAME["segments"].to(np.float16), interpreted)


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(BF16) for shape in shapes]


def wide(arrays):
    return [np.asarray(x, np.float32) for x in arrays]


NOISE = np.random.default_rng(1).standard_normal((2, 190, 190)).astype(np.float32)
OPTIONS_OF_CALLS = {
    "alibi": {"score": ja.ALiBi(), "mask": ja.Causal()},
    "negative-scale": {"scale": -2.0, "mask": ja.Causal()},
    "no-scale": {"scale": 0.0, "mask": ja.Causal()},
    "negative-scale-cap": {"scale": -0.5, "score": ja.SoftCap(2.0)},
    "cap": {"score": (ja.SoftCap(2.0), ja.ALiBi(np.float32([0.1, 0.2])))},
    "dropout": {"dropout": ja.Dropout(0.3, jax.random.key(1)), "mask": ja.Causal()},
    "bias": {
        "score": ja.Bias(np.where(NOISE > 2, -np.inf, NOISE)),
        "mask": ja.Dense(NOISE[0] > -1),
    },
    "shared-bias": {"score": (ja.Bias(NOISE[:, :1]), ja.Bias(NOISE[:1, :, 3:4].astype(BF16)))},
    "functions": {
        "mask": ja.Where(lambda at: (at.q - at.k) % 3 != 1),
        "score": lambda x, at: jnp.tanh(x * (1 + at.head)) + jnp.cos(at.q * 0.1 - at.k),
    },
    "all": {
        "mask": ja.Segments(np.arange(190) // 60) & ja.Causal(),
        "score": ja.SoftCap(3.0),
        "dropout": ja.Dropout(0.2, jax.random.key(2)),
    },
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", OPTIONS_OF_CALLS)
def test_scores_scale_and_dropout(name, interpreted):
    """The same pairs are dropped as by `Reference`."""
    arrays, options = drawn(SEVERAL.q, SEVERAL.k, SEVERAL.v), OPTIONS_OF_CALLS[name]
    got = interpreted(*arrays, **options)
    want = ja.attend(*wide(arrays), **options, backend=ja.Reference())
    np.testing.assert_allclose(got.out, want.out, atol=0.02)
    np.testing.assert_allclose(got.lse.value, want.lse, atol=1e-5)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("schedule", ["overlap", "ping-pong"])
@pytest.mark.parametrize(
    "name", ["several-tiles", "several-tiles-causal", "lengths-both", "segments"]
)
def test_schedules(name, schedule, interpreted):
    check_forward(Case(name, *TAKES[name], dtype=BF16), interpreted, schedule=schedule)


@pytest.mark.parametrize("schedule", ["overlap", "ping-pong"])
def test_schedules_where_no_query_sees_a_key(schedule, interpreted):
    case = Case("causal-far-behind", *MASKS["causal-far-behind"], dtype=BF16)
    check_forward(case, interpreted, schedule=schedule)


@pytest.mark.parametrize("schedule", ["overlap", "ping-pong"])
def test_schedules_with_options(schedule, interpreted):
    test_scores_scale_and_dropout("all", lambda *x, **y: interpreted(*x, schedule=schedule, **y))


@pytest.mark.parametrize("schedule", ["plain", "overlap"])
@pytest.mark.parametrize("where", ["key", "value"])
def test_nan_reaches_who_may_see_it(where, schedule, interpreted):
    q, k, v = drawn((200, 2, 64), (200, 1, 64), (200, 1, 64))
    if where == "key":
        k[70] = np.nan
    else:
        v[70, 0, 3] = np.inf
    mask = ja.Causal() & ja.Window(60)
    got = interpreted(q, k, v, mask=mask, schedule=schedule)
    want = ja.attend(*wide((q, k, v)), mask=mask, backend=ja.Reference())
    for x, y in ((got.out, want.out), (got.lse.value, want.lse)):
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, atol=0.02)


WITH_GRADIENTS = {
    "full": {},
    "causal": {"mask": ja.Causal()},
    "window": {"mask": ja.Window(50)},
    "lengths": {"mask": ja.Lengths(q=np.array([190, 40]), k=np.array([70, 190]))},
    "packed": {"mask": ja.Segments(np.arange(190) // 60) & ja.Causal()},
    "positions": {"mask": ja.PrefixLM(9), "positions": ja.Positions(np.arange(190) % 99, 0)},
    "scores": {"mask": ja.Causal(), "score": (ja.ALiBi(), ja.SoftCap(2.0))},
    "dropout": {"mask": ja.Causal(), "dropout": ja.Dropout(0.3, jax.random.key(1))},
    "scale": {"scale": -0.3, "mask": ja.Causal()},
    "dense": {"mask": ja.Dense(NOISE > 0)},
    "bias": {
        "score": (ja.Bias(np.where(NOISE[0] > 2, -np.inf, NOISE[0])), ja.Bias(NOISE[:, :, 3:4])),
        "mask": ja.Causal(),
    },
}
OF_SIZES = {"odd": (17, 131, 80, 40), "one": (1, 70, 64, 128), "wide": (70, 90, 200, 256)}


def check_gradients(interpreted, shapes, **options):
    """From the results of `Reference`, so that what differs is the gradients' own."""
    arrays = drawn(*shapes)
    attend = lambda *x: ja.attend(*x, **options, backend=ja.Reference())[:2]
    (out, lse), pull = jax.vjp(attend, *wide(arrays))
    g, dlse = jnp.cos(7 * out).astype(jnp.bfloat16).astype(jnp.float32), jnp.sin(7 * lse)
    want = pull((g, dlse))
    problem = problem_of(*arrays, **options)
    results = Results(out, lse, jnp.zeros_like(lse), ())
    moving = jax.tree.map(lambda _: Zero(), problem)
    moving = moving._replace(**{x: jax.typeof(getattr(problem, x)) for x in "qkv"}), ()
    run = lambda problem, results, moves: ja.Hopper().transpose(
        problem, (), results, moving, moves, interpreted.stand_in
    )
    got, _ = jax.jit(run)(problem, results, Moves(g, dlse, ()))
    for name, x, y in zip("qkv", got[:3], want, strict=True):
        x, y = wide((x, y))
        np.testing.assert_allclose(x, y, atol=0.015 * np.abs(y).max(), err_msg=f"d{name}")


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name, interpreted):
    check_gradients(interpreted, (SEVERAL.q, SEVERAL.k, SEVERAL.v), **WITH_GRADIENTS[name])


@pytest.mark.parametrize("name", OF_SIZES)
def test_gradients_of_sizes(name, interpreted):
    t, s, d, e = OF_SIZES[name]
    shapes = (2, t, 4, d), (2, s, 2, d), (2, s, 2, e)
    check_gradients(interpreted, shapes, mask=ja.Causal(), positions=ja.END)


def test_gradients_with_dropout_of_sums_apart(interpreted):
    dropout = ja.Dropout(0.3, jax.random.key(0))
    shapes = (2, 70, 4, 128), (2, 90, 2, 128), (2, 90, 2, 80)
    check_gradients(interpreted, shapes, dropout=dropout)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_gradients_beside_nan(interpreted):
    """A key and a value that are no numbers change nothing for those who do not see them."""
    q, k, v = drawn((140, 2, 64), (140, 1, 64), (140, 1, 64))
    k[100], v[110] = np.nan, np.inf
    problem = problem_of(q, k, v, mask=ja.Causal())
    results = interpreted(q, k, v, mask=ja.Causal())
    g = jnp.where(jnp.arange(140)[:, None, None] < 100, 1.0, 0.0) * jnp.ones((140, 2, 64))
    moving = jax.tree.map(lambda _: Zero(), problem)
    moving = moving._replace(**{x: jax.typeof(getattr(problem, x)) for x in "qkv"}), ()
    run = lambda problem, results, moves: ja.Hopper().transpose(
        problem, (), results, moving, moves, interpreted.stand_in
    )
    got, _ = jax.jit(run)(problem, results, Moves(g, None, ()))
    attend = lambda *x: ja.attend(*x, mask=ja.Causal(), backend=ja.Reference()).out
    want = jax.vjp(attend, *wide((q[:100], k[:100], v[:100])))[1](g[:100])
    for x, y in zip(got[:3], want, strict=True):
        x, y = wide((x, y))
        np.testing.assert_allclose(x[:100], y, atol=0.015 * np.abs(y).max())
        np.testing.assert_array_equal(x[100:], 0)


def test_what_a_product_reads_is_there(interpreted, monkeypatch):
    """The interpreter does not note what `wgmma` reads. Here each operand is read beside it."""
    from jax.experimental.pallas import mosaic_gpu

    real = mosaic_gpu.wgmma

    def noted(acc, a, b, **rest):
        for operand in (a, b):
            operand[...]
        mosaic_gpu.commit_smem()  # which reads like these need, and those of a product do not
        real(acc, a, b, **rest)

    monkeypatch.setattr(mosaic_gpu, "wgmma", noted)
    check_forward(Case("noted", *TAKES["several-tiles-causal"], dtype=BF16), interpreted)


def test_a_barrier_that_is_left_is_found(interpreted, monkeypatch):
    from jaxattn.backends.hopper import warpgroups

    monkeypatch.setattr(warpgroups.Ring, "drain", lambda *_: None)
    q, k, v = drawn((70, 1, 64), (70, 1, 64), (70, 1, 64))
    interpreted(q, k, v)
    assert interpreted.drained.count(False) > 1
    interpreted.drained[:] = [True]


def test_vmap_is_one_launch(interpreted):
    """What is mapped is more of the batch; what is not is read where it lies."""
    q, k, v = drawn((3, 2, 1, 130, 2, 64), (3, 1, 100, 1, 64), (3, 1, 100, 1, 64))
    slopes, cap = (
        np.array([[0.1, 0.4], [0.2, 0.3], [1, 2]], np.float32),
        np.array([3, 5], np.float32),
    )
    lengths = np.array([[30], [100]])

    def options(length, slopes, cap):
        score = ja.ALiBi(slopes), ja.SoftCap(cap)
        return {
            "mask": ja.Lengths(k=length) & ja.Causal(),
            "score": score,
            "positions": ja.Positions(0, 0),
        }

    def attend(q, k, v, *of):
        results = interpreted(q, k, v, **options(*of))
        return results.out, results.lse.value

    def reference(q, k, v, *of):
        return ja.attend(q, k, v, **options(*of), backend=ja.Reference())[:2]

    def mapped(attend):
        inner = jax.vmap(attend, (0, None, None, 0, None, 0))
        return jax.vmap(inner, (0, 0, 0, None, 0, None))

    args = lengths, slopes, cap
    lowered = jax.jit(mapped(attend)).lower(q, k, v, *args)
    alone = jax.jit(attend).lower(q[0, 0], k[0], v[0], lengths[0], slopes[0], cap[0])
    # That of the interpreter.
    assert lowered.as_text().count("while(") == alone.as_text().count("while(")
    got = lowered.compile()(q, k, v, *args)
    for x, y in zip(got, mapped(reference)(*wide((q, k, v)), *args), strict=True):
        np.testing.assert_allclose(x, y, atol=0.02)

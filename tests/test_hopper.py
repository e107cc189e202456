"""The kernels for Hopper: what they take anywhere; interpreted and compiled where jax 0.11 is.

Interpreting is exact but for products with a left operand in registers, and finds races. Compiling
takes the wheels of jax's CUDA plugin as well; see test_h100.py.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import contextlib
import os
import re
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import BY_NAME, Case
from catalogue import KINDS
from rules import Shape, both, causal, everything, prefix, window
from tolerance import assert_close

import jaxattn as ja
from jaxattn._problem import check
from jaxattn._value import Zero
from jaxattn.backends.hopper import backend
from jaxattn.backends.protocol import Call, Moves, Results

BF16 = ml_dtypes.bfloat16
Q = jax.ShapeDtypeStruct((2, 300, 4, 64), jnp.bfloat16)
K = jax.ShapeDtypeStruct((2, 300, 2, 64), jnp.bfloat16)


def call(platform="cuda", q=Q, k=K, v=K, mask=ja.EVERYTHING, score=None, dropout=None, **rest):
    given = mask, score, None, None, dropout, rest.get("positions")
    problem = jax.eval_shape(lambda q, k, v: check(q, k, v, *given)[0], q, k, v)
    return Call(problem, (), platform=platform)


@pytest.fixture
def h100(monkeypatch):
    """As if this were one, with a jax that has the kernels' language."""
    monkeypatch.setattr(backend, "capability", lambda: "9.0")
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))


TAKEN = {
    "plain": {},
    "causal": {"mask": ja.Causal() & ja.Window(50) | ~ja.Lengths(k=3)},
    "positions": {"mask": ja.PrefixLM(7), "positions": ja.Positions(np.arange(300), 0)},
    "segments": {"mask": ja.Segments(np.zeros(300, int)), "score": (ja.ALiBi(), ja.SoftCap(9.0))},
    "dropout": {"dropout": ja.Dropout(0.1, jax.random.key(0))},
    "functions": {
        "mask": ja.Where(lambda at: (at.q + at.k) % 8 == at.head),
        "score": lambda x, at: jnp.where(at.q > at.k, x, jnp.tanh(x)),
    },
    "float16": {x: jax.ShapeDtypeStruct((5, 1, 7), jnp.float16) for x in "qkv"},
}


@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN)
def test_auto_takes_it_on_a_hopper(options, h100):
    assert ja.Hopper().refuses(call(**options)) is None
    assert ja.AUTO.choose(call(**options)) == ja.Hopper()


WIDE = {x: jax.ShapeDtypeStruct((300, 4, 256), jnp.bfloat16) for x in "qkv"}
REFUSED = {
    "cpu": ({"platform": "cpu"}, "it runs on NVIDIA GPUs of compute capability 9.0"),
    "float32": ({x: Q.update(dtype=jnp.float32) for x in "qkv"}, "float16 and bfloat16, not float"),
    "wide": ({x: Q.update(shape=(9, 4, 320)) for x in "qkv"}, "up to 256 features, got d=320"),
    "dense": ({"mask": ja.Dense(np.ones((300, 300), bool))}, "no Dense in its kernel"),
    "nothing": ({"mask": ~ja.EVERYTHING}, "no ~EVERYTHING in its kernel"),
    "bias": ({"score": ja.Bias(np.ones((4, 300, 300), np.float32))}, "no Bias in its kernel"),
    "function": ({"score": lambda x, at: x + jnp.arange(300)[at.k]}, "no Function in its kernel"),
    "operation": ({"mask": ja.Where(lambda at: ~(at.q > at.k))}, "no Where in its kernel"),
    "remainder": ({"score": lambda x, at: jax.lax.rem(x, 2.0 * x)}, "no Function in its kernel"),
    "bool": ({"mask": ja.Where(lambda at: (at.q > at.k) | True)}, "no Where in its kernel"),
    "idle": ({"mask": ja.Where(lambda at: at.q % 1 == at.head)}, "no Where in its kernel"),
    "itself": ({"mask": ja.Where(lambda at: at.q == at.q)}, "no Where in its kernel"),
    "loop": (
        {"score": lambda x, at: jax.lax.fori_loop(0, 9, lambda _, x: x + 1.0, x)},
        "no Function in its kernel",
    ),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_take_it_says(options, reason, h100):
    asked = call(**options)
    assert reason in (ja.Hopper().refuses(asked) or "")
    assert ja.AUTO.choose(asked) == ja.Blockwise()


def test_another_device_or_an_older_jax_is_told(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    monkeypatch.setattr(backend, "capability", lambda: "8.0")
    assert "compute capability 9.0, and this device has 8.0" in ja.Hopper().refuses(call())
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "it takes jax 0.11 or later" in ja.Hopper().refuses(call())


def test_tiles_that_do_not_fit_are_refused(h100):
    assert "bytes of shared memory" in ja.Hopper(block_kv=256).refuses(call(**WIDE))
    for block in ({"block_q": 100}, {"block_kv": 96}, {"block_q": 0}, {"block_kv": 64.0}):
        with pytest.raises(ValueError, match="is a multiple of"):
            ja.Hopper(**block)


def test_cost_counts_the_tiles_of_each_program():
    shape = Shape((2,), 1024, 1024, 4, 2, 64, 64)
    x = (jnp.zeros(y, jnp.bfloat16) for y in (shape.q, shape.k, shape.v))
    problem, frame = check(*x, ja.Causal(), None, None, None, None, None)
    cost = ja.Hopper(block_kv=128).cost(problem, ja.Causal().resolve(frame), ())
    assert (cost.q_block, cost.k_block, cost.heads) == (128, 128, 1)
    assert (cost.visited, cost.tiles) == (8 * 36, 8 * 64)
    assert cost.flops == 2 * 8 * 36 * 128 * 128 * 128


needs_pallas = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the interpreter of Mosaic GPU is in jax 0.11"
)


@pytest.fixture
def interpreted():
    """From options of a call to `Results`, on a CPU; at the end no race was found.

    Without the call around it: the interpreter's callbacks are in order, which a call is not.
    """
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as interpreter
    from jax.experimental.pallas import mosaic_gpu

    interpreter.gpu_callbacks.reset_gpu_interpret_mode_state()
    stand_in = mosaic_gpu.InterpretGPUParams(detect_races=True)
    run = lambda problem: ja.Hopper(block_kv=64).run(problem, (), stand_in)

    def results(*rest, **options):
        return jax.jit(run)(problem_of(*rest, **options))

    results.stand_in = stand_in
    yield results
    assert not interpreter.get_races().races_found


def problem_of(q, k, v, mask=ja.EVERYTHING, score=None, scale=None, dropout=None, positions=None):
    q, k, v = map(jnp.asarray, (q, k, v))
    return check(q, k, v, mask, score, scale, None, dropout, positions)[0]


def check_forward(case, interpreted):
    q, k, v = case.inputs()
    (mask, positions), allowed = case.asked, case.masks().allowed
    got = interpreted(q, k, v, mask=mask, positions=positions)
    want, low = (oracle.attention(q, k, v, allowed, dtype=d) for d in (np.float64, case.dtype))
    out = np.asarray(got.out).astype(case.dtype)
    assert_close(out, want[0], low[0], case.dtype, "out")
    fine = oracle.attention(q, k, v, allowed, dtype=np.float32)[1]
    assert_close(got.lse.value, want[1], fine, np.float32, "lse")


SEVERAL = Shape((2,), 300, 300, 2, 1, 64, 64)
TAKES = {
    **{name: rule for name, rule in KINDS.items() if name not in ("strided", "dense-bhts")},
    "several-tiles": (SEVERAL, everything),
    "several-tiles-causal": (SEVERAL, causal()),
    "several-tiles-window": (SEVERAL, window(70)),
    "several-tiles-prefix": (SEVERAL, prefix(100)),
    "one-query": (Shape((), 1, 131, 2, 1, 128, 64).at(ja.END), causal()),
    "rank-2-batch": (Shape((2, 1), 17, 130, 2, 2, 80, 40).at(ja.END), both(causal(), window(20))),
}
del TAKES["causal-and-either"], TAKES["segments-or-not-window"]  # with dense masks


@needs_pallas
@pytest.mark.parametrize("name", TAKES)
def test_forward_matches_float64(name, interpreted):
    check_forward(Case(name, *TAKES[name], dtype=BF16), interpreted)


@needs_pallas
def test_float16(interpreted):
    check_forward(BY_NAME["segments"].to(np.float16), interpreted)


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(BF16) for shape in shapes]


def wide(arrays):
    return [np.asarray(x, np.float32) for x in arrays]


OPTIONS_OF_CALLS = {
    "alibi": {"score": ja.ALiBi(), "mask": ja.Causal()},
    "negative-scale": {"scale": -2.0, "mask": ja.Causal()},
    "no-scale": {"scale": 0.0, "mask": ja.Causal()},
    "negative-scale-cap": {"scale": -0.5, "score": ja.SoftCap(2.0)},
    "cap": {"score": (ja.SoftCap(2.0), ja.ALiBi(np.float32([0.1, 0.2])))},
    "dropout": {"dropout": ja.Dropout(0.3, jax.random.key(1)), "mask": ja.Causal()},
    "functions": {
        "mask": ja.Where(lambda at: (at.q - at.k) % 3 != 1),
        "score": lambda x, at: jnp.tanh(x * (1 + at.head)) + jnp.cos(at.q * 0.1 - at.k),
    },
    "all": {
        "mask": ja.Segments(np.arange(300) // 90) & ja.Causal(),
        "score": ja.SoftCap(3.0),
        "dropout": ja.Dropout(0.2, jax.random.key(2)),
    },
}


@needs_pallas
@pytest.mark.parametrize("name", OPTIONS_OF_CALLS)
def test_scores_scale_and_dropout(name, interpreted):
    """The same pairs are dropped as by `Reference`."""
    arrays, options = drawn(SEVERAL.q, SEVERAL.k, SEVERAL.v), OPTIONS_OF_CALLS[name]
    got = interpreted(*arrays, **options)
    want = ja.attend(*wide(arrays), **options, backend=ja.Reference())
    np.testing.assert_allclose(got.out, want.out, atol=0.02)
    np.testing.assert_allclose(got.lse.value, want.lse, atol=1e-5)


@needs_pallas
@pytest.mark.parametrize("where", ["key", "value"])
def test_nan_reaches_who_may_see_it(where, interpreted):
    q, k, v = drawn((200, 2, 64), (200, 1, 64), (200, 1, 64))
    if where == "key":
        k[70] = np.nan
    else:
        v[70, 0, 3] = np.inf
    mask = ja.Causal() & ja.Window(60)
    got = interpreted(q, k, v, mask=mask)
    want = ja.attend(*wide((q, k, v)), mask=mask, backend=ja.Reference())
    for x, y in ((got.out, want.out), (got.lse.value, want.lse)):
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, atol=0.02)


WITH_GRADIENTS = {
    "full": {},
    "causal": {"mask": ja.Causal()},
    "window": {"mask": ja.Window(50)},
    "lengths": {"mask": ja.Lengths(q=np.array([300, 40]), k=np.array([70, 300]))},
    "packed": {"mask": ja.Segments(np.arange(300) // 90) & ja.Causal()},
    "positions": {"mask": ja.PrefixLM(9), "positions": ja.Positions(np.arange(300) % 99, 0)},
    "scores": {"mask": ja.Causal(), "score": (ja.ALiBi(), ja.SoftCap(2.0))},
    "dropout": {"mask": ja.Causal(), "dropout": ja.Dropout(0.3, jax.random.key(1))},
    "scale": {"scale": -0.3, "mask": ja.Causal()},
}
OF_SIZES = {"odd": (17, 131, 80, 40), "one": (1, 70, 64, 128)}


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


@needs_pallas
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name, interpreted):
    check_gradients(interpreted, (SEVERAL.q, SEVERAL.k, SEVERAL.v), **WITH_GRADIENTS[name])


@needs_pallas
@pytest.mark.parametrize("name", OF_SIZES)
def test_gradients_of_sizes(name, interpreted):
    t, s, d, e = OF_SIZES[name]
    shapes = (2, t, 4, d), (2, s, 2, d), (2, s, 2, e)
    check_gradients(interpreted, shapes, mask=ja.Causal(), positions=ja.END)


@needs_pallas
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_gradients_beside_nan(interpreted):
    """A key and a value that are no numbers change nothing for those who do not see them."""
    q, k, v = drawn((200, 2, 64), (200, 1, 64), (200, 1, 64))
    k[150], v[160] = np.nan, np.inf
    problem = problem_of(q, k, v, mask=ja.Causal())
    results = interpreted(q, k, v, mask=ja.Causal())
    g = jnp.where(jnp.arange(200)[:, None, None] < 150, 1.0, 0.0) * jnp.ones((200, 2, 64))
    moving = jax.tree.map(lambda _: Zero(), problem)
    moving = moving._replace(**{x: jax.typeof(getattr(problem, x)) for x in "qkv"}), ()
    run = lambda problem, results, moves: ja.Hopper().transpose(
        problem, (), results, moving, moves, interpreted.stand_in
    )
    got, _ = jax.jit(run)(problem, results, Moves(g, None, ()))
    attend = lambda *x: ja.attend(*x, mask=ja.Causal(), backend=ja.Reference()).out
    want = jax.vjp(attend, *wide((q[:150], k[:150], v[:150])))[1](g[:150])
    for x, y in zip(got[:3], want, strict=True):
        x, y = wide((x, y))
        np.testing.assert_allclose(x[:150], y, atol=0.015 * np.abs(y).max())
        np.testing.assert_array_equal(x[150:], 0)


@needs_pallas
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


COMPILED = {
    "full": ja.EVERYTHING,
    "causal": ja.Causal(),
    "window": ja.Window(500),
    "prefix": ja.PrefixLM(100),
    "lengths": ja.Lengths(k=np.array([3000])),
    "not": ~ja.Window(20) | ja.Lengths(k=3),
    "segments": ja.Causal() & ja.Segments(np.zeros(4096, np.int32)),
}
OPTIONS = {
    "functions": {
        "mask": ja.Where(lambda at: ((at.q + at.k) % 8 == at.head) | (jnp.abs(at.q - at.k) < 9)),
        "score": lambda x, at: jnp.where(at.q // 3 > at.k, jnp.exp(-jnp.abs(x)), jnp.sin(x) / 2),
    },
    "more-functions": {
        "mask": ja.Where(
            lambda at: (jnp.maximum(at.q, 3) >= at.k) ^ (at.k <= jnp.minimum(at.q, 7))
        ),
        "score": lambda x, at: jnp.log(1 + x * x) * jnp.sign(x) - jnp.cos(at.q.astype(float)),
    },
    "of-keys": {
        "mask": ja.Where(lambda at: (((at.k & 6) | 4) ^ at.head) != 4),
        "score": lambda x, at: jnp.maximum(-x, 0) / 3,
    },
    "of-heads": {
        "mask": ja.Where(lambda at: at.head > at.batch[0]),
        "score": lambda x, at: jnp.tanh(x),
    },
    "of-bools": {
        "mask": ja.Where(
            lambda at: jnp.where(at.q > 9, at.k > 7, at.k < 9) == (jnp.sign(-at.k * at.q) > at.q)
        ),
        "score": lambda x, at: jnp.clip(x, -9, 9) * (at.q > at.k),
    },
    "constant": {"score": lambda x, at: jnp.float32(1), "mask": ja.Where(lambda at: at.q % 8 < 5)},
    "unread": {"mask": ja.Where(lambda at: (at.q - at.k, at.k // 8 > 3)[1])},
    "cap": {"score": ja.SoftCap(30.0), "mask": ja.Causal()},
    "cap-alone": {"score": ja.SoftCap(30.0)},
    "alibi": {"score": ja.ALiBi()},
    "dropout": {"dropout": ja.Dropout(0.1, jax.random.key(0))},
}


@contextlib.contextmanager
def written():
    """What C++ writes to the standard streams, as one string in a list after."""
    kept, text = [os.dup(1), os.dup(2)], []
    with tempfile.TemporaryFile() as file:
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield text
        finally:
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)
            file.seek(0)
            text.append(file.read().decode(errors="replace"))


@pytest.fixture(scope="module")
def assembled():
    """From options of a call and sizes to what the assembler says of its kernel."""
    h100 = pytest.importorskip("test_h100")
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    there = h100.device()
    card = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")

    def say(d, dtype=jnp.bfloat16, t=4096, gradient=False, **options):
        x = jax.ShapeDtypeStruct((1, t, 4, d), dtype, sharding=there)
        attend = lambda q, k, v: ja.attention(q, k, v, backend=ja.Hopper(), **options)
        loss = lambda *x: attend(*x).astype(jnp.float32).sum()
        made = jax.grad(loss, (0, 1, 2)) if gradient else attend
        with written() as text, use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
            jax.jit(made).lower(x, x, x).compile()
        return text[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
        yield say


def check_clean(said):
    assert "Compiling entry function" in said
    assert sum(map(int, re.findall(r"(\d+) bytes spill stores", said))) == 0
    assert "wgmma serialized" not in said.lower()
    assert "C7512" not in said, "wgmma is serialized"
    assert "C7508" not in said, "setmaxnreg is ignored"


@needs_pallas
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_spills(name, d, assembled):
    check_clean(assembled(d, mask=COMPILED[name]))


@needs_pallas
@pytest.mark.parametrize("name", OPTIONS)
def test_options_compile_without_spills(name, assembled):
    check_clean(assembled(128, **OPTIONS[name]))


@needs_pallas
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", COMPILED)
def test_gradients_compile_without_spills(name, d, assembled):
    said = assembled(d, gradient=True, mask=COMPILED[name])
    check_clean(said)
    assert said.count("Compiling entry function") == 3


@needs_pallas
@pytest.mark.parametrize("name", ["cap", "alibi", "dropout"])
def test_gradients_of_options_compile_without_spills(name, assembled):
    said = assembled(64, gradient=True, **OPTIONS[name])
    check_clean(said)
    assert said.count("Compiling entry function") == 3


@needs_pallas
def test_odd_lengths_and_float16_compile(assembled):
    check_clean(assembled(80, t=4093, dtype=jnp.float16, gradient=True, mask=ja.Causal()))

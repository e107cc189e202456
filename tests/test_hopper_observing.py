"""Observations by the kernels for Hopper: in Pallas's interpreter with race detection, against
`Blockwise` from the same lse; and compiled for an H100."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assembler import assembler, check_clean
from test_hopper_compiled import COMPILED, OPTIONS
from test_hopper_interpreted import NOISE, drawn, interpreted, wide

import jaxattn as ja
from jaxattn import observe as see
from jaxattn._observation import check_observations
from jaxattn._problem import check
from jaxattn.backends.hopper import observing

__all__ = ["interpreted"]
pytestmark = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the kernels are written in the language of jax 0.11"
)
EVERY = {
    "entropy": see.Entropy(),
    "received": see.Received(),
    "map": see.Map(20),
    "max": see.MaxLogit(),
}


def bound(arrays, observe, mask=ja.EVERYTHING, **options):
    """(problem, watched) of a call."""
    q, k = map(jnp.asarray, arrays)
    given = [options.get(x) for x in ("score", "scale", "sinks", "dropout", "positions")]
    problem, frame = check(q, k, k, mask, *given)
    return problem, tuple(check_observations(observe, frame, q.dtype).values())


def check_states(interpreted, arrays, observe=EVERY, lse=None, **options):
    """To the rounding of sums in another order, and of logarithms to the base 2."""
    if lse is None:
        asked = {x: y for x, y in options.items() if x != "sinks"}
        lse = ja.attend(*wide((*arrays, arrays[1])), **asked, backend=ja.Reference()).lse
    problem, watched = bound(arrays, observe, **options)
    run = lambda backend, *rest: jax.jit(
        lambda problem, lse: backend.observe(problem, watched, lse, *rest)
    )(problem, lse)
    got, want = run(ja.Hopper(), 0, interpreted.stand_in), run(ja.Blockwise())
    for name, *both in zip(observe, got, want, strict=True):
        for x, y in zip(*map(jax.tree.leaves, both), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype), name
            size = np.abs(y, where=np.isfinite(y), out=np.zeros(y.shape)).max()
            np.testing.assert_allclose(x, y, rtol=0, atol=4e-6 * max(size, 1), err_msg=name)


CASES = {
    "full": {},
    "causal": {"mask": ja.Causal()},
    "window": {"mask": ja.Window(50, 3)},
    "lengths": {"mask": ja.Lengths(q=np.array([190, 40]), k=np.array([0, 210]))},
    "packed": {"mask": ja.Segments(np.arange(190) // 90) & ja.Causal()},
    "positions": {"mask": ja.PrefixLM(9), "positions": ja.Positions(np.arange(190) % 99, 0)},
    "functions": {
        "mask": ja.Where(lambda at: (at.q - at.k) % 3 != 1),
        "score": lambda x, at: jnp.tanh(x * (1 + at.head)) + jnp.cos(at.q * 0.1 - at.k),
    },
    "scores": {
        "mask": ja.Causal(),
        "score": (ja.ALiBi(), ja.SoftCap(2.0)),
        "observe": EVERY | {"scaled": see.MaxLogit(before_scores=True), "even": see.Map(19)},
    },
    "bias": {
        "mask": ja.Dense(NOISE[:, None] > -1) | ja.Window(9),
        "score": ja.Bias(np.where(NOISE[0] > 2, -np.inf, NOISE[0])),
    },
    "sinks": {"mask": ja.Causal(-5), "sinks": jnp.array([0.0, 3.0]), "scale": -0.3},
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", CASES)
def test_states(name, interpreted):
    check_states(interpreted, drawn((2, 190, 2, 64), (2, 190, 1, 64)), **CASES[name])


def test_odd_lengths_and_what_is_left_to_blockwise(interpreted):
    """In the order in which they are asked for."""
    observe = {
        "top": see.TopKeys(3),
        "max": see.MaxLogit(),
        "fine": see.Map(100),
        "weighted": see.Received(of=np.arange(190)),
        "sum": see.Map(9, see.SUM),
        "received": see.Received(),
    }
    arrays = [x.astype(np.float16) for x in drawn((190, 4, 80), (131, 2, 80))]
    options = {"mask": ja.Causal(), "positions": ja.END}
    problem, watched = bound(arrays, observe, **options)
    _, shown = observing.choose(watched, problem.rule, 128)
    assert shown == [False, True, False, False, True, True]
    check_states(interpreted, arrays, observe, **options)


def test_cells_of_several_tiles(interpreted):
    observe = {"sum": see.Map(2, see.SUM), "peak": see.Map(1, see.PEAK), "fine": see.Map(16)}
    check_states(interpreted, drawn((256, 1, 64), (384, 1, 64)), observe)


def test_a_query_without_a_number_spoils_what_it_sees(interpreted):
    q, k = drawn((200, 1, 64), (200, 1, 64))
    q[150] = np.nan
    lse = ja.attend(*wide((q, k, k)), mask=ja.Causal(), backend=ja.Reference()).lse
    problem, watched = bound((q, k), EVERY, mask=ja.Causal())
    run = lambda *x: ja.Hopper().observe(x[0], watched, x[1], 0, interpreted.stand_in)
    entropy, received, cells, peak = jax.jit(run)(problem, lse)
    np.testing.assert_array_equal(np.isnan(entropy[:, 0]), np.arange(200) == 150)
    np.testing.assert_array_equal(np.isnan(received[0][:, 0]), np.arange(200) <= 150)
    row = np.arange(20)[:, None] == 15
    np.testing.assert_array_equal(np.isnan(cells[0]), row & (np.arange(20) <= 15))
    assert np.isfinite(peak).all()


def test_with_the_results(interpreted):
    """And what is mapped is more of the batch."""
    q, k = drawn((2, 1, 130, 2, 64), (2, 1, 130, 1, 64))

    def run(backend, *rest):
        def one(q, k):
            problem, watched = bound((q, k), EVERY, mask=ja.Causal())
            return backend.run(problem, watched, *rest).states

        return jax.jit(jax.vmap(one))(q, k)

    got, want = run(ja.Hopper(), interpreted.stand_in), run(ja.Blockwise())
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_jax_differentiates_what_blockwise_makes():
    q, k = drawn((70, 1, 64), (70, 1, 64))
    problem, watched = bound((q, k), EVERY)

    def entropy(q, backend):
        return backend.observe(problem._replace(q=q), watched, jnp.ones((70, 1)), 1)[0].sum()

    got, want = (jax.grad(entropy)(problem.q, x) for x in (ja.Hopper(), ja.Blockwise()))
    np.testing.assert_array_equal(got, want)


@pytest.fixture(scope="module")
def assembled():
    """From options of a call to what the assembler says of the kernels that observe."""
    with assembler() as assembled:

        def say(d, t=4096, observe=EVERY, **options):
            run = lambda q, k, lse: see.observe(q, k, lse, observe, backend=ja.Hopper(), **options)
            x = (1, t, 4, d), jnp.bfloat16
            return assembled(run, x, x, ((1, t, 4), jnp.float32))

        yield say


MADE = {
    "full": (64, {}),
    "causal": (128, {"mask": ja.Causal(), "observe": EVERY | {"map": see.Map(256)}}),
    "window": (256, {"mask": ja.Window(500), "observe": EVERY | {"map": see.Map(100)}}),
    "segments": (128, {"mask": COMPILED["segments"], "observe": EVERY | {"map": see.Map(99)}}),
    "odd": (64, {"mask": COMPILED["not"], "t": 4093}),
    "functions": (128, OPTIONS["functions"] | {"t": 1024}),
    "cap": (128, OPTIONS["cap"] | {"observe": EVERY | {"scaled": see.MaxLogit(True)}}),
    "bias": (64, OPTIONS["bias"] | {"t": 1024}),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", MADE)
def test_compiles_without_spills(name, assembled):
    d, options = MADE[name]
    said = assembled(d, **options)
    check_clean(said)
    assert said.count("Compiling entry function") == 2

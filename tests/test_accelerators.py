"""Results and gradients of what `Blockwise` makes for accelerators, run on this CPU.

CI runs the tests of results, gradients and policies in the same way: with `--made-for cuda`.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_forward
import test_nonfinite
from cases import DTYPES, TILED, Case, named
from catalogue import KINDS, SQUARE, WIDE_END
from made_for import made_for
from problem import Asked
from rules import both, causal, dense, everything, packed, window
from scored import alibi, bias, cap, chain
from small import SMALL

import jaxattn as ja
from jaxattn import observe as see


@pytest.fixture(autouse=True, scope="module")
def made_for_a_gpu():
    with made_for("cuda"):
        yield


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_mask(name):
    test_forward.check(Case(name, *KINDS[name]), TILED)


WITH_GRADIENTS = {
    "whole": Asked(SQUARE, everything),
    "causal": Asked(SQUARE, causal(), alibi()),
    "window": Asked(WIDE_END, window(20, 3), cap(), sinks=0.5),
    "listed-on-the-way": Asked(SQUARE, both(causal(), packed), bias("hts"), rate=0.3),
    "arrays-of-all-axes": Asked(SQUARE, dense("bhts"), chain(bias("b1ts"), cap(), bias("h1s"))),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("backend", [TILED, ja.Blockwise()], ids=repr)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name, backend):
    WITH_GRADIENTS[name].check(backend)


def test_gradient_of_a_bias_that_some_batch_axes_share():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 90, 2, 8)).astype(np.float32)
    bias = rng.standard_normal((2, 1, 2, 90, 90)).astype(np.float32)

    def loss(bias, backend):
        out = ja.attention(q, q, q, mask=ja.Causal(), score=ja.Bias(bias), backend=backend)
        return jnp.sin(7 * out).sum()

    got, want = (jax.grad(loss)(bias, backend) for backend in (ja.Blockwise(), ja.Reference()))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", named("small", "causal-end-tall", "segments"), ids=str)
def test_half_precision(case, dtype):
    test_forward.check(case.to(dtype), TILED)


@pytest.mark.parametrize("name", test_nonfinite.HIDING)
def test_what_is_not_finite_stays_out(name):
    test_nonfinite.test_non_finite_key_or_value_stays_out_of_results(name, SMALL)
    test_nonfinite.test_non_finite_key_or_value_stays_out_of_gradients(name, SMALL)


def test_a_lone_query_and_hidden_nan():
    """One query reads the values that it may see, without a product for NaN."""
    k = v = np.ones((2, 9, 1, 4), np.float32)
    v = v.copy()
    v[:, 5:] = np.nan
    out = ja.attention(k[:, :1], k, v, mask=ja.Lengths(k=np.array([5, 6])))
    np.testing.assert_array_equal(np.isnan(out).any((1, 2, 3)), [False, True])
    np.testing.assert_allclose(out[0], 1, rtol=1e-6)


def test_products_are_of_half_precision():
    """And of nothing else, in the forward pass and back; sums are float32."""
    q = jax.ShapeDtypeStruct((2048, 4, 64), jnp.bfloat16)
    loss = lambda *x: ja.attention(*x, mask=ja.Causal()).astype(jnp.float32).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 7
    for line in products:
        operands, result = line.rsplit("->", 1)
        assert operands.count("xbf16>") == 2, line
        assert "xf32>" in result, line


def test_observations_come_from_a_second_sweep():
    q = np.random.default_rng(0).standard_normal((70, 2, 8)).astype(np.float32)
    given = {"mask": ja.Causal(), "observe": {"entropy": see.Entropy(), "map": see.Map(7)}}
    told = ja.explain(q, q, q, **given, backend=TILED)
    assert told.second_sweep
    assert (told.visited, told.tiles) == (2 * 9, 2 * 15)
    got = ja.attend(q, q, q, **given, backend=TILED).observed
    want = ja.attend(q, q, q, **given, backend=ja.Reference()).observed
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), got, want)

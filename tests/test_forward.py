"""out and lse against float64, on every mask, shape, backend and dtype."""

# pyright: reportArgumentType=false, reportCallIssue=false

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import BACKENDS, CASES, DTYPES, TILED, named
from catalogue import sampled
from tolerance import assert_close

import jaxattn as ja


def asked(case, backend):
    mask, positions = case.asked
    return {"mask": mask, "positions": positions, "backend": backend}


def check(case, backend):
    q, k, v = case.inputs()
    allowed, options = case.masks().allowed, asked(case, backend)
    with case.precision():
        got = ja.attend(*map(jnp.asarray, (q, k, v)), scale=case.scale, **options)
        got = ja.Attended(*map(np.asarray, got[:2]))
    want = oracle.attention(q, k, v, allowed, case.scale)
    low = np.float32 if case.dtype == np.float64 else case.dtype
    naive = oracle.attention(q, k, v, allowed, case.scale, dtype=low)
    assert_close(got.out, want[0], naive[0], case.dtype, "out")
    assert_close(got.lse, want[1], naive[1], oracle.accumulator(case.dtype), "lse")


@pytest.mark.parametrize("backend", [ja.Reference(), TILED], ids=repr)
@pytest.mark.parametrize("case", sampled(CASES, 20))
def test_forward_matches_float64(case, backend):
    check(case, backend)


PLANNED = (
    "one-pair",
    "unbatched",
    "rank-2-batch",
    "window-end-tall",
    "dense-1hts",
    "window-segments-lengths",
    "many-batches",
    "many-batches-dense",
    "long",
    "long-causal",
    "longer-window",
    "longer-causal-segments",
    "longer-wide",
)

pytestmark = pytest.mark.sampled(3)


@pytest.mark.parametrize("case", named(*PLANNED), ids=str)
def test_forward_with_the_default_tiles(case):
    check(case, ja.Blockwise())


@pytest.mark.parametrize("case", named("small", "causal-window", "segments"), ids=str)
def test_forward_with_the_chosen_backend(case):
    check(case, ja.AUTO)


TELLING = named("small", "causal-end-tall", "window-array", "segments-scattered", "dense-bhts")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", TELLING, ids=str)
def test_forward_in_every_dtype(case, dtype):
    check(case.to(dtype), TILED)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_matrix(case, dtype, backend):
    check(case.to(dtype), backend)


@pytest.mark.parametrize("case", TELLING, ids=str)
def test_attention_is_the_out_of_attend(case):
    q, k, v = map(jnp.asarray, case.inputs())
    options = asked(case, TILED)
    out = ja.attention(q, k, v, **options)
    np.testing.assert_array_equal(out, ja.attend(q, k, v, **options).out)


def test_defaults_are_everything_and_the_root_of_the_width():
    q, k, v = map(jnp.asarray, named("small")[0].inputs())
    out = ja.attention(q, k, v)
    given = ja.attention(q, k, v, mask=ja.EVERYTHING, scale=5**-0.5, backend=ja.AUTO)
    np.testing.assert_allclose(out, given, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_query_head_reads_key_value_head_of_its_group(backend):
    """With one key the output is its value: head i must show the value head i // (h // n)."""
    values = jnp.arange(3, dtype=jnp.float32)[None, :, None]
    out = ja.attention(jnp.ones((1, 6, 5)), jnp.ones((1, 3, 5)), values, backend=backend)
    np.testing.assert_array_equal(out[0, :, 0], [0, 0, 1, 1, 2, 2])

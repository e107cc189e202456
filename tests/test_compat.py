"""The drop-in beside `jax.nn`, and `explain` beside the compiled program."""

# pyright: reportArgumentType=false, reportCallIssue=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
import jaxattn.compat as nn

B, T, S, H, N, D = 2, 11, 13, 6, 3, 5
RNG = np.random.default_rng(0)
SHAPES = ((B, T, H, D), (B, S, N, D), (B, S, N, D), (B, T, H, D))
Q, K, V, COT = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in SHAPES)
LENGTHS = {
    "query_seq_lengths": jnp.array([4, T], jnp.int32),
    "key_value_seq_lengths": jnp.array([5, S], jnp.int32),
}
OPTIONS = {
    "nothing": {},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (3, 9)},
    "one-number-window": {"local_window_size": 9},
    "lengths": LENGTHS,
    "scale": {"scale": 0.2},
    "bias": {"bias": jnp.asarray(RNG.standard_normal((1, H, T, S)), jnp.float32)},
    "mask": {"mask": jnp.asarray(RNG.random((B, 1, T, S)) < 0.7).at[..., 0].set(True)},
    "all": {**LENGTHS, "is_causal": True, "bias": jnp.ones((H, 1, S)), "implementation": "xla"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gives_what_jax_nn_gives(name):
    options = OPTIONS[name]

    @partial(jax.jit, static_argnums=0)
    def both(module):
        attend = lambda *x: module.dot_product_attention(*x, **options)
        out, pull = jax.vjp(attend, Q, K, V)
        return out, *pull(COT)

    for got, want in zip(both(nn), both(jax.nn), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-6)


def test_residual_and_no_batch_axis():
    args = Q[0], K[0], V[0]
    got = nn.dot_product_attention(*args, is_causal=True, return_residual=True)
    want = jax.nn.dot_product_attention(*args, is_causal=True, return_residual=True)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_is_right_where_jax_nn_is_not():
    none = {"key_value_seq_lengths": jnp.zeros(B, jnp.int32)}
    out, lse = nn.dot_product_attention(Q, K, V, return_residual=True, **none)
    assert not out.any()
    assert jnp.isneginf(lse).all()


def test_other_names_are_those_of_jax_nn():
    assert nn.gelu is jax.nn.gelu
    assert nn.initializers is jax.nn.initializers
    assert {"softmax", "dot_product_attention"} <= set(dir(nn))
    with pytest.raises(AttributeError):
        _ = nn.no_such_name


def test_errors():
    with pytest.raises(ValueError, match="implementation is"):
        nn.dot_product_attention(Q, K, V, implementation="flash")
    with pytest.raises(ValueError, match="one batch axis or none"):
        nn.dot_product_attention(Q[None], K[None], V[None])


@pytest.mark.parametrize("mask", [ja.EVERYTHING, ja.Causal(), ja.Segments(np.arange(2048) // 256)])
def test_explain_tells_what_will_run(mask):
    shape = jax.ShapeDtypeStruct((1, 2048, 4, 64), jnp.float32)
    told = ja.explain(shape, shape, shape, mask=mask)
    assert told.backend == ja.Blockwise()
    assert set(told.turned_down) == {ja.Hopper(), ja.Splash(), ja.Reference()}
    program = jax.jit(lambda mask, *x: ja.attention(*x, mask=mask))
    memory = program.lower(mask, shape, shape, shape).compile().memory_analysis()
    assert memory is not None
    assert told.temporary_bytes == pytest.approx(memory.temp_size_in_bytes, rel=0.25)
    assert told.visited == told.tiles  # one tile holds all keys of a row, and each row sees some
    assert told.flops is not None
    assert told.flops <= 2 * 4 * 2048**2 * 128
    assert "tiles" in repr(told)


def test_explain_counts_what_is_skipped():
    shape = jax.ShapeDtypeStruct((1, 128, 2, 8), jnp.float32)
    mask = ja.Segments(np.arange(128) // 32)
    told = ja.explain(shape, shape, shape, mask=mask, backend=ja.Blockwise(32, 32))
    assert (told.visited, told.tiles) == (2 * 4, 2 * 16)
    assert told.flops == 2 * (2 * 4 * 32 * 32) * 16
    traced = jax.jit(lambda ids: ja.explain(shape, shape, shape, mask=ja.Segments(ids)).visited)
    assert traced(np.arange(128)) is None

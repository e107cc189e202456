"""jax's splash attention compiled for a TPU v5e: it takes the wheel `libtpu`, and no TPU."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxattn as ja

F32 = np.float32
# So that libtpu looks for no TPU here, and several processes may compile.
ENVIRONMENT = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.fixture(scope="module")
def v5e():
    """The four devices of a host with TPU v5e, to compile for."""
    if importlib.util.find_spec("libtpu") is None or os.environ.get("JAX_PLATFORMS") != "cpu":
        pytest.skip("needs the wheel libtpu, and JAX_PLATFORMS=cpu")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("XLA_FLAGS", raising=False)  # those of other compilers, which it stops at
        yield topologies.get_topology_desc("v5e:2x2", "tpu").devices


def compiled(f, sharding, *shapes):
    x = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    return jax.jit(f).lower(*x).compile().as_text() or ""


QKV = (2, 1024, 4, 128), (2, 1024, 2, 128), (2, 1024, 2, 128)
OPTIONS = {
    "plain": {},
    "causal": {"mask": ja.Causal()},
    "window-cap": {"mask": ja.Window(100), "score": ja.SoftCap(50), "sinks": np.zeros(4, F32)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_compiles_for_v5e(options, v5e):
    attend = lambda *x: ja.attention(*x, **options)
    text = compiled(attend, SingleDeviceSharding(v5e[0]), *((x, jnp.bfloat16) for x in QKV))
    assert "splash_mha_fwd_residuals" in text


SHAPES = {
    "odd": (F32, (1000, 4, 80), (1200, 4, 80), (1200, 4, 24)),
    "one-feature": (F32, (130, 2, 1), (130, 1, 1), (130, 1, 1)),
    "most-features": (jnp.bfloat16, *((1, 1100, 2, 256),) * 3),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes_compile_for_v5e(shapes, v5e):
    dtype, *shapes = shapes
    attend = lambda *x: ja.attention(*x, mask=ja.Causal(), positions=ja.END)
    text = compiled(attend, SingleDeviceSharding(v5e[0]), *((x, dtype) for x in shapes))
    assert "splash_mha_fwd_residuals" in text


def test_ids_and_derivatives_compile_for_v5e(v5e):
    def loss(q, k, v, ids, length):
        mask = ja.Causal() & ja.Segments(ids) & ja.Lengths(k=length)
        seen = ja.attend(q, k, v, mask=mask, observe={"top": ja.observe.TopKeys(2)})
        return (seen.out.astype(F32) ** 2).sum() + seen.lse.sum(), seen.observed

    integers = ((2, 1024), jnp.int32), ((2,), jnp.int32)
    shapes = *((x, jnp.bfloat16) for x in QKV), *integers
    gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
    text = compiled(gradient, SingleDeviceSharding(v5e[0]), *shapes)
    assert "splash_mha_fwd_segmented_residuals" in text


def test_float64_mode_and_vmap_compile_for_v5e(v5e):
    attend = jax.vmap(lambda *x: ja.attention(*x, mask=ja.Causal()))
    shapes = [((3, 256, *x[2:]), jnp.bfloat16) for x in QKV]
    with jax.enable_x64(True):
        text = compiled(attend, SingleDeviceSharding(v5e[0]), *shapes)
    assert "splash_mha_fwd_residuals" in text
    assert " conditional(" in text


def test_what_the_compiler_divides_is_left_to_blockwise(v5e):
    mesh, heads = Mesh(np.array(v5e), "x"), PartitionSpec(None, None, "x")
    attend = lambda *x: ja.attention(*x, mask=ja.Causal())
    mapped = jax.shard_map(attend, mesh=mesh, in_specs=heads, out_specs=heads, check_vma=False)
    shapes = [((2, 512, 4, 64), jnp.bfloat16)] * 3
    for f, by_splash in ((attend, False), (mapped, True)):
        text = compiled(f, NamedSharding(mesh, heads), *shapes)
        assert ("splash_mha_fwd_residuals" in text) == by_splash

"""What XLA makes for an H100, compiled here without one.

It takes jax 0.11 or later with the wheels of its CUDA plugin, and JAX_PLATFORMS=cpu; `.ci/run` has
an environment for that. Without them all of it is skipped.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxattn as ja

PLUGIN = "jax_cuda13_plugin"
if importlib.util.find_spec(PLUGIN) is None or os.environ.get("JAX_PLATFORMS") != "cpu":
    pytest.skip(f"needs {PLUGIN} and JAX_PLATFORMS=cpu", allow_module_level=True)

# What NVIDIA's data sheet and `cudaGetDeviceProperties` say of an H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# No trials, for there is nothing to try on; products by cuBLAS.
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
MIB = 2**20
BF16, F32 = jnp.bfloat16, jnp.float32


def device():
    """A sharding over the one."""
    platform = {"platform": "cuda", "topology": "1x1x1", "target_config": H100}
    (found, *_) = topologies.get_topology_desc(**platform).devices
    return SingleDeviceSharding(found)


@pytest.fixture(scope="module")
def h100_program():
    """From a function and the shapes and dtypes of its arguments to a compiled program."""
    there = device()

    def compile(f, *shapes):
        x = [jax.ShapeDtypeStruct(shape, dtype, sharding=there) for shape, dtype in shapes]
        return jax.jit(f).lower(*x).compile(OPTIONS)

    return compile


def attend(*qkv, **options):
    return ja.attention(*qkv, backend=ja.Blockwise(), **options)


def gradient(n, **options):
    """Of the first n arrays; the others go into the score or the mask."""

    def loss(*x):
        made = {name: make(*x[3:]) for name, make in options.items()}
        return attend(*x[:3], **made).astype(F32).sum()

    return jax.grad(loss, tuple(range(n)))


def products(program):
    """The dtypes of the operands of every product."""
    text = program.as_text()
    types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
    calls = re.findall(r"custom-call\(([^)]*)\), custom_call_target=\"__cublas", text)
    return [[types.get(x.strip()) for x in call.split(",")[:2]] for call in calls]


def loops_of_unknown_length(program):
    return [
        line
        for line in program.as_text().splitlines()
        if " while(" in line and "known_trip_count" not in line
    ]


LONG = ((1, 16384, 16, 128), BF16)
MASKS = {
    "full": ja.EVERYTHING,
    "causal": ja.Causal(),
    "window": ja.Window(1023),
    "prefix": ja.PrefixLM(3000),
}


@pytest.mark.parametrize("name", MASKS)
def test_forward_waits_for_nothing(h100_program, name):
    """Half-precision products, no branch, no loop whose length the host has to read, and no copy of
    the keys or values, which have 64 MiB."""
    program = h100_program(lambda *x: attend(*x, mask=MASKS[name]), LONG, LONG, LONG)
    found = products(program)
    assert found
    assert all(x == ["bf16", "bf16"] for x in found)
    assert len(found) <= 5
    assert " conditional(" not in program.as_text()
    assert not loops_of_unknown_length(program)
    assert program.memory_analysis().temp_size_in_bytes <= 200 * MIB


@pytest.mark.parametrize("name", MASKS)
def test_gradient_waits_for_nothing(h100_program, name):
    program = h100_program(gradient(3, mask=lambda: MASKS[name]), LONG, LONG, LONG)
    found = products(program)
    assert all(x == ["bf16", "bf16"] for x in found)
    assert len(found) <= 15
    assert " conditional(" not in program.as_text()
    assert not loops_of_unknown_length(program)
    assert program.memory_analysis().temp_size_in_bytes <= 400 * MIB


HERE = ((2, 4096, 16, 64), BF16)
LEARNT = {
    "bias": (((16, 4096, 4096), F32), {"score": ja.Bias}),
    "alibi": (((16,), F32), {"score": ja.ALiBi}),
    "relative": (((32, 16), F32), {"score": ja.RelativeBias}),
    "cap": (((), F32), {"score": ja.SoftCap}),
}


@pytest.mark.parametrize("name", LEARNT)
def test_gradient_of_a_score_is_summed_in_place(h100_program, name):
    array, options = LEARNT[name]
    program = h100_program(gradient(4, **options), HERE, HERE, HERE, array)
    assert all(x == ["bf16", "bf16"] for x in products(program))
    assert not loops_of_unknown_length(program)
    assert program.memory_analysis().temp_size_in_bytes <= 250 * MIB


def test_tiles_found_on_the_device_are_a_loop_without_branches(h100_program):
    ids = ((2, 4096), jnp.int32)
    packed = lambda *x: attend(*x[:3], mask=ja.Causal() & ja.Segments(x[3]))
    program = h100_program(packed, HERE, HERE, HERE, ids)
    assert " conditional(" not in program.as_text()
    assert len(loops_of_unknown_length(program)) == 1


def test_a_step_of_decoding_is_one_tile(h100_program):
    q, k, length = ((8, 1, 16, 128), BF16), ((8, 8192, 8, 128), BF16), ((8,), jnp.int32)
    step = lambda *x: attend(*x[:3], mask=ja.Lengths(k=x[3]))
    program = h100_program(step, q, k, k, length)
    assert " while(" not in program.as_text()
    assert len(products(program)) == 2


def test_float32_is_multiplied_in_float32(h100_program):
    x = ((1, 4096, 16, 64), F32)
    program = h100_program(lambda *x: attend(*x, mask=ja.Causal()), x, x, x)
    assert all(dtypes == ["f32", "f32"] for dtypes in products(program))
    assert program.as_text().count('"operand_precision":["HIGHEST","HIGHEST"]') >= 4

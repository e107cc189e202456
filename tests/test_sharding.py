"""Arrays that are sharded over the explicit axes of a mesh."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import jaxattn as ja
from jaxattn import nn
from jaxattn import observe as see

B, T, H, D = 2, 18, 4, 8
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((B, T, H, D)).astype(np.float32)
IDS = RANDOM.integers(0, 3, (B, T))
WANTED = {"map": see.Map(4), "received": see.Received(), "max": see.MaxLogit(), "e": see.Entropy()}
SPECS = {"batch": jax.P("m"), "positions": jax.P(None, "m"), "heads": jax.P(None, None, "m")}


def attend(x, ids):
    mask = ja.Causal() & ja.Segments(ids)
    return ja.attend(x, x, x, mask=mask, score=ja.ALiBi(), observe=WANTED)


def loss(x, ids):
    return jnp.square(attend(x, ids).out).sum()


def check(devices: int, spec: jax.P) -> None:
    """Results and gradients are those of arrays that are not sharded, and sharded as q is."""
    want, slope = attend(X, IDS), jax.grad(loss)(jnp.asarray(X), IDS)
    mesh = jax.make_mesh((devices,), ("m",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x, ids = jax.device_put(X, spec), jax.device_put(IDS, jax.P(*spec[:2]))
        for run in (attend, jax.jit(attend)):
            got = run(x, ids)
            assert jax.typeof(got.out).sharding.spec == jax.typeof(x).sharding.spec
            close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
            jax.tree.map(close, jax.device_get(got), jax.device_get(want))
        np.testing.assert_allclose(jax.device_get(jax.grad(loss)(x, ids)), slope, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_on_one_device(spec):
    check(1, spec)


def test_on_two_devices():
    code = "import test_sharding as t; [t.check(2, spec) for spec in t.SPECS.values()]"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    flags["XLA_FLAGS"] += " " + os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, **flags}
    folder = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)


def test_in_a_module():
    module = nn.MultiHeadAttention(H, H * D, mask=ja.Causal(), rngs=nnx.Rngs(0))
    x = X.reshape(B, T, H * D)
    want = np.asarray(module(jnp.asarray(x)))
    mesh = jax.make_mesh((1,), ("m",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        module = nn.MultiHeadAttention(H, H * D, mask=ja.Causal(), rngs=nnx.Rngs(0))
        got = module(
            jax.device_put(x, jax.P()),
            qkv_sharding=jax.P(None, None, "m", None),
            out_sharding=jax.P("m", None, None),
        )
        assert jax.typeof(got).sharding.spec == jax.P("m", None, None)
        np.testing.assert_allclose(jax.device_get(got), want, atol=1e-5)

"""A sequence over four H100s: what XLA makes of it, compiled without one; see test_h100.py."""

# pyright: reportArgumentType=false

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from test_h100 import H100, OPTIONS

import jaxattn as ja
from jaxattn import sharded

# Of each way what it sends by, and how many kernels are in its program: each gradient has two more.
WAYS = {
    "heads": (sharded.AllToAll("x"), "all-to-all", 1),
    "ring": (sharded.Ring("x", pieces=2), "collective-permute", 4),
    "zigzag": (sharded.Ring("x", sharded.ZIGZAG), "collective-permute", 5),
}
COLLECTIVES = re.compile(r" (collective-permute|all-to-all|all-gather)(?:-start)?\(")


@pytest.fixture(scope="module")
def mesh():
    platform = {"platform": "cuda", "topology": "1x1x4", "target_config": H100}
    devices = topologies.get_topology_desc(**platform).devices
    return jax.sharding.Mesh(devices, ("x",))


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("name", WAYS)
def test_kernels_make_the_parts(name, gradient, mesh):
    """Types inside jax.shard_map and all; and no keys are gathered."""
    way, kind, kernels = WAYS[name]
    spec = jax.P(None, "x")

    def attention(q, k, v):
        local = lambda q, k, v: sharded.attention(q, k, v, way, mask=ja.Causal())
        return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(q, k, v)

    loss = lambda *x: jnp.sin(attention(*x).astype(jnp.float32)).sum()
    f = jax.grad(loss, (0, 1, 2)) if gradient else attention
    on = jax.NamedSharding(mesh, spec)
    like = lambda heads: jax.ShapeDtypeStruct((1, 8192, heads, 64), jnp.bfloat16, sharding=on)
    made = jax.jit(f).lower(like(8), like(4), like(4)).compile(OPTIONS)
    text = made.as_text() or ""
    assert text.count('custom_call_target="mosaic_gpu') == kernels * (3 if gradient else 1)
    assert set(COLLECTIVES.findall(text)) == {kind}

"""One process of several, each with two devices: attends to its part of a sequence.

Run by test_sharded_processes.py: number, count, port, and what to do: "attend" or "die".
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

number, count, port, todo = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(
    f"127.0.0.1:{port}",
    num_processes=count,
    process_id=number,
    initialization_timeout=60,
    heartbeat_timeout_seconds=10,
    shutdown_timeout_seconds=10,
)

import jaxattn as ja  # noqa: E402
from jaxattn import sharded  # noqa: E402

devices, way = jax.device_count(), sharded.Ring("x", sharded.ZIGZAG)
assert devices == 2 * count
mesh = jax.make_mesh((devices,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
random = np.random.default_rng(0)
q, k, v = (random.standard_normal((64, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
on = jax.NamedSharding(mesh, jax.P("x"))


def given(x):
    x = np.asarray(way.order.put(x, devices))
    return jax.make_array_from_callback(x.shape, on, lambda index: x[index])


def loss(q, k, v, attention):
    return jnp.sin(attention(q, k, v)).sum()


with jax.set_mesh(mesh):
    over = lambda q, k, v: sharded.attention(q, k, v, way, mask=ja.Causal())
    slopes = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    args = [*map(given, (q, k, v))]
    if todo == "die":
        jax.block_until_ready(slopes(*args, over))
        if number == count - 1:
            os._exit(3)
        for _ in range(10_000):  # until it is noticed
            jax.block_until_ready(slopes(*args, over))
    got = slopes(*args, over)
whole = jax.grad(loss, (0, 1, 2))(q, k, v, lambda q, k, v: ja.attention(q, k, v, mask=ja.Causal()))
for mine, want in zip(got, whole, strict=True):
    want = np.asarray(way.order.put(want, devices))
    for shard in mine.addressable_shards:
        np.testing.assert_allclose(shard.data, want[shard.index], rtol=2e-5, atol=2e-5)
print("agrees")
jax.distributed.shutdown()

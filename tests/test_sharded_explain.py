"""What sharing a sequence costs, as `jaxattn.sharded.explain` tells it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import sharded

MESH = {"x": 8, "y": 4}
Q = jax.ShapeDtypeStruct((1, 65536, 8, 64), jnp.bfloat16)
K = jax.ShapeDtypeStruct((1, 65536, 2, 64), jnp.bfloat16)
SHARD = 65536 // 8 * 2 * 128  # numbers of keys and values on a device


def told(way, mask: ja.Mask = ja.Causal()):  # noqa: B008
    return sharded.explain(Q, K, K, way, MESH, mask=mask)


def test_a_ring_sends_each_shard_to_all_others_once():
    cost = told(sharded.Ring("x"))
    assert cost.visits == 8
    assert cost.forward_bytes == 7 * SHARD * 2
    assert cost.gradient_bytes == 7 * SHARD * (2 + 2 + 4)  # gradients in float32


def test_a_window_sends_to_those_that_need_it():
    assert told(sharded.Ring("x"), ja.Window(1023)).visits == 2
    assert told(sharded.Ring("x"), ja.Window(8193)).visits == 3
    assert told(sharded.Ring("x"), ja.Window(1023, 1023)).visits == 3
    assert told(sharded.Ring("x", sharded.ZIGZAG), ja.Window(1023)).visits == 3


@pytest.mark.parametrize("order", [sharded.ZIGZAG, sharded.Striped(16)], ids=repr)
def test_orders_balance_causal_work(order):
    uneven, even = told(sharded.Ring("x")), told(sharded.Ring("x", order))
    assert uneven.balance is not None
    assert even.balance is not None
    assert uneven.balance > 1.7
    assert even.balance < 1.1
    assert "of the mean" in str(even)
    assert even.flops is not None
    pairs = 65536 * 65537 // 2  # of queries and keys, and few more are computed
    assert 1 <= sum(even.flops) / (4 * 8 * 64 * pairs) < 1.1


def test_memory_is_a_share_and_what_visits():
    cost = told(sharded.Ring("x"))
    of_queries = 65536 // 8 * 8 * (2 * 64 * 2 + 4)  # q, out and lse
    assert cost.array_bytes == of_queries + SHARD * 2
    assert cost.visiting_bytes == 2 * SHARD * 2  # one that visits, one that arrives
    assert told(sharded.AllToAll("y")).visiting_bytes == 0
    assert "visiting and arriving" in str(cost)


def test_heads_are_exchanged_once():
    cost = told(sharded.AllToAll("y"))
    numbers = 65536 // 4 * 128 * (8 + 4)  # 2 heads of keys are repeated for 4 devices
    assert cost.visits == 1
    assert cost.forward_bytes == numbers * 2 * 3 // 4


@pytest.mark.parametrize(
    "order", [sharded.CONTIGUOUS, sharded.ZIGZAG, sharded.Striped(3)], ids=repr
)
def test_orders_come_back(order):
    x = np.arange(48 * 5).reshape(48, 5)
    there = order.put(x, 4, axis=0)
    np.testing.assert_array_equal(order.back(there, 4, axis=0), x)
    for device in range(4):
        mine = order.tokens(device, 4, 12)
        np.testing.assert_array_equal(there[12 * device : 12 * (device + 1)], x[mine])


def test_an_order_wants_equal_chunks():
    with pytest.raises(ValueError, match="8 equal chunks, got 12 tokens"):
        sharded.ZIGZAG.put(np.ones((12, 1, 1)), 4)


def test_the_page_has_the_bytes_that_are_told():
    page = Path(sharded.__file__).with_name("README.md").read_text()
    rows = [
        [x.replace(",", "") for x in row.split("|")[1:-1]]
        for row in re.findall(r"^\| [\d,]+ .*", page, re.M)
    ]
    assert len(rows) == 6
    for tokens, devices, held, forward, gradient, flops in rows:
        t, n = int(tokens), int(devices)
        assert int(held) == t // n
        np.testing.assert_allclose(float(flops), 2 * 32 * 128 * t**2 / n / 1e12, atol=0.06)
        if n > 512:
            continue
        q, k = (jax.ShapeDtypeStruct((1, t, heads, 128), jnp.bfloat16) for heads in (32, 8))
        way = sharded.Ring("x", sharded.ZIGZAG)
        cost = sharded.explain(q, k, k, way, {"x": n}, mask=ja.EVERYTHING)
        np.testing.assert_allclose(float(forward), cost.forward_bytes / 2**30, atol=0.006)
        np.testing.assert_allclose(float(gradient), cost.gradient_bytes / 2**30, atol=0.006)

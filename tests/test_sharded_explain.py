"""What sharing a sequence costs, as `jaxattn.sharded.explain` tells it."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import sharded
from jaxattn._lowering import lowered_for
from jaxattn.sharded.parts import Layout, layout_of

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
    cost = told(sharded.Ring("x", pieces=1))
    of_queries = 65536 // 8 * 8 * (2 * 64 * 2 + 4)  # q, out and lse
    assert cost.array_bytes == of_queries + SHARD * 2
    assert cost.visiting_bytes == 2 * SHARD * 2  # one that visits, one that arrives
    assert told(sharded.Ring("x", pieces=16)).visiting_bytes == cost.visiting_bytes // 16
    assert told(sharded.Ring("x", pieces=16)).forward_bytes == cost.forward_bytes
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


@pytest.mark.parametrize("order", [sharded.CONTIGUOUS, sharded.ZIGZAG], ids=repr)
def test_pieces_have_as_much_of_every_chunk(order):
    """Of an array in the order of the sequence, whose keys are on the axis in the middle."""
    layout = Layout("x", 4, order, 48, 48, pieces=3)
    x = jnp.arange(2 * 48 * 5).reshape(2, 48, 5)
    pieces = [layout.piece(x, -2, i) for i in range(3)]
    size = 48 // 3 // order.parts
    for i, piece in enumerate(pieces):
        chunks = np.asarray(x).reshape(2, order.parts, 3, size, 5)[:, :, i]
        np.testing.assert_array_equal(piece, chunks.reshape(2, 16, 5))
    whole = jnp.zeros_like(x)
    for i, piece in enumerate(pieces):
        whole = layout.put_piece(whole, piece, -2, i)
    np.testing.assert_array_equal(whole, x)


@pytest.mark.parametrize(
    ("platform", "keys", "parts", "pieces", "rows"),
    [
        ("cpu", 2048, 1, 4, 512),
        ("cpu", 2048, 2, 4, 512),
        ("cpu", 65536, 2, 8, 512),
        ("cpu", 600, 2, 1, 300),
        ("cpu", 1536, 3, 2, 512),
        ("cpu", 1300, 1, 2, 325),
        ("cpu", 1042, 2, 1, 521),
        ("cuda", 8192, 2, 1, 4096),
        ("cuda", 131072, 2, 8, 65536),
    ],
)
def test_a_ring_chooses_its_pieces(platform, keys, parts, pieces, rows):
    with lowered_for(platform):
        layout = layout_of("x", 8, sharded.Striped(parts), keys, keys, None)
        assert (layout.pieces, layout.rows) == (pieces, rows)
        assert layout_of("x", 8, sharded.Striped(parts), keys, keys, 6).pieces == 6


def test_pieces_are_of_one_size():
    with pytest.raises(ValueError, match="pieces=3 of the 4096 keys of a chunk"):
        told(sharded.Ring("x", sharded.ZIGZAG, 3))
    wrong: tuple[Any, ...] = 0, 1.5, True
    for bad in wrong:
        with pytest.raises(ValueError, match="whole number of pieces"):
            sharded.Product("y", "x", pieces=bad)


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

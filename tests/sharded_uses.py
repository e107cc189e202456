"""What people do over 8 devices: whole arrays, modules, caches, the programs of the pages."""

# pyright: reportArgumentType=false

import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType
from sharded_setup import (
    BIAS,
    EVERY,
    IDS,
    RNG,
    SINKS,
    SLOPES,
    WAYS,
    B,
    D,
    E,
    H,
    K,
    N,
    P,
    Q,
    T,
    V,
    close,
    loss_of,
    ring,
    sent,
)

import jaxattn as ja
from jaxattn import cache as kv
from jaxattn import nn, sharded
from jaxattn.sharded.typed import way_of


def arrays(kind, *by):
    """Whole arrays over data, sequence and heads: by axes that are Auto or Explicit."""
    kind, weight = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[kind], SLOPES * IDS[:, :1]
    observe = {name: EVERY[name] for name in ("map", "entropy", "received", "max_logit")}

    def options(bias, weight):
        score = lambda logit, at: logit + weight[at.batch[0], at.head] * jnp.sin(1.0 * at.q - at.k)
        mask = ja.Causal() & ja.Segments(IDS)
        drop = ja.Dropout(0.2, jax.random.key(1))
        return {"mask": mask, "score": (ja.Bias(bias), score), "dropout": drop, "observe": observe}

    def both(attend, *args):
        def loss(q, k, v, bias, weight):
            found = attend(q, k, v, **options(bias, weight))
            return loss_of(found) + jnp.sin(found.observed["map"]).sum()

        q, k, v, *rest = args
        return attend(q, k, v, **options(*rest)), jax.grad(loss, (0, 1, 2, 3, 4))(*args)

    args = Q, K, V, BIAS, jnp.asarray(weight)
    want = jax.jit(partial(both, ja.attend))(*args)
    ways = {
        "ring": (WAYS["ring"], ("d", "x", "m"), P("d", "x", "m")),
        "product": (WAYS["product"], ("d", "x", "y"), P("d", ("x", "y"))),
    }
    for way, names, spec in (ways[name] for name in by):
        mesh = jax.make_mesh((2, 2, 2), names, axis_types=(kind,) * 3)
        with jax.set_mesh(mesh):
            on = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in (Q, K, V)]
            run = jax.jit(partial(both, partial(sharded.attend, way=way, spec=spec)))
            got = run(*on, *map(jnp.asarray, args[3:]))
            assert got[0].out.sharding.is_equivalent_to(on[0].sharding, 4)
            got = jax.device_get(got)
        close(got, want)


def typed(*names):
    """Arrays whose types say that tokens are sharded are attended to by a way that suits."""
    wanted = {name: EVERY[name] for name in ("map", "entropy", "received", "max_logit")}
    score = lambda logit, at: logit + jnp.asarray(SLOPES)[at.head] * jnp.sin(1.0 * at.q - at.k)
    rule = {"mask": ja.Causal() & ja.Segments(IDS), "score": score, "sinks": SINKS}

    def both(q, k, v):
        def loss(*x):
            found = ja.attend(*x, **rule, observe=wanted)
            return loss_of(found) + jnp.sin(found.observed["map"]).sum()

        return ja.attend(q, k, v, **rule, observe=wanted), jax.grad(loss, (0, 1, 2))(q, k, v)

    want = jax.jit(both)(Q, K, V)
    every = {
        "ring": ({"x": 8}, P(None, "x"), sharded.Ring("x")),
        "heads": ({"d": 2, "x": 4}, P("d", "x"), sharded.AllToAll("x")),
        "split": ({"x": 2, "m": 2}, P(None, "x", "m"), sharded.AllToAll("x")),
        "product": ({"x": 4, "y": 2}, P(None, ("x", "y")), sharded.Product("y", "x")),
    }
    for shape, spec, way in (every[name] for name in names):
        kinds = (AxisType.Explicit,) * len(shape)
        mesh = jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=kinds)
        with jax.set_mesh(mesh):
            on = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in (Q, K, V)]
            assert way_of(*on) == way
            assert ja.explain(*on, **rule).way == way
            got = jax.jit(both)(*on)
            assert jax.typeof(got[0].out).sharding.spec == jax.typeof(on[0]).sharding.spec
            assert jax.typeof(got[1][1]).sharding.spec == jax.typeof(on[1]).sharding.spec
            close(jax.device_get(got), want)
            assert "all-gather" not in sent(jax.jit(ja.attention).lower(*on).compile())
            apart = on[0], *(jax.device_put(x, jax.NamedSharding(mesh, P())) for x in (K, V))
            assert way_of(*apart) is None
            attention = jax.jit(ja.attention)
            close(jax.device_get(attention(*apart)), attention(Q, K, V))
        close(jax.device_get(attention(*on)), attention(Q, K, V))  # the arrays know the mesh


def module():
    """Batch, tokens and heads of Flax's module over axes of a mesh, its parameters by Flax's own
    annotations; and a checkpoint by orbax, from one mesh into it and into another."""
    names, width = ("d", "x", "m"), H * D
    of_heads = {"out_sharding": (None, "m", None)}
    metadata = {"kernel_metadata": of_heads, "out_kernel_metadata": {"out_sharding": ("m",)}}
    metadata |= {
        "bias_metadata": {"out_sharding": ("m",)},
        "out_bias_metadata": {"out_sharding": ()},
    }
    metadata |= {"sinks_metadata": {"out_sharding": ("m",)}}
    x = RNG.standard_normal((B, T, width)).astype(np.float32)

    def make(**metadata):
        options = {"mask": ja.Causal(), "sinks": True, "rope": ja.rope.Rope(D), "num_kv_heads": N}
        return nn.MultiHeadAttention(H, width, **options, **metadata, rngs=nnx.Rngs(0))

    def slope(model, x, **shardings):
        loss = lambda model, x: jnp.square(model(x, **shardings)).sum()
        return nnx.jit(nnx.grad(loss))(model, x), nnx.jit(partial(_call, **shardings))(model, x)

    def placed(shape):
        return jax.make_mesh(shape, names, axis_types=(AxisType.Explicit,) * 3)

    want = jax.device_get(slope(make(), x))
    mesh = placed((2, 2, 2))
    with jax.set_mesh(mesh):
        model: Any = make(**metadata)
        state: Any = nnx.state(model, nnx.Param)
        specs: Any = nnx.get_partition_spec(state)
        assert model.query.kernel[...].sharding.spec == P(None, "m", None)
        assert specs["sinks"].get_value() == P("m")
        given = jax.device_put(x, P("d", "x"))
        got = slope(
            model, given, qkv_sharding=P("d", "x", "m", None), out_sharding=P("d", "x", None)
        )
        assert jax.typeof(got[1]).sharding.spec == P("d", "x", None)
        close(jax.tree.leaves(jax.device_get(got)), jax.tree.leaves(want), 1e-4)
    pure = nnx.to_pure_dict(state)
    with tempfile.TemporaryDirectory() as folder:
        saver = ocp.StandardCheckpointer()
        saver.save(Path(folder) / "state", pure)
        saver.wait_until_finished()
        for shape in ((2, 2, 2), (4, 1, 2), (2, 4, 1)):
            other = placed(shape)
            on = lambda x, other=other: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.NamedSharding(other, x.sharding.spec)
            )
            asked = jax.tree.map(on, pure)
            found = saver.restore(Path(folder) / "state", asked)
            jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), found, pure)
            same = lambda x, its: x.sharding.is_equivalent_to(its.sharding, x.ndim)
            assert all(jax.tree.leaves(jax.tree.map(same, found, asked)))


def _call(model, x, **shardings):
    return model(x, **shardings)


def decoding():
    """Queries that every device has, over a cache that is shared out along the sequence."""
    lengths = np.array([29, 5], np.int32)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    options = {"sinks": SINKS, "score": ja.ALiBi()}

    def rule(lengths):
        mask = ja.Lengths(k=lengths) & ja.Causal() & ja.Window(20)
        return options | {"mask": mask, "positions": ja.Positions(lengths[:, None] - 3)}

    def local(q, k, v, lengths):
        return sharded.decode(q, k, v, "x", **rule(lengths))

    keys = P(None, "x")
    run = jax.shard_map(local, mesh=mesh, in_specs=(P(), keys, keys, P()), out_specs=P())
    plain = lambda q, k, v, lengths: ja.attend(q, k, v, **rule(lengths))
    args = Q[:, :3], K, V
    both = lambda f: jax.jit(
        lambda *x: (f(*x, lengths), jax.grad(lambda *x: loss_of(f(*x, lengths)), (0, 1, 2))(*x))
    )
    close(both(run)(*args), both(plain)(*args))
    assert not sent(jax.jit(run).lower(*args, lengths).compile())  # sums over devices alone


def caches():
    """A cache that is shared out, along its slots or its heads, is as one that is not: chunks,
    steps, sequences of different lengths, rings; and no keys are sent."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    names = ("entropy", "top", "max_logit", "received", "map")
    rule = {"score": ja.ALiBi(), "sinks": SINKS, "observe": {name: EVERY[name] for name in names}}
    parts = [slice(0, 5), slice(5, 10), slice(10, 15), slice(15, 20), slice(20, 21)]
    counts = np.array([[5, 3], [5, 4], [5, 0], [5, 5], [1, 1]])

    def run(step, cache):
        found = []
        for part, count in zip(parts, counts, strict=True):
            got, cache = step(*(x[:, part] for x in (Q, K, V)), cache, jnp.asarray(count))
            found.append(got)
        return found, cache

    def step(q, k, v, cache, count, **options):
        return kv.attend(q, k, v, cache, count=count, **rule, **options)

    for window in (None, 12):
        empty = kv.empty((B,), 16 if window else 32, N, D, E, window=window)
        observed = {"received": P(None, "x")}
        observed |= {name: P() for name in names if name != "received"}
        spec = kv.Cache(P(None, "x"), P(None, "x"), P(), window)
        shared = jax.jit(
            jax.shard_map(
                partial(step, axis="x"),
                mesh=mesh,
                in_specs=(P(), P(), P(), spec, P()),
                out_specs=(ja.Attended(P(), P(), observed), spec),
            )
        )
        want, kept = run(jax.jit(step), empty)
        got, held = run(shared, empty)
        close(held, kept)
        close(got, want)
        few = [x[:, :1] for x in (Q, K, V)]
        assert not sent(shared.lower(*few, empty, jnp.ones(B, int)).compile())
    with pytest.raises(ValueError, match="up to 5 tokens, got 6"):
        shared(Q[:, :6], K[:, :6], V[:, :6], empty, jnp.ones(B, int))
    heads = P(None, None, "x")
    spec = kv.Cache(heads, heads, P())
    two = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    plain = lambda q, k, v, cache: kv.attend(q, k, v, cache, mask=ja.Window(9))
    alone = jax.jit(
        jax.shard_map(
            plain,
            mesh=two,
            in_specs=(heads, heads, heads, spec),
            out_specs=(ja.Attended(heads, heads, {}), spec),
        )
    )
    empty = kv.empty((B,), 32, N, D, E)
    close(alone(Q[:, :7], K[:, :7], V[:, :7], empty), plain(Q[:, :7], K[:, :7], V[:, :7], empty))
    text: Any = alone.lower(Q[:, :7], K[:, :7], V[:, :7], empty).compile().as_text()
    assert "all-" not in text


def pages():
    """The programs of the first page and of the page, with fewer tokens. Training has the losses
    and the maps of one device."""
    here = Path(sharded.__file__).with_name("README.md")
    blocks = lambda path: re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)
    (long,) = (block for block in blocks(here.parents[2] / "README.md") if "131072" in block)
    found: dict[str, Any] = {"jax": jax, "jnp": jnp, "ja": ja}
    exec(long.replace("131072", "1024"), found)
    picture, slopes = found["picture"], found["slopes"]
    assert picture.shape == (1, 64, 64)
    np.testing.assert_allclose(picture.sum(-1), 1, rtol=1e-5)
    assert slopes[0].sharding.is_equivalent_to(found["on"], 3)
    for block in blocks(here):
        exec(block.replace("4096", "64").replace("4097", "65"), found)
    assert found["out"].shape == (1, 64, 8, 64)
    losses, maps = found["train"](jnp.asarray)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    close(found["maps"], maps, 1e-3)


def errors():
    """What cannot be shared out says so."""

    def message(way, shape=(B, T, H, D), kv=None, devices=8):
        mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
        q, k = jnp.ones(shape), jnp.ones(kv or shape)
        local = lambda q, k: sharded.attention(q, k, k, way)
        spec = P(None, "x")
        try:
            jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(q, k)
        except (ValueError, TypeError) as error:
            return str(error)
        return ""

    assert "got h=4 heads and 8 devices" in message(sharded.AllToAll("x"))
    assert "2 chunks of the queries" in message(ring(sharded.ZIGZAG), (B, 8, H, D))
    assert "Ring('x')" in message("x")
    with pytest.raises(ValueError, match=r"jax\.set_mesh"):
        sharded.attention(Q, K, V, ring())


def edges():
    """Sharded types on other roads: features, an axis that is manual, a batch that is mapped."""
    mesh = jax.make_mesh((2, 4), ("d", "x"), axis_types=(AxisType.Explicit,) * 2)
    attention = partial(ja.attention, mask=ja.Causal())
    slope = jax.grad(lambda *x: jnp.sin(attention(*x)).sum(), (0, 1, 2))
    args = Q, K, V[..., :4]
    want = jax.jit(lambda *x: (attention(*x), slope(*x)))(*args)
    both = lambda f: lambda *x: (f(attention)(*x), f(slope)(*x))
    manual = partial(jax.shard_map, axis_names={"d"}, in_specs=P("d"), out_specs=P("d"))
    with jax.set_mesh(mesh):
        for spec, f in (
            (P("d", "x"), manual),
            (P("d", "x"), jax.vmap),
            (P("d", "x"), partial(jax.vmap, spmd_axis_name="d")),
            (P(None, "x", None, "d"), lambda f: f),
        ):
            on = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in args]
            close(jax.device_get(jax.jit(both(f))(*on)), want)

"""Sequences shared out over 8 devices: each case against the same call on one.

Run by test_sharded.py in a process of its own, which has the devices. A case draws its options from
the tables below; all of them are compared as whole arrays in the order of the sequence.
"""

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
from catalogue import observations
from flax import nnx
from jax.sharding import AxisType

import jaxattn as ja
from benchmarks import sharded as cost
from benchmarks.run import measure_all
from benchmarks.timing import Budget
from jaxattn import cache as kv
from jaxattn import nn, sharded
from jaxattn.observe.distance import Spread
from jaxattn.sharded.typed import way_of

P = jax.P
B, T, H, N, D, E = 2, 32, 4, 2, 8, 6
RNG = np.random.default_rng(0)
Q = RNG.standard_normal((B, T, H, D)).astype(np.float32)
K = RNG.standard_normal((B, T, N, D)).astype(np.float32)
V = RNG.standard_normal((B, T, N, E)).astype(np.float32)
BIAS = RNG.standard_normal((H, T, T)).astype(np.float32)
IDS = np.sort(RNG.integers(0, 4, (B, T)).astype(np.int32))
SINKS = RNG.standard_normal(H).astype(np.float32)
SLOPES = RNG.standard_normal(H).astype(np.float32)

ring = partial(sharded.Ring, "x")
WAYS = {
    "ring": ring(),
    "zigzag": ring(sharded.ZIGZAG),
    "striped": ring(sharded.Striped(2)),
    "heads": sharded.AllToAll("x"),
    "product": sharded.Product("y", "x"),
    "product_zigzag": sharded.Product("y", "x", sharded.ZIGZAG),
}
SHAPES = {"heads": {"x": 4}, "product": {"x": 4, "y": 2}, "product_zigzag": {"x": 4, "y": 2}}


def near(slopes):
    return lambda logit, at: logit + jnp.asarray(slopes)[at.head] * jnp.cos(1.0 * at.q - at.k)


# name: options, of arrays by name; those in `ALONG` have an axis of tokens.
RULES = {
    "full": lambda x: {},
    "causal": lambda x: {"mask": ja.Causal()},
    "window": lambda x: {"mask": ja.Window(5, 2)},
    "prefix": lambda x: {"mask": ja.PrefixLM(9)},
    "lengths": lambda x: {"mask": ja.Lengths(29, jnp.array([30, 7])) & ja.Causal()},
    "segments": lambda x: {"mask": ja.Segments(x["ids"]) & ja.Causal(), "score": ja.ALiBi()},
    "either": lambda x: {"mask": ja.Window(2, 0) | ~ja.Causal(3)},
    "dense": lambda x: {"mask": ja.Dense(x["bias"] > -1), "score": ja.Bias(x["bias"])},
    "function": lambda x: {
        "mask": ja.Where(lambda at: (at.k + at.head) % 3 != at.q % 2),
        "score": (near(x["slopes"]), ja.SoftCap(3.0)),
    },
    "sinks": lambda x: {"mask": ja.Causal(), "sinks": x["sinks"]},
    "dropout": lambda x: {"dropout": ja.Dropout(0.3, jax.random.key(3)), "score": ja.ALiBi()},
    "relative": lambda x: {"score": ja.RelativeBias(jnp.ones((8, H)) * x["slopes"])},
}
REST = {"ids": IDS, "bias": BIAS, "sinks": SINKS, "slopes": SLOPES}
ALONG = {"ids": -1, "bias": -2}
EVERY = {name: x for name, (x, _) in observations(T, T, H).items()}
OF_KEYS = "received", "rows", "transposed", "fold_keys"
OF_QUERIES = "lse", "row_max", "entropy", "top", "columns", "mass", "mass_on", "apply", "fold_rows"


class Case:
    """A way, and what it takes to call it with whole arrays in the order of the sequence."""

    def __init__(self, way, kind=AxisType.Auto):
        self.way = WAYS[way]
        shape = SHAPES.get(way, {"x": 8})
        self.mesh = jax.make_mesh(
            tuple(shape.values()), tuple(shape), axis_types=(kind,) * len(shape)
        )
        self.tokens = tuple(shape) if len(shape) > 1 else "x"
        self.rings, self.order = shape["x"], getattr(self.way, "order", sharded.CONTIGUOUS)

    def along(self, ndim, axis):
        return P(*(self.tokens if i == axis % ndim else None for i in range(ndim)))

    def put(self, x, axis):
        return self.order.put(x, self.rings, axis)

    def attend(self, rule, q, k, v, rest, observe=None, backend=ja.AUTO):
        rest = {n: self.put(x, ALONG[n]) if n in ALONG else x for n, x in rest.items()}
        if "bias" in rest:
            rest["bias"] = self.put(rest["bias"], -1)
        q, k, v = (self.put(x, 1) for x in (q, k, v))

        def local(q, k, v, rest):
            given = RULES[rule](rest)
            return sharded.attend(q, k, v, self.way, **given, observe=observe, backend=backend)

        specs = {n: self.along(x.ndim, ALONG[n]) if n in ALONG else P() for n, x in rest.items()}
        four, three = self.along(4, 1), self.along(3, 1)
        seen = {name: self.spec(name) for name in observe or {}}
        run = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(four, four, four, specs),
            out_specs=ja.Attended(four, three, seen),
        )
        got = run(q, k, v, rest)
        back = lambda x, axis=1: self.order.back(x, self.rings, axis)
        shown = {}
        for name, x in got.observed.items():
            if name == "rows":
                x = back(x, 3)
            elif name == "distance":
                x = x._replace(mean=back(x.mean), variance=back(x.variance))
            elif self.spec(name) != P():
                x = jax.tree.map(back, x)
            shown[name] = x
        return ja.Attended(back(got.out), back(got.lse), shown)

    def spec(self, name):
        if name == "rows":
            return self.along(4, 3)
        if name == "distance":
            return Spread(self.along(3, 1), self.along(3, 1), P())
        if name.startswith((*OF_KEYS, *OF_QUERIES)):
            return self.along(3, 1)
        return P()


def whole(rule, q, k, v, rest, observe=None, backend=ja.AUTO):
    return ja.attend(q, k, v, **RULES[rule](rest), observe=observe, backend=backend)


def close(got, want, tolerance=2e-5):
    got, want = jax.device_get((got, want))
    check = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(check, got, want)


def loss_of(attended):
    lse = jnp.where(jnp.isneginf(attended.lse), 0, attended.lse)
    return jnp.sin(attended.out).sum() + jnp.square(lse).sum()


def results(way, rule, backend=ja.AUTO):
    """Results, a gradient in everything, and a tangent."""
    case = Case(way)

    def both(run):
        def loss(q, k, v, bias, slopes, sinks):
            rest = REST | {"bias": bias, "slopes": slopes, "sinks": sinks}
            return loss_of(run(q, k, v, rest))

        args = Q, K, V, BIAS, SLOPES, SINKS
        slope = jax.grad(loss, tuple(range(6)))(*args)
        out = lambda q, k, v: run(q, k, v, REST).out
        return run(Q, K, V, REST), slope, jax.jvp(out, (Q, K, V), (Q + 1, K - 1, V))[1]

    got = jax.jit(lambda: both(partial(case.attend, rule, backend=backend)))()
    close(got, jax.jit(lambda: both(partial(whole, rule)))())


def inside(way, *names):
    """Any backend makes the parts: results, gradients, tangents, observations."""
    for name in names:
        backend = {"Reference": ja.Reference(), "Blockwise": ja.Blockwise(8, 8)}[name]
        results(way, "segments", backend)
        wanted = {name: EVERY[name] for name in ("map", "entropy", "received")}
        rest = {"observe": wanted, "backend": backend}
        got = jax.jit(partial(Case(way).attend, "sinks", **rest))(Q, K, V, REST)
        close(got, whole("sinks", Q, K, V, REST, observe=wanted))


def benchmark(*names):
    """What is compared is right, the plain ring too."""
    random = np.random.default_rng(0)
    q, k, v, g = (jnp.asarray(random.standard_normal((1, 128, 8, 16)), jnp.float32) for _ in "qkvg")
    tasks = {
        "forward": lambda: cost.beside((q, k, v), lambda f: f),
        "gradient": lambda: cost.beside((q, k, v, g), cost.gradient),
        "more": lambda: cost.more((q, k, v)),
        "long": lambda: {"long": (lambda: cost.long(256), cost.rows_add_up)},
    }
    for name in names:
        task = tasks[name]()
        found = measure_all(task, Budget(0, 1, 1))
        assert len(found) >= 1
        assert {its["status"] for its in found.values()} == {"timed"}, found


def second(way, rule):
    """A product with the Hessian."""
    case = Case(way)

    def product(run):
        slope = jax.grad(lambda *x: loss_of(run(*x, REST)), (0, 1, 2))
        return jax.jvp(slope, (Q, K, V), (K.mean() + Q, K - 1, V))[1]

    got = jax.jit(lambda: product(partial(case.attend, rule)))()
    close(got, jax.jit(lambda: product(partial(whole, rule)))(), 2e-4)


def mapped(way):
    """Under `jax.vmap`."""
    case = Case(way)
    each = lambda run: lambda s: run(Q * s, K, V, REST)
    scales = jnp.array([0.5, 1.0, 2.0])
    got = jax.jit(jax.vmap(each(partial(case.attend, "causal"))))(scales)
    close(got, jax.vmap(each(partial(whole, "causal")))(scales))


def seen(way, rule, names=None):
    """Observations, of which a whole array along the keys or queries would need the order."""
    case = Case(way)
    ordered = ("apply", "mass_on", "received_of", "transposed")
    wanted = names or [x for x in EVERY if not (case.order.parts > 1 and x in ordered)]
    observe = {name: EVERY[name] for name in wanted}
    got = jax.jit(partial(case.attend, rule, observe=observe))(Q, K, V, REST)
    want = whole(rule, Q, K, V, REST, observe=observe)
    close(got._replace(observed={}), want._replace(observed={}))
    for name in observe:
        close(got.observed[name], want.observed[name], 1e-4 if name == "distance" else 2e-5)


def slopes_of_seen(way, rule, names):
    """Gradients through observations."""
    case, observe = Case(way), {name: EVERY[name] for name in names}

    def slope(run):
        def loss(q, k):
            found = run(q, k, V, REST, observe=observe).observed
            real = [x for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum(jnp.sin(x).sum() for x in real)

        return jax.jit(jax.grad(loss, (0, 1)))(Q, K)

    close(slope(partial(case.attend, rule)), slope(partial(whole, rule)), 1e-4)


SENDS = re.compile(
    r"= (\(?[a-z0-9]+\[[^=]*?) (collective-permute|all-to-all|all-gather)(?:-start)?\("
)


def compiled(way, rule, grad=False, tokens=512) -> Any:
    """The program of a device."""
    case, like = Case(way), jax.ShapeDtypeStruct
    spec = case.along(4, 1)
    run = jax.shard_map(
        lambda q, k, v: sharded.attention(q, k, v, case.way, **RULES[rule](REST)),
        mesh=case.mesh,
        in_specs=spec,
        out_specs=spec,
    )
    made = jax.grad(lambda *x: jnp.sin(run(*x)).sum(), (0, 1, 2)) if grad else run
    on = jax.NamedSharding(case.mesh, spec)
    shapes = [like((1, tokens, heads, 16), jnp.float32, sharding=on) for heads in (H, N, N)]
    return jax.jit(made).lower(*shapes).compile()


def collectives():
    """A ring permutes and gathers nothing, heads are exchanged, a window sends what it needs."""
    kinds = lambda *of: {kind for _, kind in SENDS.findall(compiled(*of).as_text())}
    for grad in (False, True):
        assert kinds("ring", "causal", grad) == {"collective-permute"}
        assert kinds("heads", "causal", grad) == {"all-to-all"}
    assert kinds("product", "causal") == {"collective-permute", "all-to-all"}
    few = compiled("ring", "window")  # of 5 and 2 tokens, where a device has 64
    assert len(SENDS.findall(few.as_text())) == 4  # k and v from before, and from behind


BYTES = {"f32": 4, "bf16": 2, "f64": 8}
SHAPE = re.compile(r"(f32|bf16|f64)\[([0-9,]*)\]")


def wire(program, groups):
    """Bytes that a device sends: of each collective, as often as the loop that it is in goes.

    groups: devices that exchange; of an all-to-all a device keeps its own part.
    """
    text, total = program.as_text(), 0
    bodies = re.findall(r'body=%?([\w.\-]+).*?known_trip_count":\{"n":"(\d+)"', text)
    trips = {body: int(count) for body, count in bodies}
    for block in re.split(r"\n(?=%|ENTRY)", text):
        name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", block)
        times = trips.get(name.group(1), 1) if name else 1
        for shapes, kind in SENDS.findall(block):
            each = [
                (BYTES[d], [int(x) for x in n.split(",") if x]) for d, n in SHAPE.findall(shapes)
            ]
            size = sum(width * int(np.prod(n)) for width, n in each)
            total += times * (size * (groups - 1) // groups if kind == "all-to-all" else size)
    return total


def bytes_sent():
    """As `explain` says, and that is each way's least: within a twentieth."""
    like = lambda heads: jax.ShapeDtypeStruct((1, 512, heads, 16), jnp.float32)
    arrays = like(H), like(N), like(N)
    for way, groups in (("ring", 1), ("heads", 4), ("product", 2), ("zigzag", 1)):
        case = Case(way)
        told = sharded.explain(*arrays, case.way, dict(case.mesh.shape), mask=ja.Causal())
        sent = wire(compiled(way, "causal"), groups)
        assert told.forward_bytes <= sent <= 1.05 * told.forward_bytes, (way, sent, told)
        sent = wire(compiled(way, "causal", True), groups)
        # XLA for CPUs looks through the barrier, and sends once what both passes need.
        least = told.gradient_bytes - told.forward_bytes
        assert least <= sent <= 1.05 * told.gradient_bytes, (way, sent, told)


def flops():
    """As `explain` says, of a device; XLA counts the branch that makes rows again, where there is a
    NaN, as well. Over 4: the steps of a longer ring are a loop, of which it counts one."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    q, k = (jax.ShapeDtypeStruct((1, 256, heads, 256), jnp.float32) for heads in (H, N))
    for way in (ring(), sharded.AllToAll("x")):
        told = sharded.explain(q, k, k, way, dict(mesh.shape)).flops
        local, spec = partial(sharded.attention, way=way), P(None, "x")
        run = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)
        found: Any = jax.jit(run).lower(q, k, k).compile().cost_analysis()
        assert told is not None
        assert set(told) == {told[0]}
        assert told[0] <= found["flops"] <= 1.6 * told[0], (way, found["flops"], told)


def memory():
    """Of one device, with the same tokens on 2 and on 8: a quarter, but for what a tile takes."""

    def of(devices, grad, tokens=131072):
        mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,))
        spec, like = P(None, "x"), jax.ShapeDtypeStruct
        run = jax.shard_map(
            lambda q, k, v: sharded.attention(q, k, v, ring(), mask=ja.Causal()),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
        )
        made = jax.grad(lambda *x: jnp.sin(run(*x)).sum(), (0, 1, 2)) if grad else run
        on = jax.NamedSharding(mesh, spec)
        x = like((1, tokens, 1, 64), jnp.float32, sharding=on)
        found: Any = jax.jit(made).lower(x, x, x).compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    for grad in (False, True):
        assert of(8, grad) < 0.45 * of(2, grad), (of(2, grad), of(8, grad))


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
            text: Any = jax.jit(ja.attention).lower(*on).compile().as_text()
            assert "all-gather" not in {kind for _, kind in SENDS.findall(text)}
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
    text: Any = jax.jit(run).lower(*args, lengths).compile().as_text()
    assert {kind for _, kind in SENDS.findall(text)} == set()  # sums over devices alone


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
        text: Any = shared.lower(*few, empty, jnp.ones(B, int)).compile()
        assert not {kind for _, kind in SENDS.findall(text.as_text())}
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
    text = alone.lower(Q[:, :7], K[:, :7], V[:, :7], empty).compile()
    assert "all-" not in text.as_text()


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


def run(text):
    """A case, as `name:argument,argument`."""
    print(text, flush=True)
    name, _, rest = text.partition(":")
    args = [x.split("+") if "+" in x else x for x in rest.split(",")] if rest else []
    globals()[name](*args)


USUAL = [
    "results:ring,causal",
    "results:zigzag,segments",
    "results:product,sinks",
    "results:heads,dropout",
    "seen:ring,causal,entropy+map+received_max+top+distance+fold_keys",
    "slopes_of_seen:ring,causal,received+row_max",
    "collectives",
    "typed:heads",
    "module",
    "bytes_sent",
    "flops",
    "decoding",
    "caches",
    "inside:ring,Reference",
    "benchmark:forward",
    "pages",
    "errors",
]
NAMES = [f"results:{way},{rule}" for way in WAYS for rule in RULES]
NAMES += [f"second:{way},{rule}" for way, rule in (("ring", "causal"), ("zigzag", "segments"))]
NAMES += [f"seen:{way},{rule}" for way in WAYS for rule in ("causal", "segments", "sinks")]
NAMES += [
    "arrays:auto,ring,product",
    "arrays:explicit,ring,product",
    "typed:ring,split,product",
    "benchmark:gradient,more,long",
    "inside:ring,Blockwise",
    "inside:product_zigzag,Reference,Blockwise",
    "inside:heads,Reference,Blockwise",
    "mapped:ring",
    "mapped:heads",
    "memory",
    "slopes_of_seen:ring,causal,entropy+map+top",
]
NAMES += ["slopes_of_seen:zigzag,causal,map_peak+received_max"]

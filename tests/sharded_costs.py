"""What the programs of 8 devices send, compute and hold, and what `explain` says of that."""

# pyright: reportArgumentType=false

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from sharded_setup import REST, RULES, SENDS, Case, H, N, P, ring, sent

import jaxattn as ja
from benchmarks import sharded as cost
from benchmarks.run import measure_all
from benchmarks.timing import Budget
from jaxattn import sharded


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
    kinds = lambda *of: sent(compiled(*of))
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
    blocks = {}
    for block in re.split(r"\n(?=%|ENTRY)", text):
        name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", block)
        blocks[name.group(1) if name else ""] = block
    trips = dict.fromkeys(blocks, 1)
    for name, block in reversed(blocks.items()):  # a computation is before those that call it
        loops = re.findall(r'body=%?([\w.\-]+).*?known_trip_count":\{"n":"(\d+)"', block)
        trips |= {body: int(count) * trips[name] for body, count in loops}
    for name, block in blocks.items():
        times = trips[name]
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
    for way, groups in (("ring", 1), ("heads", 4), ("product", 2), ("pieces", 1)):
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


def sixth():
    """Of 16,384 tokens and 8 heads a device of 8 takes a sixth of what one device takes in all."""
    like = jax.ShapeDtypeStruct((1, 16384, 8, 64), jnp.float32)
    mesh, spec = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)), P(None, "x")
    shape = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=jax.NamedSharding(mesh, spec))

    def held(f, args):
        found: Any = jax.jit(f).lower(*args).compile().memory_analysis()
        sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
        return sum(sizes)

    one = partial(ja.attention, mask=ja.Causal())
    for way in (ring(), ring(sharded.ZIGZAG)):
        shared = partial(sharded.attention, way=way, mask=ja.Causal())
        for change, count in ((lambda f: f, 3), (cost.gradient, 4)):
            part, whole = held(change(shared), [shape] * count), held(change(one), [like] * count)
            assert part <= whole / 6, (way, count, part, whole)


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

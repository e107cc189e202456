"""`python -m benchmarks.sharded`: one sequence over 8 devices, which are virtual, of a CPU.

Attention to one sequence, causal, float32, forward and gradient: on one device, and shared out by
each way of `jaxattn.sharded`; beside a plain ring, which is written out in plain_ring.py. Results
are compared before anything is timed, and contenders take turns. Then what masks and observations
change that a plain ring does not have; and a long sequence, its gradient and a map of it.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import le
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxattn as ja
from benchmarks import machine, plain_ring, run, tables
from benchmarks.flax_models import Task, like, ready
from benchmarks.gate import Finding
from benchmarks.results import MIB, Results, parser
from benchmarks.timing import Budget, Built, build
from jaxattn import observe, sharded

DEVICES, TOKENS, HEADS, FEATURES, LONG = 8, 16384, 8, 64, 131072
ZIGZAG, CONTIGUOUS, ULYSSES = "Ring, zigzag", "Ring, contiguous", "AllToAll"
ONE, PLAIN = "one device", "a plain ring"
WAYS: dict[str, sharded.Way] = {
    ZIGZAG: sharded.Ring("x", sharded.ZIGZAG),
    CONTIGUOUS: sharded.Ring("x"),
    ULYSSES: sharded.AllToAll("x"),
}
Arrays = tuple[jax.Array, ...]


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ("x",))


def on_mesh(x: jax.Array, order: sharded.Order) -> jax.Array:
    """[b t h d], in this order of tokens over the devices."""
    return jax.device_put(order.put(x, DEVICES), jax.NamedSharding(mesh(), jax.P(None, "x")))


def order_of(way: sharded.Way) -> sharded.Order:
    return getattr(way, "order", sharded.CONTIGUOUS)


def arrays(tokens: int) -> Arrays:
    """q, k, v and a cotangent of out."""
    random = np.random.default_rng(0)
    shape = 4, 1, tokens, HEADS, FEATURES
    return tuple(jnp.asarray(random.standard_normal(shape), jnp.float32))


def gradient(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda q, k, v, g: jax.vjp(f, q, k, v)[1](g)


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A plain ring of whole arrays."""
    f, spec = partial(plain_ring.attention, axis="x"), jax.P(None, "x")
    return jax.shard_map(f, mesh=mesh(), in_specs=(spec,) * 3, out_specs=spec)(q, k, v)


def beside(given: Arrays, change: Callable[..., Any]) -> Task:
    """Every way, one device and the plain ring. change: attention to what is measured of it."""
    whole = build(change(partial(ja.attention, mask=ja.Causal())), *given)
    right = jax.tree.map(np.asarray, whole.run())
    found: Task = ready({ONE: whole}, like(right))
    functions: dict[str, tuple[Callable[..., jax.Array], sharded.Order]] = {
        name: (partial(sharded.attention, way=way, mask=ja.Causal()), order_of(way))
        for name, way in WAYS.items()
    }
    functions[PLAIN] = plain, sharded.CONTIGUOUS
    for name, (f, order) in functions.items():
        here = [on_mesh(x, order) for x in given]
        back = partial(jax.tree.map, lambda x, order=order: np.asarray(order.back(x, DEVICES)))
        found |= ready({name: build(change(f), *here)}, like(right, back))
    return found


def more(given: Arrays) -> Task:
    """What a plain ring does not have, in zigzag order."""
    way = WAYS[ZIGZAG]
    q, k, v = (on_mesh(x, order_of(way)) for x in given)
    ids = jnp.arange(given[0].shape[1]) // (given[0].shape[1] // 16)
    ids = order_of(way).put(ids, DEVICES, -1)
    window = ja.Window(left=given[0].shape[1] // 16 - 1)
    wanted = {"map": observe.Map(128), "entropy": observe.Entropy()}
    options: dict[str, dict[str, Any]] = {
        ZIGZAG: {"mask": ja.Causal()},
        "16 documents": {"mask": ja.Causal() & ja.Segments(ids)},
        "a window of a sixteenth": {"mask": window},
        "a map and the entropy": {"mask": ja.Causal(), "observe": wanted},
    }
    of_device = {
        name: build(partial(sharded.attend, way=way, **its), q, k, v)
        for name, its in options.items()
    }
    found: Task = {}
    for name, built in of_device.items():
        its = dict(options[name])
        if "16" in name:
            its["mask"] = ja.Causal() & ja.Segments(order_of(way).back(ids, DEVICES, -1))
        right = jax.tree.map(np.asarray, jax.jit(partial(ja.attend, **its))(*given))
        found |= ready({name: built}, like(right, _in_sequence))
    return found


def _in_sequence(got: ja.Attended) -> ja.Attended:
    """Results in zigzag order as those of one device."""
    back = lambda x: sharded.ZIGZAG.back(x, DEVICES, 1)
    shown = {name: x if name == "map" else back(x) for name, x in got.observed.items()}
    return jax.tree.map(np.asarray, ja.Attended(back(got.out), back(got.lse), shown))


def long(tokens: int) -> Built:
    """A gradient and a map, as the page of `jaxattn.sharded` has them."""
    way = WAYS[ZIGZAG]
    keys = jax.random.split(jax.random.key(0), 3)
    given = [jax.random.normal(key, (1, tokens, 1, 16)) for key in keys]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        wanted = {"map": observe.Map(64)}
        seen = sharded.attend(q, k, v, way, mask=ja.Causal(), observe=wanted)
        return jnp.square(seen.out).mean(), seen.observed["map"]

    step = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    return build(step, *(on_mesh(x, order_of(way)) for x in given))


def rows_add_up(built: Built, got: Any) -> list[Finding]:
    """Each row of a map of causal weights has the weight of its queries."""
    (_, picture), _ = got
    off = float(np.abs(np.asarray(picture).sum(-1) - 1).max())
    return [Finding("rows", {"off": (off, 0, 1e-3)})]


def lines(results: Results) -> list[tables.Line]:
    """The targets, and whether they are met."""
    data, found = results.data, {}
    for name in ("forward", "gradient"):
        for who in (ZIGZAG, CONTIGUOUS):
            over = results.ratio(name, who, ONE)
            found[f"{name}: {who}: at most 1.35 of the time of one device"] = over, 1.35
            found[f"{name}: {who}: no slower than a plain ring"] = (
                results.ratio(name, who, PLAIN),
                1,
            )
    made = [
        tables.Line(text, tables.times(x), x is not None and le(x, limit))
        for text, (x, limit) in found.items()
    ]
    for name in ("forward", "gradient"):
        for who in (ZIGZAG, CONTIGUOUS):
            share = data["bytes"][name][who] / data["bytes"][name][ONE]
            text = f"{name}: {who}: at most 1/6 of the memory of one device"
            made.append(tables.Line(text, f"1/{1 / share:.1f}", share <= 1 / 6))
    its = results.temp_bytes("long", ZIGZAG) or 0
    text = f"{data['long']:,} tokens: less memory than the scores of one shard"
    made.append(tables.Line(text, f"{its / MIB:,.0f} MiB", its < scores_of_a_shard(data)))
    return made


def scores_of_a_shard(data: Mapping[str, Any]) -> int:
    """Bytes of the logits of a device's queries and its own keys."""
    return 4 * (data["long"] // DEVICES) ** 2


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name."""
    results = Results(data)
    rows = [(work["name"], who) for work in results.works[:2] for who in work["contenders"]]
    columns: tables.Columns = {
        "": lambda row: row[0],
        "by": lambda row: row[1],
        "ms": lambda row: tables.milliseconds(results.seconds(*row)),
        "over one device": lambda row: tables.times(results.ratio(row[0], row[1], ONE)),
        "temporary MiB": lambda row: tables.mebibytes(results.temp_bytes(*row)),
        "in all, MiB": lambda row: tables.mebibytes(data["bytes"][row[0]][row[1]]),
    }
    options = list(results.works[2]["contenders"])
    of_option: tables.Columns = {
        "Ring, zigzag, with": lambda who: "causal" if who == ZIGZAG else who,
        "ms": lambda who: tables.milliseconds(results.seconds("more", who)),
        "of causal": lambda who: tables.times(results.ratio("more", who, ZIGZAG)),
    }
    seconds = results.seconds("long", ZIGZAG) or 0
    parts = [
        "# One sequence over many devices",
        machine.about_times(data),
        f"{DEVICES} virtual devices of that CPU. {data['tokens']:,} tokens, {HEADS} heads of "
        f"{FEATURES} features, causal, float32. Memory is that of each device, as compiled. A "
        "plain ring: benchmarks/plain_ring.py.",
        tables.lines_table(lines(results), "Target", "Found", "Met", left=1),
        tables.table(rows, columns, left=2),
        "Forward passes with what a plain ring does not have:",
        tables.table(options, of_option, left=1),
        f"A gradient with a map of 64 × 64 cells, {data['long']:,} tokens, a head of 16 features, "
        f"zigzag: {seconds:.0f} s, {(results.temp_bytes('long', ZIGZAG) or 0) / MIB:.0f} MiB of "
        f"temporary memory for each device. The scores of one device's queries and its own keys "
        f"would take {scores_of_a_shard(data) / MIB:,.0f} MiB.",
    ]
    return {"sharded.md": ("\n\n".join(parts) + "\n").encode()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.sharded", __doc__, seconds=5.0)
    options.add_argument("--tokens", type=int, default=TOKENS)
    options.add_argument("--long", type=int, default=LONG)
    chosen = options.parse_args(given)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    data: dict[str, Any] = {
        **machine.header("benchmarks.sharded", given),
        "tokens": chosen.tokens,
        "long": chosen.long,
        "bytes": {},
        "workloads": [],
    }
    *qkv, cotangent = arrays(chosen.tokens)
    tasks: dict[str, Callable[[], Task]] = {
        "forward": lambda: beside(tuple(qkv), lambda f: f),
        "gradient": lambda: beside((*qkv, cotangent), gradient),
        "more": lambda: more(tuple(qkv)),
        "long": lambda: ready({ZIGZAG: long(chosen.long)}, rows_add_up),
    }
    for name, make in tqdm(tasks.items(), unit="task"):
        task = make()
        data["bytes"][name] = {who: its().needs_bytes for who, (its, _) in task.items()}
        budget = Budget(chosen.seconds, fewest=1 if name == "long" else 3)
        data["workloads"].append({"name": name, "contenders": run.measure_all(task, budget)})
    return tables.conclude(data, chosen.out / "sharded.json", lines(Results(data)))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.flax_models`: what swapping the attention of a Flax model changes.

A transformer of 12 layers, 12 heads and a width of 768, of Flax's own modules, causal, float32,
batch 1; only `attention_fn` differs. Forward, a training step (gradients and Adam), forward with
every head of every layer watched, and one decoded token against a cache of 8,192. Outputs are
compared before anything is timed, and contenders take turns.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import jaxattn as ja
from benchmarks import machine, run, tables
from benchmarks.gate import Finding
from benchmarks.results import Results, parser
from benchmarks.timing import Budget, Built, build
from jaxattn import cache as kv
from jaxattn import nn
from jaxattn import observe as see

HEADS, WIDTH = 12, 768  # of every attention of the model
LAYERS, TOKENS, CACHED, STEPS = 12, 2048, 8192, 32
OURS, FLAX, UNWATCHED = "jaxattn", "Flax", "jaxattn, unwatched"
Task = dict[str, tuple[Built, run.Check]]
"""Contenders, and what decides whether each may be timed."""


class Block(nnx.Module):
    """A pre-normalised block, as in GPT-2."""

    def __init__(self, fn: Callable[..., Any], rngs: nnx.Rngs) -> None:
        norm = lambda: nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, attention_fn=fn, decode=False, rngs=rngs
        )
        self.up, self.down = (
            nnx.Linear(a * WIDTH, b * WIDTH, rngs=rngs) for a, b in ((1, 4), (4, 1))
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), is_causal=True)
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))


class Model(nnx.Module):
    def __init__(self, fn: Callable[..., Any], layers: int, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Block(fn, rngs) for _ in range(layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


def swapped(
    fns: Mapping[str, Callable[..., Any]], right: str, layers: int, tokens: int
) -> dict[str, Task]:
    """A model with each of these as its attention. right: the one whose results count.

    All have the same parameters.
    """
    x, forward, step = embeddings(tokens), {}, {}
    for name, fn in fns.items():
        graph, state = nnx.split(Model(fn, layers, nnx.Rngs(0)))
        zeros = jax.tree.map(jnp.zeros_like, state)
        forward[name] = build(lambda state, x, graph=graph: nnx.merge(graph, state)(x), state, x)
        step[name] = build(partial(_step, graph), state, zeros, zeros, x)
    gradients = lambda got: got[1]
    checks = like(forward[right].run()), like(gradients(step[right].run()), gradients)
    tasks = zip(("forward", "training step"), (forward, step), checks, strict=True)
    return {task: {name: (x, check) for name, x in them.items()} for task, them, check in tasks}


def embeddings(tokens: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((1, tokens, WIDTH)), jnp.float32)


def models(layers: int, tokens: int) -> dict[str, Task]:
    """Who is measured for each task."""
    tasks = swapped(
        {OURS: nn.attention_fn(), FLAX: nnx.dot_product_attention}, FLAX, layers, tokens
    )
    x, unwatched = embeddings(tokens), tasks["forward"][OURS]
    wanted = {
        "map": see.Map(256),
        "received": see.Received(),
        "entropy": see.Entropy(),
        "max": see.MaxLogit(),
    }
    watch = lambda model, x: nn.watch(model, wanted)(x)
    graph, state = nnx.split(Model(nn.attention_fn(), layers, nnx.Rngs(0)))
    watched = build(lambda state, x: watch(nnx.merge(graph, state), x), state, x)
    textbook = Model(nn.attention_fn(backend=ja.Reference()), layers, nnx.Rngs(0))
    seen = watched, like(nnx.jit(watch)(textbook, x))
    return tasks | {"watched": {UNWATCHED: unwatched, OURS: seen}}


def _step(graph: Any, state: Any, first: Any, second: Any, x: jax.Array) -> tuple[Any, Any, Any]:
    """Gradients, and Adam without its bias correction."""
    grads = jax.grad(lambda state: jnp.square(nnx.merge(graph, state)(x)).mean())(state)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    move = lambda p, m, v: p - 1e-4 * m / (jnp.sqrt(v) + 1e-8)
    return jax.tree.map(move, state, first, second), first, second


def decoders(cached: int) -> dict[str, Task]:
    """One token through one attention module, with as many in its cache as Flax's can hold; and in
    caches of several capacities, a quarter of that in each.

    Many steps in one program; both update their cache in place, and set it back for the next run.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, STEPS, WIDTH)), jnp.float32)
    past = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1, cached, HEADS, 64)), "f4")
    graph, params = nnx.split(nn.MultiHeadAttention(HEADS, WIDTH, rngs=nnx.Rngs(0)))

    def decode(params: Any, cache: kv.Cache, x: jax.Array) -> Any:
        def step(cache: kv.Cache, token: jax.Array) -> Any:
            out, cache = nnx.merge(graph, params).decode(token[None, None], cache)
            return cache, out[0, 0]

        after, out = jax.lax.scan(step, cache, x[0])
        return replace(after, length=after.length - STEPS), out

    def holding(count: int, capacity: int) -> Built:
        cache = kv.empty((1,), capacity, HEADS, 64)
        cache = kv.append(cache, past[0][:, :count], past[1][:, :count])
        return build(decode, params, cache, x, donated=1)

    part = cached // 4
    stock = _flax_decoder(past, x)
    right = like(stock.run())
    caches = {f"capacity {size:,}": holding(part, size) for size in (cached, 8 * cached)}
    of_part = like(next(iter(caches.values())).run())
    return {
        f"decoding, {cached:,} held": {
            OURS: (holding(cached - STEPS, cached), right),
            FLAX: (stock, right),
        },
        f"decoding, {part:,} held": {name: (built, of_part) for name, built in caches.items()},
    }


def _flax_decoder(past: jax.Array, x: jax.Array) -> Built:
    """Flax's module, its cache full but for STEPS tokens of `past` [2 1 s h d]."""
    stock = nnx.MultiHeadAttention(HEADS, WIDTH, decode=True, rngs=nnx.Rngs(0))
    stock.init_cache((1, past.shape[2], WIDTH))
    assert stock.cached_key is not None
    assert stock.cached_value is not None
    assert stock.cache_index is not None
    stock.cached_key[...], stock.cached_value[...] = past
    stock.cache_index[...] = jnp.asarray(past.shape[2] - STEPS, jnp.int32)
    graph, params, caches = nnx.split(stock, nnx.Param, ...)

    def decode(params: Any, caches: Any, x: jax.Array) -> Any:
        def step(caches: Any, token: jax.Array) -> Any:
            module = nnx.merge(graph, params, caches)
            out = module(token[None, None])
            return nnx.state(module, nnx.Not(nnx.Param)), out[0, 0]

        after, out = jax.lax.scan(step, caches, x[0])
        after["cache_index"].set_value(after["cache_index"].get_value() - STEPS)
        return after, out

    return build(decode, params, caches, x, donated=1)


def like(want: Any, of: Callable[[Any], Any] = lambda got: got) -> run.Check:
    """That trees of arrays differ by rounding only: array by array, but for what is next to 0."""
    sizes = [float(jnp.abs(y).max()) for y in jax.tree.leaves(want)]

    def check(built: Built, got: Any) -> list[Finding]:
        pairs = zip(jax.tree.leaves(of(got)), jax.tree.leaves(want), sizes, strict=True)
        off = [float(jnp.abs(x - y).max()) / (size + 1e-2 * max(sizes)) for x, y, size in pairs]
        return [Finding("result", {"off": (float(np.max(off)), 0, 1e-3)})]

    return check


FASTER = (("forward", 1.8, 5), ("training step", 1.8, 4))


def lines(results: Results) -> list[tables.Line]:
    """The targets, and whether they are met."""
    found = []
    for task, time, memory in FASTER:
        speed = results.ratio(task, FLAX, OURS)
        share = (results.temp_bytes(task, FLAX) or 0) / (results.temp_bytes(task, OURS) or 1)
        what = f"{task}: Flax takes at least {memory} times the temporary memory"
        found.append((f"{task}: Flax takes at least {time} times as long", speed, time, True))
        found.append((what, share, memory, True))
    whole, part = (x["name"] for x in results.works if x["name"].startswith("decoding"))
    small, large = (x for x in results.contenders if x.startswith("capacity"))
    watched = "watched: at most 1.25 of unwatched"
    found.append((watched, results.ratio("watched", OURS, UNWATCHED), 1.25, False))
    found.append((f"{whole}: no slower than Flax", results.ratio(whole, OURS, FLAX), 1, False))
    text = f"{part}: {large} as fast as {small}, to 10 %"
    found.append((text, results.ratio(part, large, small), 1.1, False))
    met = lambda x, limit, least: x is not None and (x >= limit if least else x <= limit)
    return [tables.Line(text, tables.times(x), met(x, *rest)) for text, x, *rest in found]


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name."""
    results = Results(data)
    sizes = f"{data['layers']} layers, {HEADS} heads, width {WIDTH}, {data['tokens']:,} tokens"
    rows = [(work, name) for work in results.works for name in work["contenders"]]
    of = lambda f: lambda row: f(row[0]["name"], row[1])
    time = of(results.seconds)
    columns: tables.Columns = {
        "Task": lambda row: row[0]["name"],
        "": lambda row: row[1],
        "ms": lambda row: tables.milliseconds(time(row) and time(row) / row[0]["steps"]),
        "temporary MiB": lambda row: tables.mebibytes(of(results.temp_bytes)(row)),
        "compile s": lambda row: f"{of(results.compile_seconds)(row) or 0:.1f}",
    }
    parts = [
        "# A Flax model with its attention swapped",
        machine.about_times(data),
        f"{sizes}, causal, float32, batch 1: blocks of `nnx.LayerNorm`, `nnx.MultiHeadAttention` "
        "and an MLP of 4 times the width. Watched: a map of 256 × 256 cells, attention received, "
        "entropy and largest logit of all heads. Decoding: one token through one attention module.",
        tables.lines_table(lines(results), "Target", "Found", "Met", left=1),
        tables.table(rows, columns, left=2),
    ]
    return {"flax-models.md": ("\n\n".join(parts) + "\n").encode()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.flax_models", __doc__, seconds=5.0)
    options.add_argument("--layers", type=int, default=LAYERS)
    options.add_argument("--tokens", type=int, default=TOKENS)
    options.add_argument("--cached", type=int, default=CACHED)
    chosen = options.parse_args(given)
    data: dict[str, Any] = {
        **machine.header("benchmarks.flax_models", given),
        "layers": chosen.layers,
        "tokens": chosen.tokens,
        "workloads": [],
    }
    makers = partial(models, chosen.layers, chosen.tokens), partial(decoders, chosen.cached)
    for make in tqdm(makers, unit="model"):
        for task, contenders in make().items():
            ready = {x: (lambda b=built: b, check) for x, (built, check) in contenders.items()}
            records = run.measure_all(ready, Budget(chosen.seconds, fewest=5))
            steps = STEPS if task.startswith("decoding") else 1
            data["workloads"].append({"name": task, "steps": steps, "contenders": records})
    return tables.conclude(data, chosen.out / "flax-models.json", lines(Results(data)))


if __name__ == "__main__":
    sys.exit(main())

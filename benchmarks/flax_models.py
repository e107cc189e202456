"""`python -m benchmarks.flax_models`: what swapping the attention of a Flax model changes.

A transformer of 12 layers, 12 heads and a width of 768, of Flax's own modules, causal, float32,
batch 1; only `attention_fn` differs. Forward, a training step (gradients and Adam), forward with
every head of every layer watched, and one decoded token against a cache of 8,192. Outputs are
compared before anything is timed, and contenders take turns.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import ge, le
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import jaxattn
from benchmarks import machine, observing, run, tables
from benchmarks.gate import Finding
from benchmarks.results import Results, parser
from benchmarks.timing import Budget, Built, build
from jaxattn import cache as kv
from jaxattn import nn

HEADS, WIDTH = 12, 768  # of every attention of the model
LAYERS, TOKENS, CACHED = 12, 2048, 8192
STEPS = 32  # tokens decoded in one program
OURS, FLAX, UNWATCHED = "jaxattn", "Flax", "jaxattn, unwatched"
Attention = Callable[..., Any]
Task = dict[str, tuple[Callable[[], Built], run.Check]]
"""Contenders, and what decides whether each may be timed, for `run.measure_all`."""


class Block(nnx.Module):
    """A pre-normalised block, as in GPT-2."""

    def __init__(self, fn: Attention, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, attention_fn=fn, decode=False, rngs=rngs
        )
        self.mlp = nnx.Sequential(
            nnx.LayerNorm(WIDTH, rngs=rngs),
            nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs),
            jax.nn.gelu,
            nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x), is_causal=True)
        return x + self.mlp(x)


def model(fn: Attention, layers: int) -> nnx.Sequential:
    """The same parameters for every attention."""
    rngs = nnx.Rngs(0)
    return nnx.Sequential(*(Block(fn, rngs) for _ in range(layers)))


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def ready(built: Mapping[str, Built], check: run.Check) -> Task:
    return {name: (lambda its=its: its, check) for name, its in built.items()}


def like(want: Any, of: Callable[[Any], Any] = lambda got: got) -> run.Check:
    """That trees of arrays differ by rounding only: array by array, but for what is next to 0."""
    sizes = [float(jnp.abs(y).max()) for y in jax.tree.leaves(want)]

    def check(built: Built, got: Any) -> list[Finding]:
        pairs = zip(jax.tree.leaves(of(got)), jax.tree.leaves(want), sizes, strict=True)
        off = [float(jnp.abs(x - y).max()) / (size + 1e-2 * max(sizes)) for x, y, size in pairs]
        return [Finding("result", {"off": (float(np.max(off)), 0, 1e-3)})]

    return check


def swapped(
    fns: Mapping[str, Attention], right: str, layers: int = LAYERS, tokens: int = TOKENS
) -> dict[str, Task]:
    """A model with each of these as its attention. right: the one whose results count."""
    x, forward, step = normal(1, tokens, WIDTH), {}, {}
    for name, fn in fns.items():
        graph, state = nnx.split(model(fn, layers))
        zeros = jax.tree.map(jnp.zeros_like, state)
        forward[name] = build(lambda state, x, graph=graph: nnx.merge(graph, state)(x), state, x)
        step[name] = build(partial(_step, graph), state, zeros, zeros, x)
    gradients = lambda got: got[1]
    return {
        "forward": ready(forward, like(forward[right].run())),
        "training step": ready(step, like(gradients(step[right].run()), gradients)),
    }


def _step(graph: Any, state: Any, first: Any, second: Any, x: jax.Array) -> tuple[Any, Any, Any]:
    """Gradients, and Adam without its bias correction."""
    grads = jax.grad(lambda state: jnp.square(nnx.merge(graph, state)(x)).mean())(state)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    move = lambda p, m, v: p - 1e-4 * m / (jnp.sqrt(v) + 1e-8)
    return jax.tree.map(move, state, first, second), first, second


def models(layers: int, tokens: int) -> dict[str, Task]:
    """Who is measured for each task."""
    fns = {OURS: nn.attention_fn(), FLAX: nnx.dot_product_attention}
    tasks = swapped(fns, FLAX, layers, tokens)
    wanted = observing.wanted(jaxattn.observe)[observing.SEEN]
    watch = lambda model, x: nn.watch(model, wanted)(x)
    x, (graph, state) = normal(1, tokens, WIDTH), nnx.split(model(fns[OURS], layers))
    watched = build(lambda state, x: watch(nnx.merge(graph, state), x), state, x)
    textbook = model(nn.attention_fn(backend=jaxattn.Reference()), layers)
    right = like(nnx.jit(watch)(textbook, x))
    return tasks | {"watched": {UNWATCHED: tasks["forward"][OURS], **ready({OURS: watched}, right)}}


def decoders(cached: int) -> dict[str, Task]:
    """One token through one attention module, with as many in its cache as Flax's can hold; and in
    caches of several capacities, a quarter of that in each."""
    x, past = normal(STEPS, 1, 1, WIDTH), normal(2, 1, cached, HEADS, WIDTH // HEADS)
    graph, params = nnx.split(nn.MultiHeadAttention(HEADS, WIDTH, rngs=nnx.Rngs(0)))
    ours = lambda params, cache, token: nnx.merge(graph, params).decode(token, cache)[::-1]

    def holding(count: int, capacity: int) -> Built:
        cache = kv.empty((1,), capacity, HEADS, WIDTH // HEADS)
        return _decoder(ours, params, kv.append(cache, *past[:, :, :count]), x)

    stock: Any = nnx.MultiHeadAttention(HEADS, WIDTH, decode=True, rngs=nnx.Rngs(0))
    stock.init_cache((1, cached, WIDTH))
    stock.cached_key[...], stock.cached_value[...] = past
    stock.cache_index[...] = jnp.asarray(cached - STEPS, jnp.int32)
    stock_graph, stock_params, stock_cache = nnx.split(stock, nnx.Param, ...)

    def flax(params: Any, cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        module = nnx.merge(stock_graph, params, cache)
        out = module(token)
        return nnx.state(module, nnx.Not(nnx.Param)), out

    theirs = _decoder(flax, stock_params, stock_cache, x)
    full = {OURS: holding(cached - STEPS, cached), FLAX: theirs}
    part, small = cached // 4, f"capacity {cached:,}"
    of_size = {small: holding(part, cached), f"capacity {8 * cached:,}": holding(part, 8 * cached)}
    return {
        f"decoding, {cached:,} held": ready(full, like(theirs.run())),
        f"decoding, {part:,} held": ready(of_size, like(of_size[small].run())),
    }


def _decoder(step: Callable[..., Any], params: Any, cache: Any, x: jax.Array) -> Built:
    """Many steps in one program, which updates its cache in place and sets its length back."""

    def decode(params: Any, cache: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        after, out = jax.lax.scan(partial(step, params), cache, x)
        return jax.tree.map(lambda a, b: b if b.dtype == jnp.int32 else a, after, cache), out

    return build(decode, params, cache, x, donated=1)


def lines(results: Results) -> list[tables.Line]:
    """The targets, and whether they are met."""
    found, ratio, temp = {}, results.ratio, results.temp_bytes
    for task, time, memory in (("forward", 1.8, 5), ("training step", 1.8, 4)):
        share = (temp(task, FLAX) or 0) / (temp(task, OURS) or 1)
        what = f"{task}: Flax takes at least"
        found[f"{what} {time} times as long"] = ratio(task, FLAX, OURS), ge, time
        found[f"{what} {memory} times the temporary memory"] = share, ge, memory
    whole, part = (x["name"] for x in results.works if x["name"].startswith("decoding"))
    small, large = (x for x in results.contenders if x.startswith("capacity"))
    found["watched: at most 1.25 of unwatched"] = ratio("watched", OURS, UNWATCHED), le, 1.25
    found[f"{whole}: no slower than Flax"] = ratio(whole, OURS, FLAX), le, 1
    found[f"{part}: {large} as fast as {small}, to 10 %"] = ratio(part, large, small), le, 1.1
    met = lambda x, holds, limit: x is not None and holds(x, limit)
    return [tables.Line(text, tables.times(its[0]), met(*its)) for text, its in found.items()]


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name."""
    results = Results(data)
    rows = [
        (work["name"], who, work["steps"]) for work in results.works for who in work["contenders"]
    ]
    each = lambda task, who, steps: (x := results.seconds(task, who)) and x / steps
    columns: tables.Columns = {
        "Task": lambda row: row[0],
        "": lambda row: row[1],
        "ms": lambda row: tables.milliseconds(each(*row)),
        "temporary MiB": lambda row: tables.mebibytes(results.temp_bytes(*row[:2])),
        "compile s": lambda row: f"{results.compile_seconds(*row[:2]) or 0:.1f}",
    }
    parts = [
        "# A Flax model with its attention swapped",
        machine.about_times(data),
        f"{data['layers']} layers, {HEADS} heads, width {WIDTH}, {data['tokens']:,} tokens, "
        "causal, float32, batch 1: blocks of `nnx.LayerNorm`, `nnx.MultiHeadAttention` and an MLP "
        "of 4 times the width. Watched: a map of 256 × 256 cells, attention received, entropy and "
        "largest logit of all heads. Decoding: one token through one attention module.",
        tables.lines_table(lines(results), "Target", "Found", "Met", left=1),
        tables.table(rows, columns, left=2),
    ]
    return {"flax-models.md": ("\n\n".join(parts) + "\n").encode()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.flax_models", __doc__, seconds=5.0)
    for name, size in {"layers": LAYERS, "tokens": TOKENS, "cached": CACHED}.items():
        options.add_argument(f"--{name}", type=int, default=size)
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
            records = run.measure_all(contenders, Budget(chosen.seconds))
            steps = STEPS if task.startswith("decoding") else 1
            data["workloads"].append({"name": task, "steps": steps, "contenders": records})
    return tables.conclude(data, chosen.out / "flax-models.json", lines(Results(data)))


if __name__ == "__main__":
    sys.exit(main())

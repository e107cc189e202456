"""`python -m benchmarks.flax_models`: what swapping the attention of a Flax model changes.

A transformer of 12 layers, 12 heads and a width of 768, of Flax's own modules, causal, float32,
batch 1; only `attention_fn` differs. Forward, a training step (gradients and Adam), forward with
every head of every layer watched, and one decoded token against a cache of 8,192. Outputs are
compared before anything is timed, and contenders take turns.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import jaxattn as ja
from benchmarks import header, machine
from benchmarks.built import Built, build
from benchmarks.flax_models_report import FLAX, HEADS, OURS, UNWATCHED, WIDTH, markdown, targets
from benchmarks.results import FOLDER, save_report
from benchmarks.timing import Budget, measure
from jaxattn import cache as kv
from jaxattn import nn
from jaxattn import observe as see

LAYERS, TOKENS, CACHED = 12, 2048, 8192
STOCK = nnx.dot_product_attention


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


def models(layers: int, tokens: int) -> dict[str, dict[str, Built]]:
    """Who is measured for each task. All have the same parameters."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, tokens, WIDTH)), jnp.float32)
    wanted = {
        "map": see.Map(256),
        "received": see.Received(),
        "entropy": see.Entropy(),
        "max": see.MaxLogit(),
    }
    found: dict[str, dict[str, Built]] = {"forward": {}, "training step": {}, "watched": {}}
    for name, fn in ((OURS, nn.attention_fn()), (FLAX, STOCK)):
        graph, state = nnx.split(Model(fn, layers, nnx.Rngs(0)))
        forward = lambda state, x, graph=graph: nnx.merge(graph, state)(x)
        found["forward"][name] = build(forward, state, x)
        found["training step"][name] = build(partial(_step, graph), state, *_moments(state), x)
        if name == OURS:
            found["watched"][UNWATCHED] = found["forward"][name]
            watched = lambda state, x, graph=graph: nn.watch(nnx.merge(graph, state), wanted)(x)
            found["watched"][name] = build(watched, state, x)
    _same(*(found["forward"][name].run() for name in (OURS, FLAX)))
    _same(*(found["training step"][name].run()[1] for name in (OURS, FLAX)))  # of the gradients
    textbook = Model(nn.attention_fn(backend=ja.Reference()), layers, nnx.Rngs(0))
    _same(found["watched"][OURS].run(), nnx.jit(lambda m, x: nn.watch(m, wanted)(x))(textbook, x))
    return found


def _moments(state: Any) -> tuple[Any, Any]:
    zeros = jax.tree.map(jnp.zeros_like, state)
    return zeros, zeros


def _step(graph: Any, state: Any, first: Any, second: Any, x: jax.Array) -> tuple[Any, Any, Any]:
    """Gradients, and Adam without its bias correction."""
    grads = jax.grad(lambda state: jnp.square(nnx.merge(graph, state)(x)).mean())(state)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    move = lambda p, m, v: p - 1e-4 * m / (jnp.sqrt(v) + 1e-8)
    return jax.tree.map(move, state, first, second), first, second


def decoders(cached: int) -> dict[str, dict[str, Built]]:
    """One token through one attention module, with as many in its cache as Flax's can hold; and in
    caches of several capacities, a quarter of that in each.

    Many steps in one program; both update their cache in place, and set it back for the next run.
    """
    steps = 32
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, steps, WIDTH)), jnp.float32)
    past = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1, cached, HEADS, 64)), "f4")
    stock = nnx.MultiHeadAttention(HEADS, WIDTH, decode=True, rngs=nnx.Rngs(0))
    ours = nn.MultiHeadAttention(HEADS, WIDTH, rngs=nnx.Rngs(0))
    stock.init_cache((1, cached, WIDTH))
    held = cached - steps
    assert stock.cached_key is not None
    assert stock.cached_value is not None
    assert stock.cache_index is not None
    stock.cached_key[...], stock.cached_value[...] = past
    stock.cache_index[...] = jnp.asarray(held, jnp.int32)
    graph, params, caches = nnx.split(stock, nnx.Param, ...)
    own_graph, own_params = nnx.split(ours)

    def theirs(params: Any, caches: Any, x: jax.Array) -> Any:
        def step(caches: Any, token: jax.Array) -> Any:
            module = nnx.merge(graph, params, caches)
            out = module(token[None, None])
            return nnx.state(module, nnx.Not(nnx.Param)), out[0, 0]

        after, out = jax.lax.scan(step, caches, x[0])
        back = after["cache_index"].get_value() - steps
        after["cache_index"].set_value(back)
        return after, out

    def mine(params: Any, cache: kv.Cache, x: jax.Array) -> Any:
        def step(cache: kv.Cache, token: jax.Array) -> Any:
            out, cache = nnx.merge(own_graph, params).decode(token[None, None], cache)
            return cache, out[0, 0]

        after, out = jax.lax.scan(step, cache, x[0])
        return replace(after, length=after.length - steps), out

    def holding(count: int, capacity: int) -> kv.Cache:
        cache = kv.empty((1,), capacity, HEADS, 64)
        return kv.append(cache, past[0][:, :count], past[1][:, :count])

    name = f"decoding, {cached:,} held"
    found = {
        name: {
            OURS: build(mine, own_params, holding(held, cached), x, donated=1),
            FLAX: build(theirs, params, caches, x, donated=1),
        }
    }
    _same(found[name][OURS].run(), found[name][FLAX].run())
    part = cached // 4
    found[f"decoding, {part:,} held"] = {
        f"capacity {capacity:,}": build(mine, own_params, holding(part, capacity), x, donated=1)
        for capacity in (cached, 8 * cached)
    }
    _same(*(built.run() for built in found[f"decoding, {part:,} held"].values()))
    return found


def _same(a: Any, b: Any) -> None:
    """That trees of arrays differ by rounding only: array by array, but for what is next to 0."""
    sizes = [float(jnp.abs(y).max()) for y in jax.tree.leaves(b)]
    for x, y, size in zip(jax.tree.leaves(a), jax.tree.leaves(b), sizes, strict=True):
        off = float(jnp.abs(x - y).max())
        if not off <= 1e-3 * size + 1e-5 * max(sizes):
            raise AssertionError(f"{off} off where {size} is the largest: nothing is timed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flax_models", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--cached", type=int, default=CACHED)
    parser.add_argument("--seconds", type=float, default=5.0, help="for the rounds of a task")
    chosen = parser.parse_args(given)
    load = machine.load_average()
    rows = []
    with tqdm(total=5, unit="task") as bar:
        for make in (
            partial(models, chosen.layers, chosen.tokens),
            partial(decoders, chosen.cached),
        ):
            bar.set_description("compiling and comparing")
            for task, built in make().items():
                bar.set_description(task)
                samples = measure(built, Budget(chosen.seconds, fewest=5))
                contenders = {
                    name: {
                        "seconds": its.seconds,
                        "calls": its.calls,
                        "temp_bytes": built[name].temp_bytes(),
                        "compile_seconds": built[name].compile_seconds,
                    }
                    for name, its in samples.items()
                }
                steps = 32 if task.startswith("decoding") else 1
                rows.append({"task": task, "steps": steps, "contenders": contenders})
                bar.update()
    data = {
        **header.of_results("benchmarks.flax_models", given),
        "load_before": load,
        "layers": chosen.layers,
        "tokens": chosen.tokens,
        "targets": targets(rows),
        "rows": rows,
    }
    save_report(data, markdown, chosen.out, "flax-models")
    for text, found, met in data["targets"]:
        print(f"{'met' if met else 'MISSED'}: {text}: {found}")
    return 0 if all(met for _, _, met in data["targets"]) else 1


if __name__ == "__main__":
    sys.exit(main())

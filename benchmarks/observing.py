"""`python -m benchmarks.observing`: what looking at the weights costs, against materialising them.

The statistics: a map of 256 × 256 cells (the share of weights in each), the weight that every key
receives, the entropy of every query, and the largest logit of every head; with "top 8" the eight
largest weights of every query as well. Peers do what is done today: they hold the whole matrix of
weights and reduce it. Flax sows weights, not logits, so there is no largest logit with it. All are
checked against float64 before they are timed, and take turns.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
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
from benchmarks.observing_report import (
    ENTROPY,
    FOLD,
    GRADIENT,
    PLAIN,
    SEEN,
    THROUGH,
    TOP,
    markdown,
    plot,
    targets,
)
from benchmarks.plots import figure_bytes
from benchmarks.results import FOLDER, save_report, write_atomically
from benchmarks.timing import Budget, measure
from jaxattn import observe as see

HEADS, FEATURES, CELLS, COUNT = 12, 64, 256, 8
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LARGEST_MATRIX = 2**30  # bytes; beyond it a round of the peers takes minutes, then does not fit
Arrays = tuple[Any, Any, Any]
FOUR: Mapping[str, see.Observation] = {
    "map": see.Map(CELLS),
    "received": see.Received(),
    "entropy": see.Entropy(),
    "max": see.MaxLogit(),
}


def entropy_of(seen: see.Seen) -> jax.Array:
    """What a user would write for `Entropy`."""
    surprise = seen.lse[:, None] - seen.logits
    return jnp.where(seen.logits > -jnp.inf, seen.weights * surprise, 0).sum(axis=1)


OURS: Mapping[str, Mapping[str, see.Observation]] = {
    PLAIN: {},
    SEEN: FOUR,
    TOP: {**FOUR, "top": see.TopKeys(COUNT)},
    ENTROPY: {"entropy": see.Entropy()},
    FOLD: {"entropy": see.Fold(lambda: 0.0, entropy_of, per=see.QUERY)},
}


def jaxattn(wanted: Mapping[str, see.Observation], causal: bool, q, k, v) -> dict[str, Any]:
    mask = ja.Causal() if causal else ja.EVERYTHING
    got = ja.attend(q, k, v, mask=mask, observe=wanted)
    shown = {**got.observed, "out": got.out}
    if "received" in shown:
        shown["received"] = shown["received"].mass
    if "top" in shown:
        shown["top"] = shown["top"].keys
    return shown


def jaxattn_gradient(through: bool, causal: bool, q, k, v) -> dict[str, Any]:
    def loss(q, k, v):
        shown = jaxattn(OURS[ENTROPY] if through else {}, causal, q, k, v)
        return sum(x.sum() for x in shown.values())

    return dict(zip(("dq", "dk", "dv"), jax.grad(loss, (0, 1, 2))(q, k, v), strict=True))


def jax_softmax(top: bool, causal: bool, q, k, v) -> dict[str, Any]:
    """Weights by `jax.nn.softmax`, and what follows from them and the logits."""
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / FEATURES**0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    weights = jax.nn.softmax(logits)
    shown = _of_weights(weights, top)
    return {
        **shown,
        "max": logits.max(axis=(0, 2, 3)),
        "out": jnp.einsum("bhts,bshd->bthd", weights, v),
    }


def flax_sown(top: bool, causal: bool, q, k, v) -> dict[str, Any]:
    """Weights as `nnx.dot_product_attention` sows them into a module."""
    mask = jnp.tril(jnp.ones((1, 1, q.shape[1], q.shape[1]), bool)) if causal else None
    attend = lambda module, *x: nnx.dot_product_attention(*x, mask=mask, module=module)
    sown: Any
    out, sown = nnx.capture(attend, nnx.Intermediate)(nnx.Module(), q, k, v)
    (weights,) = sown["attention_weights"].get_value()
    return {**_of_weights(weights, top), "out": out}


def _of_weights(weights: jax.Array, top: bool) -> dict[str, jax.Array]:
    """weights: [b h t s]. Axes as jaxattn has them."""
    b, h, t, s = weights.shape
    down, across = max(t // CELLS, 1), max(s // CELLS, 1)
    cells = weights.reshape(b, h, t // down, down, s // across, across)
    shown = {
        "map": cells.sum(axis=(3, 5)) / down,
        "received": weights.sum(axis=2).swapaxes(1, 2),
        "entropy": -jax.scipy.special.xlogy(weights, weights).sum(axis=3).swapaxes(1, 2),
    }
    if top:
        shown["top"] = jax.lax.top_k(weights, COUNT)[1].swapaxes(1, 2)
    return shown


def contenders(causal: bool, t: int, gradients: bool) -> dict[str, Callable[..., Built]]:
    """Who is measured at a length: peers up to a matrix of LARGEST_MATRIX."""
    jit = lambda f, *options: partial(build, partial(f, *options, causal))
    found = {name: jit(jaxattn, wanted) for name, wanted in OURS.items()}
    if gradients:
        found |= {GRADIENT: jit(jaxattn_gradient, False), THROUGH: jit(jaxattn_gradient, True)}
    if 4 * HEADS * t * t <= LARGEST_MATRIX:
        found |= {
            "jax.nn.softmax": jit(jax_softmax, False),
            "jax.nn.softmax, top 8": jit(jax_softmax, True),
            "Flax sow_weights": jit(flax_sown, False),
        }
        if eager := _torch():
            found["torch eager"] = partial(eager, causal)
    return found


def _torch() -> Callable[..., Built] | None:
    """None where torch is not installed."""
    try:
        from benchmarks.torch_eager import build
    except ImportError:
        return None
    return build


def inputs(t: int) -> Arrays:
    random = np.random.default_rng(t)
    q, k, v = random.standard_normal((3, 1, t, HEADS, FEATURES), dtype=np.float32)
    return jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)


def truth(arrays: Arrays, causal: bool, head: int) -> dict[str, np.ndarray]:
    """Everything that is shown of one head, in float64, some queries at a time."""
    q, k, v = (np.asarray(x[0, :, head], np.float64) for x in arrays)
    t = len(q)
    down = max(t // CELLS, 1)
    received, largest = np.zeros(t), -np.inf
    parts: dict[str, list[np.ndarray]] = {"map": [], "entropy": [], "top": [], "out": []}
    for i in range(0, t, size := max(512, down)):
        logits = q[i : i + size] @ k.T / FEATURES**0.5
        if causal:
            logits[np.arange(t) > np.arange(i, i + len(logits))[:, None]] = -np.inf
        peak = logits.max(axis=1, keepdims=True)
        p = np.exp(logits - peak)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        surprise = peak + np.log(total) - np.where(p > 0, logits, 0)
        parts["entropy"].append((p * np.where(p > 0, surprise, 0)).sum(axis=1))
        parts["top"].append(_top(p))
        parts["out"].append(p @ v)
        cells = p.reshape(-1, down, t // down, down)
        parts["map"].append(cells.sum(axis=(1, 3)) / down)
        received, largest = received + p.sum(axis=0), max(largest, peak.max())
    joined = {name: np.concatenate(found) for name, found in parts.items()}
    return {**joined, "received": received, "max": np.asarray(largest)}


def _top(p: np.ndarray) -> np.ndarray:
    """The keys of the largest weights, from the largest down; -1 where a query sees fewer."""
    at = np.argpartition(-p, COUNT, axis=1)[:, :COUNT]
    order = np.argsort(-np.take_along_axis(p, at, axis=1), axis=1, kind="stable")
    at = np.take_along_axis(at, order, axis=1)
    return np.where(np.take_along_axis(p, at, axis=1) > 0, at, -1)


def errors(got: Mapping[str, Any], want: Mapping[str, np.ndarray], head: int) -> dict:
    """The largest error of each statistic of a head; of top keys, the share that differ."""
    found = {}
    for name, x in got.items():
        if name not in want:
            continue
        of_head = {"map": lambda x: x[0, head], "max": lambda x: x[head]}
        x = of_head.get(name, lambda x: x[0, :, head])(np.asarray(x))
        if name == "top":  # peers show any keys where a query sees fewer
            real = want[name] >= 0
            found[name] = float((x != want[name])[real].mean())
        else:
            found[name] = float(np.abs(x - want[name]).max())
    return found


LIMITS = {"map": 1e-6, "received": 1e-4, "entropy": 1e-4, "max": 1e-4, "out": 1e-4, "top": 1e-3}
"""Beyond these a contender is not timed: it would have computed something else."""


def measure_length(t: int, causal: bool, gradients: bool, budget: Budget, say: Callable) -> dict:
    arrays, head = inputs(t), 5
    want = truth(arrays, causal, head)
    built: dict[str, Built] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, prepare in contenders(causal, t, gradients).items():
        say(f"checking {name}")
        one = prepare(*arrays)
        got = one.run()
        one.wait(got)
        off = errors(got, want, head)
        if bad := {key: value for key, value in off.items() if not value <= LIMITS[key]}:
            raise AssertionError(f"{name} at {t} tokens is off from float64: {bad}")
        built[name] = one
        found[name] = {
            "errors": off,
            "temp_bytes": one.temp_bytes(),
            "compile_seconds": one.compile_seconds,
        }
    samples = measure(built, budget, lambda done, of: say(f"round {done} of {of}"))
    for name, its in samples.items():
        found[name] |= {"seconds": its.seconds, "calls": its.calls}
    return {"tokens": t, "mask": "causal" if causal else "full", "contenders": found}


def exactness(t: int) -> dict[str, float]:
    """Errors of one head against float64, causal; of top keys the share that differ."""
    arrays = inputs(t)
    got = jax.jit(partial(jaxattn, OURS[TOP], True))(*(x[:, :, :1] for x in arrays))
    return errors(got, truth(arrays, True, 0), 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observing", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, metavar="T")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a length")
    chosen = parser.parse_args(given)
    works = [(t, causal) for t in chosen.tokens for causal in (False, True)]
    data: dict[str, Any] = {
        **header.of_results("benchmarks.observing", given),
        "load_before": machine.load_average(),
        "heads": HEADS,
        "features": FEATURES,
        "cells": CELLS,
        "exactness": {"tokens": min(4096, max(chosen.tokens))},
        "rows": [],
    }
    data["exactness"]["errors"] = exactness(data["exactness"]["tokens"])
    for t, causal in (bar := tqdm(works, unit="length")):
        bar.set_description(f"{t} tokens, {'causal' if causal else 'full'}")
        gradients = t in (1024, 4096)
        say = lambda text: bar.set_postfix_str(text)
        data["rows"].append(
            measure_length(t, causal, gradients, Budget(chosen.seconds, fewest=5), say)
        )
    save_report(data, markdown, chosen.out, "observing")
    for kind in ("png", "svg"):
        write_atomically(chosen.out / f"observing.{kind}", figure_bytes(lambda: plot(data), kind))
    met = targets(data)
    for target in met:
        print(f"{'met ' if target.met else 'MISSED'}: {target.text}: {target.found}")
    return 0 if all(target.met for target in met) else 1


if __name__ == "__main__":
    sys.exit(main())

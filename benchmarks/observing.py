"""`python -m benchmarks.observing`: what looking at the weights costs, against materialising them.

The statistics: a map of 256 × 256 cells (the share of weights in each), the weight that every key
receives, the entropy of every query, and the largest logit of every head; with "top 8" the eight
largest weights of every query as well. Peers do what is done today: they hold the whole matrix of
weights and reduce it. Flax sows weights, not logits, so there is no largest logit with it. All are
checked against float64 before they are timed, and take turns.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import jaxattn
from benchmarks import machine, run
from benchmarks import observing_report as named
from benchmarks.gate import Finding
from benchmarks.observing_report import report as report
from benchmarks.results import parser
from benchmarks.tables import conclude
from benchmarks.timing import Budget, Built, build
from tests.oracle import observe as truly

HEADS, FEATURES, CELLS, COUNT = 12, 64, 256, 8
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LARGEST_MATRIX = 2**30  # bytes; beyond it a round of the peers takes minutes, then does not fit
CHECKED = 5  # the head that is compared with float64
Arrays = tuple[Any, Any, Any]


def wanted(see: ModuleType) -> dict[str, dict[str, Any]]:
    """What each of our contenders observes. see: `jaxattn.observe`, of this version or another."""

    def entropy_of(seen: Any) -> jax.Array:
        """What a user would write for `Entropy`."""
        surprise = seen.lse[:, None] - seen.logits
        return jnp.where(seen.logits > -jnp.inf, seen.weights * surprise, 0).sum(axis=1)

    entropy = {"entropy": see.Entropy()}
    four = {"map": see.Map(CELLS), "received": see.Received(), **entropy, "max": see.MaxLogit()}
    return {
        named.PLAIN: {},
        named.SEEN: four,
        named.TOP: {**four, "top": see.TopKeys(COUNT)},
        named.ENTROPY: entropy,
        named.FOLD: {"entropy": see.Fold(lambda: 0.0, entropy_of, per=see.QUERY)},
    }


def observed(ja: ModuleType, name: str, causal: bool, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """By jaxattn, which is given: this version, or another."""
    mask = ja.Causal() if causal else ja.EVERYTHING
    got = ja.attend(q, k, v, mask=mask, observe=wanted(ja.observe)[name])
    shown = {**got.observed, "out": got.out}
    if "received" in shown:
        shown["received"] = shown["received"].mass
    if "top" in shown:
        shown["top"] = shown["top"].keys
    return shown


OURS = partial(observed, jaxattn)


def _gradient(name: str, causal: bool, *arrays: Any) -> dict[str, Any]:
    loss = lambda *arrays: sum(x.sum() for x in OURS(name, causal, *arrays).values())
    return dict(zip(("dq", "dk", "dv"), jax.grad(loss, (0, 1, 2))(*arrays), strict=True))


def _by_softmax(top: bool, causal: bool, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """Weights by `jax.nn.softmax`, and what follows from them and the logits."""
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / FEATURES**0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    weights = jax.nn.softmax(logits)
    out = jnp.einsum("bhts,bshd->bthd", weights, v)
    return {**_of_weights(weights, top), "max": logits.max(axis=(0, 2, 3)), "out": out}


def _sown_by_flax(causal: bool, q: Any, k: Any, v: Any) -> dict[str, Any]:
    """Weights as `nnx.dot_product_attention` sows them into a module."""
    mask = jnp.tril(jnp.ones((1, 1, q.shape[1], q.shape[1]), bool)) if causal else None
    attend = lambda module, *x: nnx.dot_product_attention(*x, mask=mask, module=module)
    sown: Any
    out, sown = nnx.capture(attend, nnx.Intermediate)(nnx.Module(), q, k, v)
    (weights,) = sown["attention_weights"].get_value()
    return {**_of_weights(weights, False), "out": out}


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


def contenders(causal: bool, arrays: Arrays) -> dict[str, Callable[[], Built]]:
    """Who is measured at a length: peers up to a matrix of LARGEST_MATRIX."""
    functions: dict[str, Any] = {name: partial(OURS, name) for name in wanted(jaxattn.observe)}
    t = arrays[0].shape[1]
    if t in (1024, 4096):
        functions |= {
            named.GRADIENT: partial(_gradient, named.PLAIN),
            named.THROUGH: partial(_gradient, named.ENTROPY),
        }
    peers = 4 * HEADS * t * t <= LARGEST_MATRIX
    if peers:
        functions[named.MATERIAL] = partial(_by_softmax, False)
        functions[f"{named.MATERIAL}, top 8"] = partial(_by_softmax, True)
        functions[named.SOWN] = _sown_by_flax
    found = {name: partial(build, partial(f, causal), *arrays) for name, f in functions.items()}
    if peers and importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_contenders import eager

        found[named.TORCH] = partial(eager, CELLS, causal, *arrays)
    return found


def inputs(t: int) -> Arrays:
    random = np.random.default_rng(t)
    q, k, v = random.standard_normal((3, 1, t, HEADS, FEATURES), dtype=np.float32)
    return jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)


def truth(arrays: Arrays, causal: bool, head: int) -> dict[str, np.ndarray]:
    """Everything that is shown of one head, in float64, some queries at a time."""
    q, k, v = (np.asarray(x[:, :, head : head + 1], np.float64) for x in arrays)
    t = q.shape[1]
    down = max(t // CELLS, 1)
    parts: dict[str, list[np.ndarray]] = {x: [] for x in ("map", "entropy", "top", "out")}
    received, largest = np.zeros(t), -np.inf
    for rows in np.array_split(np.arange(t), -(-t // max(512, down))):
        w = truly.weights(q[:, rows], k, np.arange(t) <= (rows[:, None] if causal else t))
        cells = w.p.reshape(len(rows) // down, down, t // down, down)
        parts["map"].append(cells.sum(axis=(1, 3)) / down)
        parts["entropy"].append(truly.entropy(w)[0][0, :, 0])
        parts["top"].append(truly.top_keys(w, COUNT)[1][0, :, 0])
        parts["out"].append(w.p[0, 0] @ v[0, :, 0])
        received += w.p[0, 0].sum(axis=0)
        largest = max(largest, w.logits.max())
    joined = {name: np.concatenate(found) for name, found in parts.items()}
    return {**joined, "received": received, "max": np.asarray(largest)}


def errors(got: Mapping[str, Any], want: Mapping[str, np.ndarray], head: int) -> dict[str, float]:
    """The largest error of each statistic of a head; of top keys, the share that differ."""
    found = {}
    for name in (x for x in want if x in got):
        x = np.asarray(got[name])
        x = x[0, head] if name == "map" else x[head] if name == "max" else x[0, :, head]
        if name == "top":  # peers show any keys where a query sees fewer
            real = want[name] >= 0
            found[name] = float((x != want[name])[real].mean())
        else:
            found[name] = float(np.abs(x - want[name]).max())
    return found


LIMITS = {"map": 1e-6, "received": 1e-4, "entropy": 1e-4, "max": 1e-4, "out": 1e-4, "top": 1e-3}
"""Beyond these a contender is not timed: it would have computed something else."""


def measure_length(t: int, causal: bool, budget: Budget) -> dict[str, Any]:
    """A workload of the results."""
    arrays, mask = inputs(t), "causal" if causal else "full"
    check = checking(truth(arrays, causal, CHECKED))
    checked = {name: (builder, check) for name, builder in contenders(causal, arrays).items()}
    records = run.measure_all(checked, budget)
    return {"name": f"{mask}-t{t}", "tokens": t, "mask": mask, "contenders": records}


def checking(want: Mapping[str, np.ndarray]) -> run.Check:
    """Whether a contender shows what float64 does. Gradients are not compared."""

    def check(built: Built, got: Any) -> list[Finding]:
        off = errors(got, want, CHECKED)
        return [Finding(name, {"off": (x, 0, LIMITS[name])}) for name, x in off.items()]

    return check


def exactness(t: int) -> dict[str, float]:
    """Errors of one head against float64, causal; of top keys the share that differ."""
    arrays = inputs(t)
    got = jax.jit(partial(OURS, named.TOP, True))(*(x[:, :, :1] for x in arrays))
    return errors(got, truth(arrays, True, 0), 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every target is met, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.observing", __doc__, seconds=2.0)
    options.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, metavar="T")
    chosen = options.parse_args(given)
    tokens = min(4096, max(chosen.tokens))
    data: dict[str, Any] = {
        **machine.header("benchmarks.observing", given),
        "heads": HEADS,
        "features": FEATURES,
        "cells": CELLS,
        "exactness": {"tokens": tokens, "errors": exactness(tokens)},
        "workloads": [],
    }
    for t, causal in tqdm([(t, c) for t in chosen.tokens for c in (False, True)], unit="length"):
        data["workloads"].append(measure_length(t, causal, Budget(chosen.seconds, fewest=5)))
    return conclude(data, chosen.out / "observing.json", named.lines(data))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.support`: what works with what, found out by running it.

Every option is run under every transformation on both backends, on a tiny problem of several tiles,
and compared with attention written out in jnp (`tests/dense.py`). All of it is in float64, up to
rounding, but for `jit`, which is float32. Gradients and tangents are with respect to q, k, v and
every real array of the option, through out and lse.
"""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn as ja
from benchmarks.options import bucket
from benchmarks.results import parser, write_atomically
from tests import dense

BACKENDS = {"Reference": ja.Reference(), "Blockwise": ja.Blockwise(q_block=5, k_block=1)}
H, T, S, D, E = 2, 5, 7, 3, 2
I, J = np.arange(T)[:, None], np.arange(S)


class Case(NamedTuple):
    """Options of `ja.attend`, and what they do. Real arrays are differentiated, others traced."""

    options: dict[str, Any]
    allowed: Any = True
    score: Callable[..., Any] = lambda x, *arrays: x
    """Of the logits [h t s] and the real arrays."""
    attend: Callable[..., Any] = ja.attend
    shown: slice = slice(2)
    """Of out and lse."""
    heads: int = H


def _factor() -> jax.Array:
    """What dropout multiplies weights with, read off with unit vectors as values."""
    q, k, v = jnp.zeros((T, H, 1)), jnp.zeros((S, H, 1)), jnp.eye(S)[:, None].repeat(H, 1)
    out = ja.attention(q, k, v, dropout=DROPOUT, backend=ja.Reference())
    return (out.swapaxes(0, 1) > 0) / (1 - DROPOUT.rate)


def _merged(q: Any, k: Any, v: Any, positions: Any, backend: Any) -> Any:
    """Of two disjoint sets of keys."""
    parts = slice(0, 3), slice(3, S)
    return ja.merge(*(ja.attend(q, k[x], v[x], backend=backend) for x in parts))


RANDOM = np.random.default_rng(0)
normal, SIZE = RANDOM.standard_normal, np.array(0.7)
SEEN, PLACES = (RANDOM.random((H, T, S)) < 0.5) | (J == 0), RANDOM.permutation(S)
Q_IDS, K_IDS = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 2])
DROPOUT = ja.Dropout(0.3, jax.random.wrap_key_data(jnp.array([1, 2], jnp.uint32)))
STARTS, EACH = ja.Positions(np.array(3), np.array(1)), ja.Positions(np.arange(T) + 2, PLACES)

causal, window = J <= I + 2, (I <= J) & (J <= I + 2)
last_5, near = ja.Causal() & ja.Window(4), (J <= I + 2) & (I + 2 <= J + 4)
prefix_and_length = ja.PrefixLM(np.array(3)) & ja.Lengths(k=np.array(4))
cap = lambda x, size: size * jnp.tanh(x / size)
alibi = lambda x, slopes: x - slopes[:, None, None] * np.abs(I - J)
alibi_cap = lambda x, slopes, size: cap(alibi(x, slopes), size)
relative = lambda x, table: x + jnp.moveaxis(table[bucket(J - I, (0, 1, 2, 3))], -1, 0)
function = jax.tree_util.Partial(lambda by_key, logit, at: logit * by_key[at.k] + at.q, normal(S))

CASES = {
    "`EVERYTHING`": Case({"mask": ja.EVERYTHING}),
    "`Causal`": Case({"mask": ja.Causal(2)}, causal),
    "`Window`": Case({"mask": ja.Window(2, 0, 2)}, window),
    "`PrefixLM`": Case({"mask": ja.PrefixLM(3)}, (J < 3) | (J <= I)),
    "`Lengths`": Case({"mask": ja.Lengths(k=5)}, J < 5),
    "`Segments`": Case({"mask": ja.Segments(Q_IDS, K_IDS)}, Q_IDS[:, None] == K_IDS),
    "`Dense`": Case({"mask": ja.Dense(SEEN)}, SEEN),
    "`Where`": Case({"mask": ja.Where(lambda at: (at.q + at.k) % 2 == 0)}, (I + J) % 2 == 0),
    "`a & b`": Case({"mask": ja.Causal(2) & ja.Lengths(k=5)}, causal & (J < 5)),
    "`a \\| b`": Case({"mask": ja.Window(2, 0, 2) | ja.Lengths(k=2)}, window | (J < 2)),
    "`~a`": Case({"mask": ~ja.Window(1)}, (J < I - 1) | (J > I)),
    "traced numbers in masks": Case({"mask": prefix_and_length}, (J < 4) & ((J < 3) | (J <= I))),
    "`positions=END`": Case({"mask": last_5, "positions": ja.END}, near),
    "`Positions` of starts, traced": Case({"mask": last_5, "positions": STARTS}, near),
    "`Positions` of every token": Case({"mask": last_5, "positions": EACH}, near[:, PLACES]),
    "`Bias`": Case({"score": ja.Bias(normal((H, T, S)))}, score=jnp.add),
    "`ALiBi`": Case({"score": ja.ALiBi(normal(H))}, score=alibi),
    "`RelativeBias`": Case(
        {"score": ja.RelativeBias(normal((8, H)), max_distance=4)}, score=relative
    ),
    "`SoftCap`": Case({"score": ja.SoftCap(SIZE)}, score=cap),
    "`score=function`": Case({"score": function}, score=lambda x, by_key: x * by_key + I),
    "`score=(a, b)`": Case({"score": (ja.ALiBi(normal(H)), ja.SoftCap(SIZE))}, score=alibi_cap),
    "`sinks`": Case({"sinks": normal(H)}),
    "`Dropout`": Case({"dropout": DROPOUT}),
    "`merge`": Case({}, attend=_merged),
    "lse alone": Case({}, shown=slice(1, 2)),
    "grouped heads": Case({}, heads=2 * H),
}


def _loss(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: sum(jnp.sin(y).sum() for y in f(x))


def _slope(f: Callable[..., Any], move: Any) -> Callable[..., Any]:
    return lambda x: sum(map(jnp.vdot, jax.grad(_loss(f))(x), move))


TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    "jit": lambda f, x, move: f([y.astype(jnp.float32) for y in x]),
    "grad": lambda f, x, move: jax.grad(_loss(f))(x),
    "jvp": lambda f, x, move: jax.jvp(f, (x,), (move,))[1],
    "forward over reverse": lambda f, x, move: jax.jvp(jax.grad(_loss(f)), (x,), (move,))[1],
    "reverse over reverse": lambda f, x, move: jax.grad(_slope(f, move))(x),
    "vmap": lambda f, x, move: jax.vmap(f)(jax.tree.map(lambda *y: jnp.stack(y), x, move)),
    "float64": lambda f, x, move: f(x),
}


def agreeing(name: str, case: Case) -> dict[str, set[str]]:
    """Which backends agree with the dense form, for each transformation."""
    real = lambda leaf: isinstance(leaf, np.ndarray) and leaf.dtype == float
    shapes = (T, case.heads, D), (S, H, D), (S, H, E)
    x = [*map(np.random.default_rng(len(name)).standard_normal, shapes)]
    x += filter(real, jax.tree.leaves(case.options))

    def of_backend(backend: Any, x: Any) -> Any:
        given = iter(x[3:])
        traced = lambda y: jax.lax.optimization_barrier(y) if isinstance(y, np.ndarray) else y
        new = lambda leaf: next(given) if real(leaf) else traced(leaf)
        options = {"positions": ja.Positions(0, 0)} | jax.tree.map(new, case.options)
        return case.attend(*x[:3], **options, backend=backend)[:2][case.shown]

    def of_dense(x: Any) -> Any:
        q, k, v, *learnt = x
        sinks = learnt[0] if "sinks" in case.options else None
        score = lambda logits: case.score(logits, *learnt)
        factor: Any = _factor() if "dropout" in case.options else 1
        return dense.attend(q, k, v, case.allowed, None, score, sinks, factor)[case.shown]

    def run(what: str, f: Callable[..., Any]) -> list[np.ndarray]:
        # What is checked is numbers, of which optimizations change little but the compile time.
        quick = {"xla_backend_optimization_level": 0}
        if jax.__version_info__ < (0, 11):  # later versions of XLA do not know it
            quick["xla_cpu_use_fusion_emitters"] = False
        program = jax.jit(partial(TRANSFORMS[what], f), compiler_options=quick)
        return [np.asarray(y) for y in jax.tree.leaves(program(x, [np.cos(7 * y) for y in x]))]

    found: dict[str, set[str]] = {what: set() for what in TRANSFORMS}
    with jax.enable_x64(True):  # per thread
        for what, agree in found.items():
            want, tolerance = run(what, of_dense), 1e-5 if what == "jit" else 1e-11
            for who, backend in BACKENDS.items():
                try:
                    pairs = zip(run(what, partial(of_backend, backend)), want, strict=True)
                    if all(
                        np.abs(a - b).max() <= tolerance * (1 + np.abs(b).max()) for a, b in pairs
                    ):
                        agree.add(who)
                except Exception as error:  # which of them fail is what is to be found out
                    print(f"{name}, {backend}, {what}: {type(error).__name__}", file=sys.stderr)
    return found


def find() -> dict[str, dict[str, set[str]]]:
    """For every option, compiled on as many threads as there are cores."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(CASES, pool.map(agreeing, CASES, CASES.values()), strict=True))


def report(found: Mapping[str, Mapping[str, set[str]]]) -> str:
    """A row for every option; ✓ where both backends agree, else the one that does."""
    cell = lambda its: "✓" if len(its) == len(BACKENDS) else ", ".join(sorted(its))
    rows = [["", *TRANSFORMS], [":--", *[":-:" for _ in TRANSFORMS]]]
    rows += [[name, *map(cell, its.values())] for name, its in found.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# What works with what

Written by `python -m benchmarks.support`, which runs every option under every transformation
against attention written out. ✓: both backends agree with it.

{table}
"""


if __name__ == "__main__":
    folder = parser("benchmarks.support", __doc__).parse_args().out
    write_atomically(folder / "support.md", report(find()).encode())

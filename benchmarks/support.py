"""`python -m benchmarks.support`: what works with what, found out by running it.

Every option is run under every transformation on both backends, on a tiny problem of several tiles,
and compared with attention written out in jnp (`tests/dense.py`). All of it is in float64, up to
rounding, but for `jit`, which is float32. Gradients and tangents are with respect to q, k, v and
every real array of the option, through out and lse.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn as ja
from benchmarks.results import write_atomically
from benchmarks.support_cases import CASES, Case
from benchmarks.tables import Columns, table

BACKENDS: Mapping[str, Any] = {
    "Reference": ja.Reference(),
    "Blockwise": ja.Blockwise(q_block=5, k_block=1),
}

TRANSFORMS = (
    "jit",
    "grad",
    "jvp",
    "forward over reverse",
    "reverse over reverse",
    "vmap",
    "float64",
)

START, END = "<!-- support table -->", "<!-- end of support table -->"

# What is checked is numbers, of which the compiler's optimizations change little but its time.
_jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
    },
)

Call = Callable[[Any], Any]
"""From (q, k, v, learnt arrays) to (out, lse)."""


def results(call: Call, x: Any, only: Sequence[str] = TRANSFORMS) -> dict[str, Any]:
    """What each transformation gives."""
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), x)
    move = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), double)
    several = jax.tree.map(lambda a, b: jnp.stack([a, b, a + b]), double, move)

    def loss(x: Any) -> jax.Array:
        out, lse = call(x)
        return jnp.sin(out).sum() + jnp.sin(lse).sum()

    def along(x: Any) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(loss)(x), move)))

    ways: Mapping[tuple[str, ...], Callable[[], Any]] = {
        ("jit",): lambda: [call(jax.tree.map(lambda a: a.astype(jnp.float32), x))],
        ("float64", "jvp"): lambda: jax.jvp(call, (double,), (move,)),
        ("grad", "forward over reverse"): lambda: jax.jvp(jax.grad(loss), (double,), (move,)),
        ("reverse over reverse",): lambda: [jax.grad(along)(double)],
        ("vmap",): lambda: [jax.vmap(call)(several)],
    }
    found: dict[str, Any] = {}
    for names, way in ways.items():
        if set(names) & set(only):  # what comes of one program is taken from it
            found |= dict(zip(names, way(), strict=True))
    return {name: found[name] for name in only}


def agreeing(case: Case) -> dict[str, set[str]]:
    """Which backends agree with the dense one, for each transformation."""
    with jax.enable_x64(True):  # per thread
        x, rest = case.arrays()
        want = _run(lambda x, rest: results(partial(case.dense, rest=rest), x), x, rest)
        found: dict[str, set[str]] = {name: set() for name in TRANSFORMS}
        for backend, value in BACKENDS.items():
            for name, got in _of_backend(case, value, x, rest).items():
                tolerance = 1e-5 if name == "jit" else 1e-11  # jit is in float32
                if _close(got, want[name], tolerance):
                    found[name].add(backend)
    return found


def _of_backend(case: Case, backend: Any, x: Any, rest: Any) -> dict[str, Any]:
    """All transformations in one program or, if that fails, those that work by themselves."""

    def some(only: Sequence[str]) -> dict[str, Any]:
        call = lambda rest: partial(case.attend, rest=rest, backend=backend)
        return _run(lambda x, rest: results(call(rest), x, only), x, rest)

    try:
        return some(TRANSFORMS)
    except Exception:  # which of them failed is what is to be found out
        found = {}
        for name in TRANSFORMS:
            try:
                found |= some([name])
            except Exception as error:
                print(f"{case.name}, {backend}, {name}: {type(error).__name__}", file=sys.stderr)
        return found


def _run(program: Callable[..., Any], x: Any, rest: Any) -> Any:
    return jax.tree.map(np.asarray, _jit(program)(x, rest))


def _close(got: Any, want: Any, tolerance: float) -> bool:
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    return bool(pairs) and all(
        np.abs(a.astype(np.float64) - b).max() <= tolerance * (1 + np.abs(b).max())
        for a, b in pairs
    )


def markdown(found: Mapping[str, Mapping[str, set[str]]]) -> str:
    """A row for every option; ✓ where both backends agree, else the one that does."""

    def cell(backends: set[str]) -> str:
        return "✓" if len(backends) == len(BACKENDS) else ", ".join(sorted(backends))

    columns: Columns = {"": lambda row: row[0]}
    columns |= {x: lambda row, x=x: cell(row[1][x]) for x in TRANSFORMS}
    return table(list(found.items()), columns, left=1).replace(" --: |", " :-: |")


def put(text: str, readme: str) -> str:
    """`readme` with `text` between the markers.

    Raises:
      ValueError: the markers are not there.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the file has no {START} followed by {END}; put both where it goes")
    return f"{before}{START}\n{text}\n{END}{after}"


def make(cases: Sequence[Case] = CASES) -> str:
    """The table, compiled on as many threads as there are cores."""
    with ThreadPoolExecutor() as pool:
        return markdown(dict(zip([c.name for c in cases], pool.map(agreeing, cases), strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.support", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"put it there after {START}")
    path: Path | None = parser.parse_args(arguments).write
    readme = None if path is None else path.read_text()
    text = make()
    if path is None or readme is None:
        print(text)
    else:
        write_atomically(path, put(text, readme).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.precision`: errors against float64, of jaxattn and of jax.nn.

Inputs are rounded to their dtype before anyone sees them, so what is measured is what a library
adds. An error is given as its largest absolute value over the largest value of the right answer
(max), and as its root mean square over that of the right answer (rms). dq, dk and dv are the
gradients of sum(out * cotangent). jax.nn is `jax.nn.dot_product_attention` as XLA compiles it,
which computes its softmax in float32, also for float64. A CPU does not run it in float16; there
its steps are written out, each rounded as in bfloat16.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn as ja
from benchmarks import gate, machine, tables
from benchmarks.results import parser
from tests import oracle

HEADS, FEATURES = 2, 64
LENGTHS = (128, 2048)
DTYPES = ("float64", "float32", "bfloat16", "float16")
INPUTS = {"normal": 1.0, "large logits": 10.0}
"""Queries are multiplied by this: at 2048 tokens the largest logits are about 5 and 50."""

ARRAYS = ("out", "lse", "dq", "dk", "dv")
LARGEST_FLOAT64 = 1e-12


def measure(lengths: Sequence[int] = LENGTHS) -> list[dict[str, Any]]:
    """A row for every dtype, length, kind of inputs and array: the errors of both libraries."""
    rows = []
    for dtype, t, inputs in product(DTYPES, lengths, INPUTS):
        random = np.random.default_rng(t).standard_normal((4, 1, t, HEADS, FEATURES))
        random[0] *= INPUTS[inputs]
        q, k, v, cotangent = arrays = random.astype(jnp.dtype(dtype))
        out, lse = oracle.attention(q, k, v)
        pulled = oracle.gradients(q, k, v, None, None, cotangent, np.zeros(lse.shape))
        want = out, lse, pulled.q, pulled.k, pulled.v
        with jax.enable_x64(dtype == "float64"):
            libraries = _jaxattn, _steps_of_jax_nn if dtype == "float16" else _jax_nn
            found = [jax.jit(partial(_all, x))(*map(jnp.asarray, arrays)) for x in libraries]
        for array, right, ours, theirs in zip(ARRAYS, want, *found, strict=True):
            row = {"dtype": dtype, "tokens": t, "inputs": inputs, "array": array}
            for name, got in (("jaxattn", ours), ("jax_nn", theirs)):
                rms, largest = gate.relative(got.reshape(right.shape), right)
                row[name] = {"max": largest, "rms": rms}
            rows.append(row)
    return rows


def _all(attend: Callable[..., Any], q: Any, k: Any, v: Any, cotangent: Any) -> tuple[Any, ...]:
    """out, lse, dq, dk and dv. attend: to out and lse."""
    out, pull, lse = jax.vjp(attend, q, k, v, has_aux=True)
    return out, lse, *pull(cotangent)


def _jaxattn(q: Any, k: Any, v: Any) -> Any:
    return ja.attend(q, k, v)[:2]


def _steps_of_jax_nn(q: Any, k: Any, v: Any) -> Any:
    logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32)
    logits = logits / np.float32(FEATURES**0.5)
    lse = jax.nn.logsumexp(logits, axis=-1).swapaxes(1, 2).astype(k.dtype)
    return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(logits).astype(k.dtype), v), lse


_jax_nn = partial(jax.nn.dot_product_attention, return_residual=True)


def claims(rows: Sequence[Mapping[str, Any]]) -> list[tables.Line]:
    """What holds, and the number that decides it, of rows as they stand in a results file.

    Where both are as good as their dtype, chance decides which error is larger: hence the 1 %.
    """
    wide = max(row["jaxattn"]["max"] for row in rows if row["dtype"] == "float64")
    claim = f"float64: no error above {LARGEST_FLOAT64:g}"
    found = [tables.Line(claim, f"{wide:.1e}", wide <= LARGEST_FLOAT64)]
    for dtype in ("bfloat16", "float16"):
        worst, at = max(
            (ours / row["jax_nn"][kind], f"{row['array']}, {row['inputs']}, {row['tokens']} tokens")
            for row in rows
            for kind, ours in row["jaxattn"].items()
            if row["dtype"] == dtype and row["jax_nn"][kind]
        )
        claim = f"{dtype}: no error more than 1 % above jax.nn's"
        found.append(tables.Line(claim, f"{worst:.4f} of it ({at})", worst <= 1.01))
    return found


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name."""
    rows, where = data["rows"], "{cpu}, {platform}".format(**data["machine"])
    parts = [
        "# Errors against float64",
        machine.about(data, where, packages=("jaxattn", "jax", "jaxlib", "numpy")),
        f"{HEADS} heads of {FEATURES} features. In each cell the largest error over the largest "
        "value and, after it, the root mean square error over the root mean square value. With "
        "large logits these reach about 50. In float16 jax.nn's steps are written out, because a "
        "CPU does not run it. lse in half precision: jaxattn returns it in float32, "
        "jax.nn in the dtype of the keys.",
        tables.lines_table(claims(rows), "Claim", "Worst", "Holds", left=2),
    ]
    cell = lambda error: f"{error['max']:.1e}, {error['rms']:.1e}"
    columns: tables.Columns = {
        "Inputs": lambda row: f"{row['inputs']}, T = {row['tokens']}",
        "Array": lambda row: row["array"],
        "jaxattn, max, rms": lambda row: cell(row["jaxattn"]),
        "jax.nn, max, rms": lambda row: cell(row["jax_nn"]),
    }
    for dtype in DTYPES:
        its = [row for row in rows if row["dtype"] == dtype]
        parts += [f"## {dtype}", tables.table(its, columns, left=2)]
    return {"precision.md": ("\n\n".join(parts) + "\n").encode()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every claim holds, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.precision", __doc__)
    options.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, metavar="T")
    chosen = options.parse_args(given)
    rows = measure(chosen.tokens)
    data = {**machine.header("benchmarks.precision", given), "rows": rows}
    return tables.conclude(data, chosen.out / "precision.json", claims(rows))


if __name__ == "__main__":
    sys.exit(main())

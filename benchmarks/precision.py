"""`python -m benchmarks.precision`: errors against float64, of jaxattn and of jax.nn.

Inputs are rounded to their dtype before anyone sees them, so what is measured is what a library
adds. An error is given as its largest absolute value over the largest value of the right answer
(max), and as its root mean square over that of the right answer (rms). dq, dk and dv are the
gradients of sum(out * cotangent). jax.nn is `jax.nn.dot_product_attention` as XLA compiles it,
which computes its softmax in float32, also for float64. A CPU does not run it in float16; there
its steps are written out, each rounded as in bfloat16.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxattn as ja
from benchmarks import header
from benchmarks.reference import attention_rows
from benchmarks.results import FOLDER, save_report
from benchmarks.tables import table

HEADS, FEATURES = 2, 64
LENGTHS = (128, 2048)
DTYPES: Mapping[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
INPUTS = {"normal": 1.0, "large logits": 10.0}
"""Queries are multiplied by this: at 2048 tokens the largest logits are about 5 and 50."""

ARRAYS = ("out", "lse", "dq", "dk", "dv")
LARGEST_FLOAT64 = 1e-12


@dataclass(frozen=True)
class Error:
    """Of one array of one library."""

    max: float
    rms: float


@dataclass(frozen=True)
class Row:
    dtype: str
    tokens: int
    inputs: str
    array: str
    jaxattn: Error
    jax_nn: Error


def measure(lengths: Sequence[int] = LENGTHS) -> list[Row]:
    """A row for every dtype, length, kind of inputs and array."""
    rows = []
    for dtype, kind in DTYPES.items():
        for t in lengths:
            for inputs, factor in INPUTS.items():
                arrays = _inputs(t, factor, kind)
                want = _expected(*arrays)
                with jax.enable_x64(dtype == "float64"):
                    given = [jnp.asarray(x) for x in arrays]
                    theirs = _steps_of_jax_nn if dtype == "float16" else _jax_nn
                    found = [jax.jit(f)(*given) for f in (_jaxattn, theirs)]
                    errors = [[_error(g, w) for g, w in zip(x, want, strict=True)] for x in found]
                pairs = zip(ARRAYS, *errors, strict=True)
                rows += [Row(dtype, t, inputs, array, ours, its) for array, ours, its in pairs]
    return rows


def _inputs(t: int, factor: float, dtype: Any) -> list[np.ndarray]:
    """q, k, v and cotangent, [1 t h d]."""
    random = np.random.default_rng(t)
    q, k, v, cotangent = random.standard_normal((4, 1, t, HEADS, FEATURES))
    return [x.astype(dtype) for x in (q * factor, k, v, cotangent)]


def _expected(q, k, v, cotangent) -> list[np.ndarray]:
    q, k, v, cotangent = (x[0].astype(np.float64) for x in (q, k, v, cotangent))
    first, stop = np.zeros(len(q), int), np.full(len(q), len(k))
    found = []
    for h in range(HEADS):
        of_head = q[:, h], k[:, h], v[:, h], cotangent[:, h]
        rows = attention_rows(*of_head, first, stop, gradient=True)
        logits_ts = q[:, h] @ k[:, h].T / FEATURES**0.5
        peak = logits_ts.max(axis=1)
        lse = peak + np.log(np.exp(logits_ts - peak[:, None]).sum(axis=1))
        found.append((rows.out_te, lse, rows.dq_td, rows.dk_sd, rows.dv_se))
    return [np.stack(x, axis=1)[None] for x in zip(*found, strict=True)]


def _jaxattn(q, k, v, cotangent):
    got, pull = jax.vjp(ja.attend, q, k, v)
    return (got.out, got.lse, *pull(ja.Attended(cotangent, jnp.zeros_like(got.lse))))


def _jax_nn(q, k, v, cotangent):
    out, pull = jax.vjp(jax.nn.dot_product_attention, q, k, v)
    _, lse = jax.nn.dot_product_attention(q, k, v, return_residual=True)
    return (out, lse, *pull(cotangent))


def _steps_of_jax_nn(q, k, v, cotangent):
    wide = jnp.float32

    def attend(q, k, v):
        logits = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=wide)
        logits = logits / np.sqrt(FEATURES).astype(wide)
        weights = jax.nn.softmax(logits).astype(k.dtype)
        lse = jax.nn.logsumexp(logits, axis=-1).swapaxes(1, 2).astype(k.dtype)
        return jnp.einsum("bnts,bsnd->btnd", weights, v), lse

    out, pull, lse = jax.vjp(attend, q, k, v, has_aux=True)
    return (out, lse, *pull(cotangent))


def _error(got: jax.Array, want: np.ndarray) -> Error:
    off = np.asarray(got).astype(np.float64).reshape(want.shape) - want
    rms = np.sqrt(np.mean(off**2) / np.mean(want**2))
    return Error(float(np.abs(off).max() / np.abs(want).max()), float(rms))


def claims(rows: Sequence[Row]) -> list[tuple[str, bool, str]]:
    """(claim, whether it holds, the number that decides it).

    Where both are as good as their dtype, chance decides which error is larger: hence the 1 %.
    """
    wide = max(row.jaxattn.max for row in rows if row.dtype == "float64")
    found = [
        (f"float64: no error above {LARGEST_FLOAT64:g}", wide <= LARGEST_FLOAT64, f"{wide:.1e}")
    ]
    for dtype in ("bfloat16", "float16"):
        ratios = [
            (mine / its, f"{row.array}, {row.inputs}, {row.tokens} tokens")
            for row in rows
            for mine, its in (
                (row.jaxattn.max, row.jax_nn.max),
                (row.jaxattn.rms, row.jax_nn.rms),
            )
            if row.dtype == dtype and its
        ]
        worst, where = max(ratios)
        text = f"{worst:.4f} of it ({where})"
        claim = f"{dtype}: no error more than 1 % above jax.nn's"
        found.append((claim, worst <= 1.01, text))
    return found


def markdown(data: Mapping[str, Any]) -> str:
    facts, rows = data["machine"], data["rows"]
    where = f"{facts['cpu']}, {facts['platform']}"
    parts = [
        "# Errors against float64",
        header.of_report(data, where, packages=("jaxattn", "jax", "jaxlib", "numpy")),
        f"{HEADS} heads of {FEATURES} features. In each cell the largest error over the largest "
        "value and, after it, the root mean square error over the root mean square value. With "
        "large logits these reach about 50. In float16 jax.nn's steps are written out, because a "
        "CPU does not run it. lse in half precision: jaxattn returns it in float32, "
        "jax.nn in the dtype of the keys.",
        table(
            ["Claim", "Worst", "Holds"],
            [[c["claim"], c["worst"], "yes" if c["holds"] else "**no**"] for c in data["claims"]],
            left=2,
        ),
    ]
    for dtype in DTYPES:
        cells = [
            [
                f"{row['inputs']}, T = {row['tokens']}",
                row["array"],
                _cell(row["jaxattn"]),
                _cell(row["jax_nn"]),
            ]
            for row in rows
            if row["dtype"] == dtype
        ]
        head = ["Inputs", "Array", "jaxattn, max, rms", "jax.nn, max, rms"]
        parts += [f"## {dtype}", table(head, cells, left=2)]
    return "\n\n".join(parts) + "\n"


def _cell(error: Mapping[str, float]) -> str:
    return f"{error['max']:.1e}, {error['rms']:.1e}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every claim holds, else 1."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, metavar="T")
    chosen = parser.parse_args(given)
    rows = measure(chosen.tokens)
    data = {
        **header.of_results("benchmarks.precision", given),
        "claims": [{"claim": a, "holds": bool(b), "worst": c} for a, b, c in claims(rows)],
        "rows": [asdict(row) for row in rows],
    }
    save_report(data, markdown, chosen.out, "precision")
    for claim in data["claims"]:
        print(f"{'holds' if claim['holds'] else 'FAILS'}: {claim['claim']}: {claim['worst']}")
    return 0 if all(claim["holds"] for claim in data["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())

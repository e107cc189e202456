"""How far a result may be from the float64 truth: derived from its dtype and nothing else.

    error <= 2 (error of the naive form in that dtype + eps · peak of the truth)

The naive form (oracle.py with `dtype`, or a dense softmax in jnp) has the rounding that the problem
itself brings, so a hard problem gets the budget it needs and an easy one gets no more. The truth of
a float64 result is no more precise than the result: there the naive form runs in float32, its
error is carried over by the ratio of the two eps, and the budget is granted to both sides.
"""

from typing import Any

import ml_dtypes
import numpy as np


def eps(dtype: Any) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def peak(x: np.ndarray) -> float:
    """The largest finite magnitude; 0 where there is none."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference. Where the truth is not finite, the same must have come."""
    finite = np.isfinite(want)
    alike = np.array_equal(got[~finite], want[~finite], equal_nan=True)
    if not (alike and np.isfinite(got[finite]).all()):
        return np.inf
    return float(np.abs(got[finite] - want[finite]).max(initial=0))


def budget(want: np.ndarray, naive: np.ndarray, dtype: Any, size: float | None = None) -> float:
    """`size` is the magnitude that rounding acts on where it is not the peak of the result."""
    sides = 2 if np.dtype(dtype) == np.float64 else 1
    hardness = error(np.asarray(naive, np.float64), want) * eps(dtype) / eps(naive.dtype)
    rounding = eps(dtype) * (peak(want) if size is None else size)
    tiny = max(_flushed(dtype), float(ml_dtypes.finfo(dtype).smallest_subnormal))
    return sides * 2 * (hardness + rounding + tiny)


def _flushed(dtype: Any) -> float:
    """What XLA's CPU code may take for zero: subnormals of the dtype it computes in."""
    computed = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return float(np.finfo(computed).smallest_normal)


def recomputed(want: np.ndarray, lse: np.ndarray) -> float:
    """The `size` of a derivative that computes its weights a second time, from the logits and lse.

    exp(logits - lse) carries the rounding of the logits, eps·|logit|, which no longer cancels
    against that of the softmax's denominator. |lse| stands for the size of the logits.
    """
    return peak(want) * (1 + peak(lse))


def assert_close(
    got: Any,
    want: Any,
    naive: Any,
    dtype: Any = None,
    what: str = "result",
    size: float | None = None,
) -> None:
    """`got`, in `dtype` (that of `naive` where none is given), is within budget of `want`."""
    got, want, naive = np.asarray(got), np.asarray(want, np.float64), np.asarray(naive)
    dtype = np.dtype(naive.dtype if dtype is None else dtype)
    assert got.dtype == dtype, f"{what}: dtype {got.dtype}, want {dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    limit = budget(want, naive, dtype, size)
    assert np.isfinite(limit), f"{what}: the naive form is not finite where the truth is"
    found = error(got.astype(np.float64), want)
    assert found <= limit, f"{what}: error {found:.3e}, budget {limit:.3e}, peak {peak(want):.3e}"

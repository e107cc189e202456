"""Attention and its first derivatives in NumPy: what every test compares with.

Imports nothing of jax or jaxattn, and shares no code with them. Shapes are the package's:

    q [*b t h d]    k [*b s n d]    v [*b s n e]    out [*b t h e]    lse [*b t h]

and `allowed` is a boolean array that broadcasts to [*b h t s], or None for every pair.

`dtype` is the precision of the computation. float64 is the truth; with the dtype under test each
function is the *naive low-precision form*, whose error sets the budget in tolerance.py: the inputs
as they are, logits and sums in at least float32, and the results rounded to `dtype` once.

A query that may see no key has out 0, lse -inf and no derivative. A non-finite value reaches the
queries that may see it, as NaN in its feature, and no others.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray


class Gradients(NamedTuple):
    """What flows back to each input of `attention`."""

    q: ndarray
    k: ndarray
    v: ndarray
    scale: ndarray


def accumulator(dtype: Any) -> Any:
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def attention(q, k, v, allowed=None, scale=None, dtype: Any = np.float64):
    """out and lse. `scale` is 1/√d where none is given."""
    wide = accumulator(dtype)
    scale = wide(q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = by_head(q, k, v, wide)
    may = everywhere(allowed, q, k)
    with np.errstate(invalid="ignore", over="ignore"):
        p, lse = softmax(q @ k.swapaxes(-1, -2) * scale, may)
        finite = np.isfinite(v)
        out = p @ np.where(finite, v, 0)
    out[(may.astype(wide) @ (~finite).astype(wide)) > 0] = np.nan
    return out.swapaxes(-2, -3).astype(dtype), lse.swapaxes(-1, -2)


def gradients(q, k, v, allowed, scale, cot_out, cot_lse, dtype: Any = np.float64) -> Gradients:
    """The gradients of Σ out · cot_out + Σ lse · cot_lse over the queries that see a key.

    Non-finite entries of k and v count as zero, which is right where the cotangents are zero for
    every query that may see them.
    """
    wide = accumulator(dtype)
    group = q.shape[-2] // k.shape[-2]
    scale = wide(q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = by_head(q, k, v, wide)
    k, v = only_finite(k), only_finite(v)
    cot_out = np.asarray(cot_out, wide).swapaxes(-2, -3)
    cot_lse = np.asarray(cot_lse, wide).swapaxes(-1, -2)
    raw = q @ k.swapaxes(-1, -2)
    p, _ = softmax(raw * scale, everywhere(allowed, q, k))
    # With L the logits: dout/dL = p (v - out) and dlse/dL = p.
    dp = cot_out @ v.swapaxes(-1, -2)
    along_out = (cot_out * (p @ v)).sum(-1)
    dlogits = p * (dp - along_out[..., None] + cot_lse[..., None])
    dq = scale * dlogits @ k
    dk = scale * dlogits.swapaxes(-1, -2) @ q
    dv = p.swapaxes(-1, -2) @ cot_out
    by_position = (dq, sum_groups(dk, group), sum_groups(dv, group))
    return Gradients(
        *(x.swapaxes(-2, -3).astype(dtype) for x in by_position),
        scale=np.asarray((dlogits * raw).sum(), wide),
    )


def tangent(q, k, v, allowed, scale, dq, dk, dv, dscale: Any = 0.0, dtype: Any = np.float64):
    """How out and lse move when q, k, v and scale move along dq, dk, dv and dscale."""
    wide = accumulator(dtype)
    scale = wide(q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = by_head(q, k, v, wide)
    dq, dk, dv = by_head(dq, dk, dv, wide)
    raw = q @ k.swapaxes(-1, -2)
    p, _ = softmax(raw * scale, everywhere(allowed, q, k))
    moved = scale * (dq @ k.swapaxes(-1, -2) + q @ dk.swapaxes(-1, -2)) + wide(dscale) * raw
    dlse = (p * moved).sum(-1)
    dout = (p * moved) @ v + p @ dv - dlse[..., None] * (p @ v)
    return dout.swapaxes(-2, -3).astype(dtype), dlse.swapaxes(-1, -2)


def by_head(q, k, v, dtype):
    """[*b h t d], [*b h s d], [*b h s e]: query head i beside key/value head i // (h // n)."""
    q, k, v = (np.asarray(x, dtype).swapaxes(-2, -3) for x in (q, k, v))
    reads = np.arange(q.shape[-3]) // (q.shape[-3] // k.shape[-3])
    return q, k[..., reads, :, :], v[..., reads, :, :]


def sum_groups(x, group):
    """[*b h s d] -> [*b n s d]: each key/value head collects from the queries that read it."""
    return x.reshape(*x.shape[:-3], -1, group, *x.shape[-2:]).sum(-3)


def everywhere(allowed, q, k):
    shape = (*q.shape[:-1], k.shape[-2])
    return np.broadcast_to(np.asarray(True if allowed is None else allowed), shape)


def only_finite(x):
    return np.where(np.isfinite(x), x, 0)


def softmax(logits, allowed):
    """Weights and log-sum-exp of each row over the allowed keys; 0 and -inf where there is none."""
    logits = np.where(allowed, logits, -np.inf)
    peak = logits.max(-1, keepdims=True, initial=-np.inf)
    peak = np.where(peak == -np.inf, 0, peak)
    grown = np.exp(logits - peak)
    total = grown.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (peak + np.log(total))[..., 0]
    return grown / np.where(total == 0, 1, total), lse


def causal(t, s, offset: Any = 0):
    """[*offset 1 t s]: query i sees key j when j <= i + offset."""
    return each(offset, lambda o: [[j <= i + o for j in range(s)] for i in range(t)], t, s)


def window(t, s, left: Any, right: Any = 0, offset: Any = 0):
    """[*offset 1 t s]: at most `left` keys behind and `right` keys ahead of position i + offset."""

    def one(o):
        low = -(t + s + abs(o)) if left is None else left * -1
        high = t + s + abs(o) if right is None else right
        return [[low <= j - (i + o) <= high for j in range(s)] for i in range(t)]

    return each(offset, one, t, s)


def lengths(t, s, q: Any = None, k: Any = None):
    """[*b 1 t s]: queries before q and keys before k."""
    q, k = np.broadcast_arrays(t if q is None else q, s if k is None else k)
    seen = np.zeros((*q.shape, 1, t, s), bool)
    for b in np.ndindex(q.shape):
        seen[b][:, : q[b], : k[b]] = True
    return seen


def segments(q_ids: Any, k_ids: Any = None):
    """[*b 1 t s]: equal ids see each other; a negative id sees nothing and is seen by nothing."""
    q_ids = np.asarray(q_ids)
    k_ids = q_ids if k_ids is None else np.asarray(k_ids)
    batch = np.broadcast_shapes(q_ids.shape[:-1], k_ids.shape[:-1])
    q_ids = np.broadcast_to(q_ids, (*batch, q_ids.shape[-1]))
    k_ids = np.broadcast_to(k_ids, (*batch, k_ids.shape[-1]))
    seen = np.zeros((*batch, 1, q_ids.shape[-1], k_ids.shape[-1]), bool)
    for b in np.ndindex(batch):
        for i, a in enumerate(q_ids[b]):
            if a >= 0:
                seen[b][0, i] = [c == a for c in k_ids[b]]
    return seen


def each(values, build, t, s):
    """One [1 t s] mask for each of `values`, on leading axes of its own; none for a scalar."""
    values = np.asarray(values)
    seen = np.zeros((*values.shape, 1, t, s), bool)
    for b in np.ndindex(values.shape):
        seen[b][0] = np.asarray(build(int(values[b])), bool).reshape(t, s)
    return seen

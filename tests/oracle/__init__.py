"""Attention and its first derivatives in NumPy: what tests and benchmarks compare with.

Imports nothing of jax or jaxattn, and shares no code with them. Shapes are the package's:

    q [*b t h d]    k [*b s n d]    v [*b s n e]    out [*b t h e]    lse [*b t h]

and `allowed` is a boolean array that broadcasts to [*b h t s], or None for every pair.

`dtype` is the precision of the computation. float64 is the truth; with the dtype under test each
function is the *naive low-precision form*, whose error sets the budget in tolerance.py: the inputs
as they are, logits and sums in at least float32, and the results rounded to `dtype` once.

A query that may see no key has out 0, lse -inf and no derivative. A non-finite value reaches the
queries that may see it, as NaN in its feature, and no others.

Logits are scaled, then changed by the items of `Extra.score` from left to right, then masked.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from . import scores


class Extra(NamedTuple):
    """score: items of `scores`. sinks: [h], logits that join the denominator and lse only.

    keep: booleans that broadcast to [*b h t s]; the weights after the softmax are multiplied by
    keep / (1 - rate).
    """

    score: tuple[Any, ...] = ()
    sinks: Any = None
    keep: Any = True
    rate: float = 0.0

    def factor(self, wide):
        """What dropout multiplies weights by."""
        return np.asarray(self.keep, wide) / wide(1 - self.rate) if self.rate < 1 else wide(0)


NOTHING = Extra()


class Gradients(NamedTuple):
    """What flows back to each input of `attention`. score: a Sum for every array of every item.

    sizes: of q, k and v, the sums of magnitudes that rounding acts on.
    """

    q: ndarray
    k: ndarray
    v: ndarray
    scale: ndarray
    score: tuple[scores.Sum, ...]
    sinks: scores.Sum
    sizes: tuple[ndarray, ndarray, ndarray]


def accumulator(dtype: Any) -> Any:
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def attention(q, k, v, allowed=None, scale=None, dtype: Any = np.float64, extra: Extra = NOTHING):
    """out and lse. `scale` is 1/√d where none is given."""
    wide = accumulator(dtype)
    scale = wide(q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = by_head(q, k, v, wide)
    may = everywhere(allowed, q, k)
    with np.errstate(invalid="ignore", over="ignore"):
        logits = scores.apply(extra.score, q @ k.swapaxes(-1, -2) * scale)
        p, lse, _ = softmax(logits, may, extra.sinks)
        finite = np.isfinite(v)
        out = p * extra.factor(wide) @ np.where(finite, v, 0)
    out[(may.astype(wide) @ (~finite).astype(wide)) > 0] = np.nan
    return out.swapaxes(-2, -3).astype(dtype), lse.swapaxes(-1, -2)


def gradients(
    q, k, v, allowed, scale, cot_out, cot_lse, dtype: Any = np.float64, extra: Extra = NOTHING
) -> Gradients:
    """The gradients of Σ out · cot_out + Σ lse · cot_lse over the queries that see a key or a sink.

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
    may = everywhere(allowed, q, k)
    p, _, p_sink = softmax(scores.apply(extra.score, raw * scale), may, extra.sinks)
    # With L the logits, m = keep / (1 - rate): dout/dL = p (m v - out) and dlse/dL = p. Of a sink:
    # dout/dL = -p_sink out and dlse/dL = p_sink.
    factor = extra.factor(wide)
    dp = factor * (cot_out @ v.swapaxes(-1, -2))
    along_out = (cot_out * (p * factor @ v)).sum(-1)
    dlogits = p * (dp - along_out[..., None] + cot_lse[..., None])
    dsinks = p_sink * (cot_lse - along_out)
    size = factor * (np.abs(cot_out) @ np.abs(v).swapaxes(-1, -2))
    size_row = (p * size).sum(-1) + np.abs(cot_lse)
    size = p * (size + size_row[..., None])
    (dscaled, size), dscore = scores.pull(extra.score, raw * scale, dlogits, size)
    dq = scale * dscaled @ k
    dk = scale * dscaled.swapaxes(-1, -2) @ q
    dv = (p * factor).swapaxes(-1, -2) @ cot_out
    by_position = (dq, sum_groups(dk, group), sum_groups(dv, group))
    sizes = (
        abs(scale) * size @ np.abs(k),
        sum_groups(abs(scale) * size.swapaxes(-1, -2) @ np.abs(q), group),
        sum_groups((p * factor).swapaxes(-1, -2) @ np.abs(cot_out), group),
    )
    per_head = scores.to_shape((dsinks.shape[-2], 1))
    return Gradients(
        *(x.swapaxes(-2, -3).astype(dtype) for x in by_position),
        scale=np.asarray((dscaled * raw).sum(), wide),
        score=dscore,
        sinks=scores.Sum(per_head(dsinks)[:, 0], per_head(p_sink * size_row)[:, 0]),
        sizes=sizes,
    )


def variance(q, k, v, allowed, cot_out, extra: Extra):
    """Of out, and of the gradient of v, over all ways to drop weights at `extra.rate`, in float64.

    Both are sums of p · keep / (1 - rate) times a value or a cotangent, each kept by itself.
    """
    group = q.shape[-2] // k.shape[-2]
    q, k, v = by_head(q, k, v, np.float64)
    logits = scores.apply(extra.score, q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
    p, _, _ = softmax(logits, everywhere(allowed, q, k), extra.sinks)
    spread = p**2 * extra.rate / (1 - extra.rate)
    of_out = spread @ v**2
    of_dv = spread.swapaxes(-1, -2) @ np.asarray(cot_out, np.float64).swapaxes(-2, -3) ** 2
    return of_out.swapaxes(-2, -3), sum_groups(of_dv, group).swapaxes(-2, -3)


def tangent(q, k, v, allowed, scale, dq, dk, dv, dscale: Any = 0.0, dtype: Any = np.float64):
    """How out and lse move when q, k, v and scale move along dq, dk, dv and dscale."""
    wide = accumulator(dtype)
    scale = wide(q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = by_head(q, k, v, wide)
    dq, dk, dv = by_head(dq, dk, dv, wide)
    raw = q @ k.swapaxes(-1, -2)
    p, _, _ = softmax(raw * scale, everywhere(allowed, q, k))
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


def softmax(logits, allowed, sinks=None):
    """Weights and log-sum-exp of each row over the allowed keys, and the weight of its sink.

    0 and -inf where there is nothing to see.
    """
    logits = np.where(allowed, logits, -np.inf)
    sinks = np.full(logits.shape[-3], -np.inf) if sinks is None else np.asarray(sinks)
    sink = np.broadcast_to(sinks.astype(logits.dtype)[:, None, None], (*logits.shape[:-1], 1))
    peak = np.maximum(logits.max(-1, keepdims=True, initial=-np.inf), sink)
    peak = np.where(peak == -np.inf, 0, peak)
    grown, grown_sink = np.exp(logits - peak), np.exp(sink - peak)
    total = grown.sum(-1, keepdims=True) + grown_sink
    with np.errstate(divide="ignore"):
        lse = (peak + np.log(total))[..., 0]
    total = np.where(total == 0, 1, total)
    return grown / total, lse, (grown_sink / total)[..., 0]


def merge(outs, lses, dtype: Any = np.float64):
    """out and lse of all the keys, from those of disjoint sets of them."""
    wide = accumulator(dtype)
    shares, lse = shares_of(lses, wide)
    out = sum(x[..., None] * np.asarray(y, wide) for x, y in zip(shares, outs, strict=True))
    return np.asarray(out).astype(dtype), lse


def merge_gradients(outs, lses, cot_out, cot_lse, dtype: Any = np.float64):
    """What flows back to every out, and to every lse."""
    wide = accumulator(dtype)
    shares, _ = shares_of(lses, wide)
    whole, cot_out = merge(outs, lses, wide)[0], np.asarray(cot_out, wide)
    douts = [(x[..., None] * cot_out).astype(dtype) for x in shares]
    along = [(cot_out * (np.asarray(y, wide) - whole)).sum(-1) for y in outs]
    dlses = [x * (cot_lse + y) for x, y in zip(shares, along, strict=True)]
    return douts, [x.astype(wide) for x in dlses]


def shares_of(lses, wide):
    """The share of each part in the whole, 0 where no part sees a key; and the lse of the whole."""
    stacked = np.stack([np.asarray(x, wide) for x in lses])
    peak = stacked.max(0)
    peak = np.where(peak == -np.inf, 0, peak)
    grown = np.exp(stacked - peak)
    total = grown.sum(0)
    with np.errstate(divide="ignore"):
        lse = peak + np.log(total)
    return grown / np.where(total == 0, 1, total), lse


def count(start: Any, n: int):
    """[*start n]: the positions of n tokens that count up from each start."""
    return np.asarray(start)[..., None] + np.arange(n)


def near(q: Any, k: Any, low: int | None = None, high: int | None = None):
    """[*b 1 t s]: a query at p sees keys from p + low to p + high. q [*b t], k [*b s]."""
    ahead = np.asarray(k)[..., None, None, :] - np.asarray(q)[..., None, :, None]
    seen = np.ones(ahead.shape, bool)
    seen = seen if low is None else seen & (ahead >= low)
    return seen if high is None else seen & (ahead <= high)


def causal(t, s, offset: Any = 0):
    """[*offset 1 t s]: query i sees key j when j <= i + offset."""
    return near(count(offset, t), np.arange(s), None, 0)


def window(t, s, left: Any, right: Any = 0, offset: Any = 0):
    """[*offset 1 t s]: at most `left` keys behind and `right` keys ahead of position i + offset."""
    low = None if left is None else left * -1
    return near(count(offset, t), np.arange(s), low, right)


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


def prefix(q: Any, k: Any, length: Any):
    """[*b 1 t s]: keys at positions below `length`, and those at the query's own and before."""
    below = np.asarray(k)[..., None, None, :] < np.asarray(length)[..., None, None, None]
    return np.logical_or(below, near(q, k, None, 0))

"""Attention and its gradients in float64 NumPy, on as much of a workload as is affordable.

Small workloads are computed whole. In larger ones every head is checked on some of its queries
(out and dq need only one query's row of scores), and dk and dv, which need every query, on one
key/value head. Where weights are dropped, the queries are the first ones, and that head the first,
since that is where a contender can say which weights it drops (`chance.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from benchmarks.options import NOTHING, Head, Option
from benchmarks.workloads import Inputs, Kind, Workload

ROWS = 512
"""Queries to a block, so that a block's float64 scores stay small."""

OUTPUTS = {Kind.FORWARD: ("out",), Kind.GRADIENT: ("out", "dq", "dk", "dv")}
"""The names of a contender's outputs, in order."""


@dataclass(frozen=True)
class Piece:
    """The right values of `outputs[output][index]`."""

    output: int
    index: tuple
    want: np.ndarray
    variance: np.ndarray | None = None
    """Of the values, where weights are dropped at random and it is a simple sum."""


Kept: TypeAlias = Callable[[int, int, np.ndarray], np.ndarray]
"""(batch element, head, queries) to booleans [t s]: the weights that were not dropped."""


@dataclass(frozen=True)
class Rows:
    """What some queries of one head contribute; dk_sd and dv_se are summed over these queries.

    None: not asked for.
    """

    out_te: Any
    dq_td: Any = None
    dk_sd: Any = None
    dv_se: Any = None
    out_variance_te: Any = None
    dv_variance_se: Any = None


def attention_rows(
    q,
    k,
    v,
    cotangent,
    first,
    stop,
    *,
    gradient: bool,
    option: Option = NOTHING,
    at: Head | None = None,
    kept_ts: np.ndarray | None = None,
) -> Rows:
    """One head's queries q [t d] against all its keys; query i sees keys first[i]..stop[i]-1.

    `at` is for the option. Without `kept_ts` no weight is dropped: the mean over all ways to drop.
    """
    at = Head({}, 0, np.arange(len(q))) if at is None else at
    scale = 1 / np.sqrt(q.shape[1])
    key = np.arange(len(k))[None, :]
    allowed_ts = (first[:, None] <= key) & (key < stop[:, None])
    logits_ts, slope = option.score((q @ k.T) * scale, at)
    logits_ts = np.where(allowed_ts, logits_ts, -np.inf)
    sink = option.sink(at)
    peak = np.maximum(logits_ts.max(axis=1, keepdims=True), sink)
    p_ts = np.exp(logits_ts - peak)
    p_ts /= p_ts.sum(axis=1, keepdims=True) + np.exp(sink - peak)
    grown_ts = 1.0 if kept_ts is None else kept_ts / (1 - option.rate)
    w_ts = p_ts * grown_ts
    out = w_ts @ v
    odds = option.rate / (1 - option.rate)
    square_ts = np.square(p_ts) * odds if odds else None
    out_variance = None if square_ts is None else square_ts @ np.square(v)
    if not gradient:
        return Rows(out, out_variance_te=out_variance)
    mean = (cotangent * out).sum(axis=1, keepdims=True)
    dscaled_ts = p_ts * (cotangent @ v.T * grown_ts - mean) * slope * scale
    dv_variance = None if square_ts is None else square_ts.T @ np.square(cotangent)
    return Rows(
        out, dscaled_ts @ k, dscaled_ts.T @ q, w_ts.T @ cotangent, out_variance, dv_variance
    )


def is_whole(work: Workload, most_pairs: int) -> bool:
    """Whether `expected` computes every value of the workload."""
    return work.batch * work.heads * work.queries * work.keys <= most_pairs


def row_count(work: Workload, most_pairs: int) -> int:
    """How many queries of every head are looked at where not all of them are."""
    if is_whole(work, most_pairs):
        return work.queries
    return min(work.queries, max(4, most_pairs // (work.batch * work.heads * work.keys)))


def expected(
    work: Workload,
    inputs: Inputs,
    *,
    most_pairs: int = 2**24,
    seed: int = 0,
    kept: Kept | None = None,
) -> list[Piece]:
    """The right values of the workload's outputs, all of them or a sample.

    Where weights are dropped: those of `kept` or, without it, mean and variance.
    """
    random = np.random.default_rng(seed)
    gradient = work.kind is Kind.GRADIENT
    group = work.heads // work.kv_heads
    whole = is_whole(work, most_pairs)
    dropped = work.option.rate > 0
    rows_t = np.arange(row_count(work, most_pairs))
    if not whole and not dropped:
        inner = random.choice(work.queries, size=len(rows_t), replace=False)
        rows_t = np.unique(np.concatenate([[0, work.queries - 1], inner]))
    heads = [(b, n) for b in range(work.batch) for n in range(work.kv_heads)]
    summed = heads if whole else [heads[0 if dropped else random.integers(len(heads))]]
    pieces = []
    for b, n in heads:
        every_row = gradient and (b, n) in summed
        rows = np.arange(work.queries) if every_row else rows_t
        dk, dv, variance = 0.0, 0.0, 0.0
        for h in range(n * group, (n + 1) * group):
            for block in np.array_split(rows, -(-len(rows) // ROWS)):
                kept_ts = None if kept is None else kept(b, h, block)
                got = _block(work, inputs, b, h, n, block, gradient, kept_ts)
                out_variance = got.out_variance_te if dropped else None
                pieces.append(Piece(0, (b, block, h), got.out_te, out_variance))
                if gradient:
                    pieces.append(Piece(1, (b, block, h), got.dq_td))
                    if every_row:
                        dk, dv = dk + got.dk_sd, dv + got.dv_se
                        variance = variance + got.dv_variance_se if dropped else None
        if every_row:
            everything = (b, slice(None), n)
            dv_variance = np.asarray(variance) if dropped else None
            pieces += [
                Piece(2, everything, np.asarray(dk)),
                Piece(3, everything, np.asarray(dv), dv_variance),
            ]
    return pieces


def _block(
    work: Workload, inputs: Inputs, b: int, h: int, n: int, block, gradient: bool, kept_ts
) -> Rows:
    first, stop = work.mask.spans(work.queries, work.keys)
    return attention_rows(
        inputs.q[b, block, h].astype(np.float64),
        inputs.k[b, :, n].astype(np.float64),
        inputs.v[b, :, n].astype(np.float64),
        inputs.cotangent[b, block, h].astype(np.float64),
        first[block],
        stop[block],
        gradient=gradient,
        option=work.option,
        at=Head(inputs.extra, h, block),
        kept_ts=kept_ts,
    )

"""Attention and its gradients in float64 NumPy, on as much of a workload as is affordable.

Small workloads are computed whole. In larger ones every head is checked on some of its queries
(out and dq need only one query's row of scores), and dk and dv, which need every query, on one
key/value head.
"""

from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class Rows:
    """What some queries of one head contribute; dk_sd and dv_se are summed over these queries."""

    out_te: np.ndarray
    dq_td: np.ndarray
    dk_sd: np.ndarray
    dv_se: np.ndarray


def attention_rows(q, k, v, cotangent, first, stop, *, gradient: bool) -> Rows:
    """One head's queries q [t d] against all its keys; query i sees keys first[i]..stop[i]-1."""
    scale = 1 / np.sqrt(q.shape[1])
    at = np.arange(len(k))[None, :]
    allowed_ts = (first[:, None] <= at) & (at < stop[:, None])
    logits_ts = np.where(allowed_ts, (q @ k.T) * scale, -np.inf)
    p_ts = np.exp(logits_ts - logits_ts.max(axis=1, keepdims=True))
    p_ts /= p_ts.sum(axis=1, keepdims=True)
    out = p_ts @ v
    if not gradient:
        nothing = np.zeros(0)
        return Rows(out, nothing, nothing, nothing)
    dlogits_ts = p_ts * (cotangent @ v.T - (cotangent * out).sum(axis=1, keepdims=True))
    return Rows(out, dlogits_ts @ k * scale, dlogits_ts.T @ q * scale, p_ts.T @ cotangent)


def is_whole(work: Workload, most_pairs: int) -> bool:
    """Whether `expected` computes every value of the workload."""
    return work.batch * work.heads * work.queries * work.keys <= most_pairs


def expected(
    work: Workload, inputs: Inputs, *, most_pairs: int = 2**24, seed: int = 0
) -> list[Piece]:
    """The right values of the workload's outputs, all of them or a sample."""
    random = np.random.default_rng(seed)
    gradient = work.kind is Kind.GRADIENT
    group = work.heads // work.kv_heads
    whole = is_whole(work, most_pairs)
    rows_t = np.arange(work.queries)
    if not whole:
        count = max(4, most_pairs // (work.batch * work.heads * work.keys))
        inner = random.choice(work.queries, size=min(count, work.queries), replace=False)
        rows_t = np.unique(np.concatenate([[0, work.queries - 1], inner]))
    heads = [(b, n) for b in range(work.batch) for n in range(work.kv_heads)]
    summed = heads if whole else [heads[random.integers(len(heads))]]
    pieces = []
    for b, n in heads:
        every_row = gradient and (b, n) in summed
        rows = np.arange(work.queries) if every_row else rows_t
        dk, dv = 0.0, 0.0
        for h in range(n * group, (n + 1) * group):
            for block in np.array_split(rows, -(-len(rows) // ROWS)):
                got = _block(work, inputs, b, h, n, block, gradient)
                pieces.append(Piece(0, (b, block, h), got.out_te))
                if gradient:
                    pieces.append(Piece(1, (b, block, h), got.dq_td))
                    dk, dv = dk + got.dk_sd, dv + got.dv_se
        if every_row:
            everything = (b, slice(None), n)
            pieces += [
                Piece(2, everything, np.asarray(dk)),
                Piece(3, everything, np.asarray(dv)),
            ]
    return pieces


def _block(work: Workload, inputs: Inputs, b: int, h: int, n: int, block, gradient: bool) -> Rows:
    first, stop = work.mask.spans(work.queries, work.keys)
    return attention_rows(
        inputs.q[b, block, h].astype(np.float64),
        inputs.k[b, :, n].astype(np.float64),
        inputs.v[b, :, n].astype(np.float64),
        inputs.cotangent[b, block, h].astype(np.float64),
        first[block],
        stop[block],
        gradient=gradient,
    )

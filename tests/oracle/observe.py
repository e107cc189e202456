"""What every observation must show, of weights in NumPy float64. Imports nothing of ours.

Weights are [b h t s]; what is per query or key is [b t h ...] or [b s h ...], as lists of arrays.
"""

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from . import by_head, softmax


class Weights(NamedTuple):
    """Of every head, [b h t s]; lse [b h t]. logits are -inf where a pair is not allowed."""

    p: ndarray
    logits: ndarray
    lse: ndarray
    allowed: ndarray


def weights(q: ndarray, k: ndarray, allowed: ndarray) -> Weights:
    """Of q [b t h d] and k [b s n d], scaled by 1/√d."""
    q, k, _ = by_head(q, k, k, np.float64)
    logits = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    allowed = np.broadcast_to(allowed, logits.shape)
    p, lse, *_ = softmax(logits, allowed)
    return Weights(p, np.where(allowed, logits, -np.inf), lse, allowed)


def per_query(x: ndarray) -> ndarray:
    """[b h t ...] as [b t h ...]."""
    return np.moveaxis(x, 1, 2)


def log_sum_exp(w: Weights) -> list[ndarray]:
    return [per_query(w.lse)]


def row_max(w: Weights) -> list[ndarray]:
    return [per_query(w.logits.max(-1))]


def max_logit(w: Weights) -> list[ndarray]:
    return [w.logits.max((0, 2, 3))]


def entropy(w: Weights) -> list[ndarray]:
    surprise = np.where(w.p > 0, w.lse[..., None] - np.where(w.p > 0, w.logits, 0), 0)
    return [per_query((w.p * surprise).sum(-1))]


def top_keys(w: Weights, count: int) -> list[ndarray]:
    order = np.argsort(np.where(w.allowed, -w.p, 1), axis=-1, kind="stable")[..., :count]
    real = np.take_along_axis(w.allowed, order, -1)
    best = np.where(real, np.take_along_axis(w.p, order, -1), 0)
    return [per_query(best), per_query(np.where(real, order, -1))]


def received(w: Weights, of: ndarray | float = 1.0) -> list[ndarray]:
    """of: [t]."""
    each = np.broadcast_to(np.asarray(of), (w.p.shape[2],))[:, None]
    return [per_query((w.p * each).sum(-2)), per_query(w.allowed.sum(-2))]


def received_max(w: Weights) -> list[ndarray]:
    return [per_query(w.p.max(-2))]


def cells(w: Weights, count: int, how: str = "share") -> list[ndarray]:
    """In cells of ⌈t / count⌉ by ⌈s / count⌉; how: "share", "peak" or "sum"."""
    t, s = w.p.shape[2:]
    down, across = -(-t // count), -(-s // count)
    pool = {"peak": np.max}.get(how, np.sum)
    rows = [w.p[:, :, i : i + down] for i in range(0, t, down)]
    cut = lambda r: np.stack(
        [pool(r[..., j : j + across], axis=(-1, -2)) for j in range(0, s, across)], -1
    )
    picture = np.stack([cut(r) for r in rows], -2)
    if how != "share":
        return [picture]
    live = np.asarray(w.allowed.any(-1))
    queries = np.stack([live[:, :, i : i + down].sum(-1) for i in range(0, t, down)], -1)
    return [picture / np.maximum(queries, 1)[..., None]]


def rows(w: Weights, queries: list[int]) -> list[ndarray]:
    return [w.p[:, :, queries]]


def columns(w: Weights, keys: list[int]) -> list[ndarray]:
    return [per_query(w.p[..., keys])]


def diagonal(w: Weights, offset: int) -> list[ndarray]:
    i = np.arange(w.p.shape[2])
    j = i + offset
    inside = (j >= 0) & (j < w.p.shape[3])
    seen = w.allowed[:, :, i[inside], j[inside]]
    return [w.p[:, :, i[inside], j[inside]].sum(-1) / np.maximum(seen.sum(-1), 1)]


def distance(w: Weights) -> list[ndarray]:
    """mean, variance, profile, with query i at position i."""
    t, s = w.p.shape[2:]
    back = np.arange(t)[:, None] - np.arange(s)[None, :]
    mass = np.maximum(w.p.sum(-1), 1e-300)
    mean = (w.p * back).sum(-1) / mass
    edges = [0, *(2**i for i in range((max(s, t) - 1).bit_length()))]
    stops = [*edges[1:], np.inf]
    inside = [(back >= a) & (back < b) for a, b in zip(edges, stops, strict=True)]
    live = np.maximum(w.allowed.any(-1).sum(-1), 1)[..., None]
    profile = np.stack([(w.p * x).sum((-1, -2)) for x in (*inside, back < 0)], -1)
    variance = (w.p * back**2).sum(-1) / mass - mean**2
    return [per_query(mean), per_query(np.maximum(variance, 0)), profile / live]


def mass_on(w: Weights, keys: ndarray) -> list[ndarray]:
    """keys: booleans [s]."""
    return [per_query(w.p[..., keys].sum(-1))]


def apply(w: Weights, u: ndarray) -> list[ndarray]:
    """u: [s x]."""
    return [per_query(w.p @ u)]


def apply_transposed(w: Weights, x: ndarray) -> list[ndarray]:
    """x: [h t x]."""
    return [per_query(w.p.swapaxes(-1, -2) @ x)]

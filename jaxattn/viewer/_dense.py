"""What `wanted` asks for, of weights that are at hand, in NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxattn.observe.keys import ReceivedMass
from jaxattn.observe.map import PEAK, Reduce, count_of, side_of
from jaxattn.observe.queries import Tops
from jaxattn.viewer._labels import ids_of
from jaxattn.viewer._looks import Looks, only_first
from jaxattn.viewer._wanted import is_short, opened_queries, top_count


def observed(
    weights: Float[np.ndarray, "h t s"],
    allowed: Bool[np.ndarray, "h t s"],
    tokens: Sequence[str],
    keys: Sequence[str],
    *,
    placed: bool,
    cells: int,
    reduce: Reduce,
    opened: Sequence[int] | None,
) -> dict[str, Any]:
    """The observations of one layer by name, as `attend(..., observe=wanted(...))` shows them.

    Without logits there is no largest one, and no lse: both are NaN.
    """
    h, t, s = weights.shape
    p = np.where(allowed, weights.astype(np.float64), 0)
    per_query = lambda x: x.swapaxes(0, 1)  # [h t ...] as [t h ...]
    live = np.asarray(allowed.any(axis=-1))
    surprise = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)
    surprise[np.isnan(p).any(axis=-1)] = np.nan
    count = top_count(t, s)
    ranked = np.where(allowed & ~np.isnan(p), p, -1)
    order = np.argsort(-ranked, axis=-1, kind="stable")[..., :count]
    best = np.take_along_axis(ranked, order, axis=-1)
    real = best >= 0
    tops = Tops(per_query(np.where(real, best, 0)), per_query(np.where(real, order, -1)))
    queries = np.maximum(_pooled(live[..., None], cells, 1), 1)
    seen: dict[str, Any] = {
        "map": _peaks(p, cells) if reduce is PEAK else _pooled(p, cells, cells) / queries,
        "pairs": _pooled(allowed, cells, cells),
        "entropy": per_query(surprise),
        "received": ReceivedMass(per_query(p.sum(axis=1)), per_query(allowed.sum(axis=1))),
        "top": tops,
        "looks": _looks(p, allowed, *ids_of(tokens, keys), placed),
        "largest": np.full(h, np.nan),
        "lse": np.full((t, h), np.nan),
    }
    if is_short(t, s):
        # Less the lse of their row, which the softmax does not see.
        seen["logits"] = np.log(np.maximum(p, np.finfo(np.float32).tiny))
    else:
        seen["rows"] = p[:, list(opened_queries(t, opened))]
    return seen


def _looks(
    p: Float[np.ndarray, "h t s"],
    allowed: Bool[np.ndarray, "h t s"],
    ids: Int[np.ndarray, " t"],
    key_ids: Int[np.ndarray, " s"],
    placed: bool,
) -> Looks:
    on = lambda which: np.where(which, p, 0).sum(axis=-1).T
    t, s = p.shape[1:]
    back = np.arange(t)[:, None] - np.arange(s)
    before = np.concatenate([[-1], key_ids[:-1]])
    first = on(np.arange(s) == 0)
    keys = allowed.sum(axis=-1).T
    if not placed:
        return only_first(first, keys)
    after_same = (ids[:, None] == before) & (back >= 0)
    distance = (p * np.abs(back)).sum(axis=-1).T
    return Looks(
        first, on(back == 0), on(back == 1), on(back == -1), on(after_same), distance, keys
    )


def _pooled(x: np.ndarray, down: int, across: int) -> Float[np.ndarray, "h rows columns"]:
    """Sums of the cells of a `Map`; `across` = 1 leaves one column."""
    return _in_cells(x, down, across).sum(axis=(2, 4))


def _peaks(x: np.ndarray, cells: int) -> Float[np.ndarray, "h rows columns"]:
    """The largest of each cell of a `Map`."""
    return _in_cells(x, cells, cells).max(axis=(2, 4))


def _in_cells(x: np.ndarray, down: int, across: int) -> Float[np.ndarray, "h rows a columns b"]:
    """Cut into cells of a by b, with zeros beyond the end."""
    h, t, s = x.shape
    rows, columns = count_of(t, down), count_of(s, across)
    a, b = side_of(t, down), side_of(s, across)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, rows * a - t), (0, columns * b - s)))
    return padded.reshape(h, rows, a, columns, b)

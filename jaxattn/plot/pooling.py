"""Maps of fewer cells, and how much more than alike."""

import numpy as np
from jaxtyping import Bool, Real

from jaxattn.observe.map import PEAK, SHARE, Reduce, count_of, side_of
from jaxattn.plot.arrays import Numbers, numbers


def pooled(
    weights: Real[Numbers, "*b t s"],
    down: int,
    across: int,
    *,
    reduce: Reduce = SHARE,
    queries: int = 1,
    count: int | None = None,
) -> Real[np.ndarray, "*b rows columns"]:
    """A cell to `down` rows by `across` columns, as `observe.Map` makes them.

    NaN counts for nothing; a cell of nothing else is NaN.

    weights: exact, or a map that is pooled already.
    reduce: SHARE, the sum over keys and the mean over queries that see any; PEAK, the largest.
    queries, count: of a map that is pooled already, how many queries a row holds, and how many
      there are in all, since the last row may hold fewer.
    Raises:
      ValueError: `reduce` is neither.
    """
    if reduce not in (SHARE, PEAK):
        raise ValueError(f"pooled reduces by SHARE or PEAK, got {reduce!r}")
    array = numbers(weights)
    t = array.shape[-2]
    if down == across == 1:
        return array
    known = ~np.isnan(array)
    add = lambda x: _every(np.add, _every(np.add, x, across, -1), down, -2)
    some = add(known) > 0
    if reduce is PEAK:
        cells = _every(np.fmax, _every(np.fmax, array, across, -1), down, -2)
    else:
        held = np.full(t, queries)
        held[-1] = (count or t * queries) - (t - 1) * queries
        live = held[:, None] * known.any(axis=-1, keepdims=True)
        total = np.maximum(_every(np.add, live, down, -2), 1)
        cells = add(np.where(known, array, 0) * live) / total
    return np.where(some, cells, np.nan)


def _every(reduce: np.ufunc, x: np.ndarray, side: int, axis: int) -> np.ndarray:
    """x reduced over each run of `side` along an axis, the last perhaps shorter."""
    return reduce.reduceat(
        x.astype(int) if x.dtype == bool else x, range(0, x.shape[axis], side), axis
    )


def shown(allowed: Bool[Numbers, "*b t s"], rows: int, columns: int) -> Bool[np.ndarray, "*b r c"]:
    """In which of so many rows and columns some query may see some key.

    Raises:
      ValueError: the pairs cannot be pooled to so many.
    """
    array = np.asarray(allowed)
    t, s = array.shape[-2:]
    sides = [side_of(n, cells) for n, cells in ((t, rows), (s, columns))]
    if [count_of(t, rows), count_of(s, columns)] != [rows, columns]:
        raise ValueError(
            f"allowed must have the shape of the weights, or of the pairs that a map of [{rows} "
            f"{columns}] is pooled from, got {array.shape}"
        )
    return _every(np.add, _every(np.add, array, sides[1], -1), sides[0], -2) > 0


def enrichment(
    weights: Real[Numbers, "*b rows columns"], allowed: Bool[Numbers, "*#b t s"]
) -> Real[np.ndarray, "*b rows columns"]:
    """The weight over what it would be if all keys were alike: 1 is as if they were.

    Of exact weights p it is p · n, n being how many keys the query may see; so row 0 under a causal
    mask, which is always 1, says nothing here. NaN where nothing may be seen.

    weights: exact, or a map by SHARE of the pairs that `allowed` has.
    Raises:
      ValueError: the shapes disagree.
    """
    array, pairs = numbers(weights), np.asarray(allowed)
    may = shown(pairs, *array.shape[-2:])
    alike = pairs / np.maximum(pairs.sum(axis=-1, keepdims=True), 1)
    t, s = pairs.shape[-2:]
    down, across = side_of(t, array.shape[-2]), side_of(s, array.shape[-1])
    alike = pooled(np.where(pairs.any(axis=-1, keepdims=True), alike, np.nan), down, across)
    return np.divide(
        array, alike, out=np.full(np.broadcast_shapes(array.shape, may.shape), np.nan), where=may
    )

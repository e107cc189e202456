"""`wanted`: the observations that a page needs of every layer."""

from collections.abc import Sequence

import numpy as np

from jaxattn._observation import Observation
from jaxattn.observe import (
    PEAK,
    SHARE,
    Entropy,
    LogSumExp,
    Map,
    MaxLogit,
    Received,
    Rows,
    TopKeys,
)
from jaxattn.observe.map import Reduce
from jaxattn.viewer._labels import check_tokens, ids_of
from jaxattn.viewer._looks import Cells, LooksAt

EXACT = 128  # tokens, up to which every pair has a cell of its own
SHORT = 32  # tokens, up to which every pair is opened down to its arithmetic
TOP, TOP_OF_MANY = 8, 5  # keys with the largest weights, of a query, and of one of many


def wanted(
    tokens: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    placed: bool | None = None,
    cells: int = EXACT,
    reduce: Reduce = SHARE,
    opened: Sequence[int] | None = None,
) -> dict[str, Observation]:
    """What to observe in every layer for a page: `attend(..., observe=wanted(tokens))`.

    No observation grows with the number of pairs, but for a map of at most `cells` each way and
    the rows of the queries that are `opened`.

    Args:
      tokens: of the queries. keys: of the keys, where those are others.
      placed: whether queries and keys share positions, so that there is a previous token. If not
        given, where their tokens are the same.
      cells: of the map, each way. reduce: what a cell shows of the weights in it, where it holds
        several: SHARE, or PEAK for stripes that are thin.
      opened: the queries that a reader can open down to their arithmetic, as in the array, where
        there are more than 32 tokens; if not given, the last one and three before it.
    """
    queries = check_tokens(tokens, "tokens")
    others = queries if keys is None else check_tokens(keys, "keys")
    ids, key_ids = ids_of(queries, others)
    before = np.concatenate([[-1], key_ids[:-1]]).astype(np.int32)
    placed = keys is None if placed is None else placed
    observe: dict[str, Observation] = {
        "map": Map(cells, check_reduce(reduce)),
        "pairs": Cells(cells),
        "entropy": Entropy(),
        "received": Received(),
        "top": TopKeys(top_count(len(queries), len(others))),
        "looks": LooksAt(ids, before, placed),
        "largest": MaxLogit(),
        "lse": LogSumExp(),
    }
    if is_short(len(queries), len(others)):
        observe["logits"] = Cells(SHORT, logits=True)
    else:
        observe["rows"] = Rows(np.array(opened_queries(len(queries), opened), np.int32))
    return observe


def check_reduce(reduce: Reduce) -> Reduce:
    """
    Raises:
      ValueError: it is neither SHARE nor PEAK.
    """
    if reduce not in (SHARE, PEAK):
        raise ValueError(f"the maps of a page are SHARE or PEAK, got {reduce!r}")
    return reduce


def is_short(t: int, s: int) -> bool:
    return max(t, s) <= SHORT


def top_count(t: int, s: int) -> int:
    """How many keys are kept of a query."""
    return min(TOP if max(t, s) <= EXACT else TOP_OF_MANY, s)


def opened_queries(t: int, opened: Sequence[int] | None) -> tuple[int, ...]:
    """Which queries are opened, the one to begin with first.

    Raises:
      ValueError: one that is not there.
    """
    if opened is None:
        return tuple(dict.fromkeys(t * n // 4 - 1 for n in (4, 3, 2, 1) if t * n >= 4))
    chosen = tuple(dict.fromkeys(int(i) for i in opened))
    for i in chosen:
        if not 0 <= i < t:
            raise ValueError(f"opened holds queries from 0 to {t - 1}, got {i}")
    return chosen

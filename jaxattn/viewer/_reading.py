"""`Reading`: what a page shows of one model on one input, as plain arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxattn.observe.map import Reduce
from jaxattn.viewer._labels import ids_of


class Statistics(NamedTuple):
    """One number for each layer and head: means over the queries that see more than one key.

    A query that sees one key has to look there, which would tell nothing of the head.

    entropy: in nats. spread: the same as a share of what it would be if all keys that a query sees
    had the same weight. sink: the weight of the first key. previous, itself, next: of the token
    before, of the token itself, of the one after. induction: of the keys right after an earlier
    token that is the same as the query's, over the queries that have one. distance: |p - r| in
    positions. largest: the largest logit.
    NaN where there is no such thing: no previous token if queries and keys are of two texts, no
    induction if no token repeats, no logit if only weights are known.
    """

    entropy: Float[np.ndarray, "l h"]
    spread: Float[np.ndarray, "l h"]
    sink: Float[np.ndarray, "l h"]
    previous: Float[np.ndarray, "l h"]
    itself: Float[np.ndarray, "l h"]
    next: Float[np.ndarray, "l h"]
    induction: Float[np.ndarray, "l h"]
    distance: Float[np.ndarray, "l h"]
    largest: Float[np.ndarray, "l h"]


THRESHOLD = 0.5
SPREAD = 0.95

NAMES = {
    "previous": ("previous-token head", THRESHOLD),
    "itself": ("self head", THRESHOLD),
    "next": ("next-token head", THRESHOLD),
    "induction": ("induction head", THRESHOLD),
    "sink": ("sink head", THRESHOLD),
    "spread": ("averaging head", SPREAD),
}
"""What a head is called whose statistic is at least so large."""


class Tops(NamedTuple):
    """The keys with the largest weights, of some queries.

    queries: which. keys: from the largest weight down, -1 where a query sees fewer.
    """

    queries: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, "l h n k"]
    keys: Int[np.ndarray, "l h n k"]


class Steps(NamedTuple):
    """What goes into every head, for all tokens.

    x: what the projections read, if it is known. scale: of each layer. logits: what the softmax
    gets where a pair is not hidden, if scores come between it and the products. sinks: of the
    denominators, if there are any.
    """

    q: Float[np.ndarray, "l h t d"]
    k: Float[np.ndarray, "l h s d"]
    v: Float[np.ndarray, "l h s e"] | None
    x: Float[np.ndarray, "l t m"] | None
    scale: Float[np.ndarray, " l"]
    logits: Float[np.ndarray, "l h t s"] | None
    sinks: Float[np.ndarray, "l h"] | None


class Opened(NamedTuple):
    """What goes into every head, for n queries and the k keys that each gives most weight.

    queries: which. keys: -1 where a query sees fewer. lse: in nats, over all keys and the sink.
    out: the mix of the values of all keys.
    """

    queries: Int[np.ndarray, " n"]
    keys: Int[np.ndarray, "l h n k"]
    weights: Float[np.ndarray, "l h n k"]
    lse: Float[np.ndarray, "l h n"]
    q: Float[np.ndarray, "l h n d"]
    k: Float[np.ndarray, "l h n k d"]
    v: Float[np.ndarray, "l h n k e"] | None
    out: Float[np.ndarray, "l h n e"] | None
    scale: Float[np.ndarray, " l"]


class NextTokens(NamedTuple):
    """The most probable next tokens after every position, at any of some temperatures.

    logits: the largest, from the largest down. tokens: what they belong to. rest: for each
    temperature T the log-sum-exp of all other logits / T: with it probabilities are exact.
    came, came_logit, rank: the token that did come next, "" for none, its logit, its rank from 1.
    """

    tokens: Sequence[Sequence[str]]
    logits: Float[np.ndarray, "t k"]
    temperatures: tuple[float, ...]
    rest: Float[np.ndarray, "t n"]
    came: Sequence[str]
    came_logit: Float[np.ndarray, " t"]
    rank: Int[np.ndarray, " t"]
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The attention of a model with l layers of h heads, on one input.

    tokens, keys: of the queries and the keys. same: whether they are the same tokens.
    maps: cells as `Map` with `reduce`, which is SHARE or PEAK. pairs: how many pairs of a cell a
      head may see; 0 is hidden.
    sees: how many keys each query may see.
    entropy: of each query, in nats. received: the weight that each key gets from all queries.
    notes: what else made queries and keys, in words. changes: what comes between their products
      and the softmax, in words.
    """

    name: str
    tokens: tuple[str, ...]
    keys: tuple[str, ...]
    same: bool
    reduce: Reduce
    maps: Float[np.ndarray, "l h rows columns"]
    pairs: Int[np.ndarray, "l h rows columns"]
    sees: Int[np.ndarray, "l h t"]
    entropy: Float[np.ndarray, "l h t"]
    received: Float[np.ndarray, "l h s"]
    tops: Tops
    statistics: Statistics
    steps: Steps | Opened | None = None
    next_tokens: NextTokens | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return self.maps.shape[0]

    @property
    def heads(self) -> int:
        return self.maps.shape[1]

    def names(self, layer: int, head: int) -> list[str]:
        """What people call such a head: see `NAMES`."""
        return [
            name
            for field, (name, least) in NAMES.items()
            if getattr(self.statistics, field)[layer, head] >= least
        ]

    def _repr_html_(self) -> str:
        from jaxattn.viewer._page import page

        return page(self)._repr_html_()


def statistics_of(
    observed: Sequence[Mapping[str, Any]],
    tokens: Sequence[str],
    keys: Sequence[str],
    placed: bool,
) -> Statistics:
    """`Statistics` from the observations of all layers, as NumPy arrays without a batch axis."""
    looks = [seen["looks"] for seen in observed]
    sees = np.stack([x.keys for x in looks])  # [l t h]
    counts = sees > 1
    stack = lambda field: np.stack([np.asarray(getattr(x, field), np.float64) for x in looks])
    entropy = np.stack([np.asarray(seen["entropy"], np.float64) for seen in observed])
    nothing = np.full(sees[:, 0].shape, np.nan)
    mean = lambda x: _mean(x, counts)
    by_place = lambda field: mean(stack(field)) if placed else nothing
    repeats = counts & _repeats(*ids_of(tokens, keys))[:, None]
    most = np.where(counts, np.log(np.maximum(sees, 1)), 0)
    full = mean(most)
    spread = np.divide(mean(entropy), full, out=nothing.copy(), where=full > 0)
    return Statistics(
        entropy=mean(entropy),
        spread=spread,
        sink=mean(stack("first")),
        previous=by_place("previous"),
        itself=by_place("itself"),
        next=by_place("next"),
        induction=_mean(stack("induction"), repeats) if placed else nothing,
        distance=by_place("distance"),
        largest=np.stack([np.asarray(seen["largest"], np.float64) for seen in observed]),
    )


def _mean(x: Float[np.ndarray, "l t h"], counts: np.ndarray) -> Float[np.ndarray, "l h"]:
    """Over the queries that count; NaN where none does, or where one of them is NaN."""
    counts = np.broadcast_to(counts, x.shape)
    many = counts.sum(axis=1)
    total = np.where(counts, x, 0).sum(axis=1)
    return np.divide(total, many, out=np.full(many.shape, np.nan), where=many > 0)


def _repeats(ids: Int[np.ndarray, " t"], key_ids: Int[np.ndarray, " s"]) -> np.ndarray:
    """Which queries come after a token like their own that has a token after it.

    Queries are the last of the keys, where there are fewer.
    """
    first = {}
    for i, token in enumerate(key_ids[:-1].tolist()):
        first.setdefault(token, i)
    ahead = len(key_ids) - len(ids)
    never = len(key_ids)
    return np.array([first.get(token, never) < i + ahead for i, token in enumerate(ids.tolist())])

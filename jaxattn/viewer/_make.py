"""Readings from plain arrays: weights, queries and keys, or observations made elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxattn._axes import AnyArray
from jaxattn._mask import Mask
from jaxattn.attend import Scoring, attend
from jaxattn.masks import EVERYTHING
from jaxattn.observe.map import SHARE, Reduce
from jaxattn.positions import Given
from jaxattn.viewer import _dense
from jaxattn.viewer._arrays import layered, plain, unbatched
from jaxattn.viewer._labels import check_tokens
from jaxattn.viewer._reading import NextTokens, Reading, Tops, statistics_of
from jaxattn.viewer._steps import changes_of, steps_of
from jaxattn.viewer._wanted import EXACT, check_reduce, wanted


class Layer(NamedTuple):
    """What the attention of one layer is made of. Only the queries and keys are needed.

    x: what the projections read. The rest is as in `jaxattn.attend`. What `model.steps(ids, layer)`
    of `jaxattn.models` gives may stand in its place.
    """

    q: Float[AnyArray, "t h d"]
    k: Float[AnyArray, "s n d"]
    v: Float[AnyArray, "s n e"] | None = None
    x: Float[AnyArray, "t m"] | None = None
    mask: Mask = EVERYTHING
    score: Scoring | None = None
    scale: Any = None
    sinks: Float[AnyArray, " h"] | None = None
    positions: Given = None


def from_weights(
    weights: Any,
    tokens: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    allowed: Bool[AnyArray, "..."] | None = None,
    layers: Sequence[Any] | None = None,
    next_tokens: NextTokens | None = None,
    name: str = "",
    cells: int = EXACT,
    reduce: Reduce = SHARE,
    opened: Sequence[int] | None = None,
) -> Reading:
    """A reading of weights at hand, such as `output_attentions=True` of transformers gives.

        reading = from_weights(model(**inputs, output_attentions=True).attentions, tokens)

    Args:
      weights: of every layer, [l h t s]: one array, or one [h t s] for each layer; of a batch of
        one also [1 h t s]. NumPy, JAX or torch.
      tokens: of the queries. keys: of the keys, if those are others, as in cross-attention.
      allowed: which pairs are not hidden, to broadcast to [l h t s]. If not given, a pair is taken
        as hidden whose weight is 0 in all layers and heads.
      layers: a `Layer` for each layer, for the steps that lead to the weights. Where one has a
        score, what comes of it is told by the weights: their logarithms.
      next_tokens: of a language model, from `next_tokens(logits, ...)`.
      name: of the model or the input.
      cells: of the maps, each way. reduce: what a cell shows of several weights: SHARE or PEAK.
      opened: queries that a reader can open down to their arithmetic, where tokens are many.
    Raises:
      ValueError: shapes disagree with each other or with the tokens.
    """
    array = np.stack([np.asarray(x, np.float32) for x in layered(weights, "weights", 3)])
    t, s = array.shape[2:]
    tokens = check_tokens(tokens, "tokens", t)
    others = tokens if keys is None else check_tokens(keys, "keys", s)
    if keys is None and t != s:
        raise ValueError(
            f"weights have {t} queries and {s} keys, and tokens of the queries alone; pass keys="
        )
    if allowed is None:
        open_ts = np.broadcast_to((array != 0).any(axis=(0, 1)), array.shape)
    else:
        open_ts = np.broadcast_to(np.asarray(plain(allowed), bool), array.shape)
    show = lambda each, sees: _dense.observed(
        each,
        sees,
        tokens,
        others,
        placed=keys is None,
        cells=cells,
        reduce=check_reduce(reduce),
        opened=opened,
    )
    return from_observed(
        [show(*pair) for pair in zip(array, open_ts, strict=True)],
        tokens,
        keys=keys,
        layers=layers,
        next_tokens=next_tokens,
        name=name,
        reduce=reduce,
        opened=opened,
    )


def from_qk(
    q: Any,
    k: Any,
    v: Any = None,
    *,
    tokens: Sequence[str],
    keys: Sequence[str] | None = None,
    x: Any = None,
    next_tokens: NextTokens | None = None,
    name: str = "",
    notes: Sequence[str] = (),
    cells: int = EXACT,
    reduce: Reduce = SHARE,
    opened: Sequence[int] | None = None,
    **options: Any,
) -> Reading:
    """A reading of queries and keys, at any length: no array of all pairs is made.

        reading = from_qk(q, k, v, tokens=tokens, mask=jaxattn.Causal())

    Args:
      q, k, v: of every layer, as the scores are made of them, rotated if they are: [l t h d],
        [l s n d] and [l s n e], or a list with one array for each layer, or of one layer alone; of
        a batch of one also [1 t h d]. Without v the values and what a head puts out are not shown.
      x: what the projections read, [l t m].
      notes: what else made q and k, in words, such as "rotary positions".
      options: as `jaxattn.attend` takes them: mask, score, scale, sinks, positions, backend; the
        same for every layer. Where layers differ, pass what `attend(..., observe=wanted(tokens))`
        shows of each to `from_observed`.
      The rest: as in `from_weights`.
    Raises:
      ValueError: shapes disagree with each other or with the tokens.
    """
    qs, ks = layered(q, "q", 3), layered(k, "k", 3)
    vs = [None] * len(qs) if v is None else layered(v, "v", 3)
    xs = [None] * len(qs) if x is None else layered(x, "x", 2)
    for title, each in (("k", ks), ("v", vs), ("x", xs)):
        if len(each) != len(qs):
            raise ValueError(
                f"q, k, v and x have as many layers each, got {len(qs)} of q and {len(each)} of "
                f"{title}; pass a list with one array for each layer"
            )
    tokens = check_tokens(tokens, "tokens", qs[0].shape[0])
    others = tokens if keys is None else check_tokens(keys, "keys", ks[0].shape[0])
    if keys is None and len(ks[0]) != len(tokens):
        raise ValueError(
            f"there are {len(tokens)} queries and {len(ks[0])} keys, and tokens of the queries "
            f"alone; pass keys="
        )
    placed = keys is None or options.get("positions") is not None
    observe = wanted(tokens, keys, placed=placed, cells=cells, reduce=reduce, opened=opened)
    backend = {"backend": options.pop("backend")} if "backend" in options else {}
    layers, seen = [], []
    for one_q, one_k, one_v, one_x in zip(qs, ks, vs, xs, strict=True):
        layers.append(Layer(one_q, one_k, one_v, one_x, **options))
        values = one_k[..., :1] if one_v is None else one_v
        shown = attend(one_q, one_k, values, observe=observe, **options, **backend).observed
        seen.append(jax.tree.map(np.asarray, shown))
    return from_observed(
        seen,
        tokens,
        keys=None if keys is None else others,
        placed=placed,
        layers=layers,
        next_tokens=next_tokens,
        name=name,
        notes=notes,
        reduce=reduce,
        opened=opened,
    )


def from_observed(
    observed: Sequence[Mapping[str, Any]],
    tokens: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    placed: bool | None = None,
    layers: Sequence[Any] | None = None,
    next_tokens: NextTokens | None = None,
    name: str = "",
    notes: Sequence[str] = (),
    reduce: Reduce = SHARE,
    opened: Sequence[int] | None = None,
) -> Reading:
    """A reading of what `attend(..., observe=wanted(tokens))` showed in every layer.

        hidden, observed = model(ids, observe=wanted(tokens))
        steps = [model.steps(ids, layer) for layer in range(len(observed))]
        reading = from_observed(observed, tokens, layers=steps)

    Args:
      observed: of every layer, by the names that `wanted` has; of one sequence, without a batch
        axis or with one of size 1. placed, reduce, opened: as `wanted` had them.
      layers: a `Layer` for each layer, or what has its fields: the steps that lead to the weights.
      The rest: as in `from_weights` and `from_qk`.
    Raises:
      ValueError: observations are missing, or disagree with the tokens.
    """
    tokens = check_tokens(tokens, "tokens")
    others = tokens if keys is None else check_tokens(keys, "keys")
    placed = keys is None if placed is None else placed
    seen = [unbatched(each, len(tokens), len(others)) for each in observed]
    if not seen:
        raise ValueError("a reading has at least one layer, got none; pass a list of one")
    if len({each["map"].shape for each in seen}) > 1:
        shapes = [each["map"].shape for each in seen]
        raise ValueError(f"all layers have as many heads, got maps {shapes}; make two readings")
    if layers is not None and len(layers) != len(seen):
        raise ValueError(f"layers has one for each of {len(seen)} layers, got {len(layers)}")
    stack = lambda get: np.stack([np.asarray(get(each)) for each in seen])
    heads_first = lambda x: np.moveaxis(x, 2, 1)  # [l t h ...] as [l h t ...]
    pairs = stack(lambda each: each["pairs"]).round().astype(np.int64)
    tops = _tops(seen, len(tokens), pairs.shape[2])
    if next_tokens is not None and len(next_tokens.logits) != len(tokens):
        raise ValueError(
            f"next_tokens are those after each of {len(tokens)} tokens, got "
            f"{len(next_tokens.logits)}"
        )
    return Reading(
        name=str(name),
        tokens=tokens,
        keys=others,
        same=keys is None,
        reduce=reduce,
        maps=np.where(pairs > 0, stack(lambda each: each["map"]), 0).astype(np.float32),
        pairs=pairs,
        sees=heads_first(stack(lambda each: each["looks"].keys)).astype(np.int64),
        entropy=heads_first(stack(lambda each: each["entropy"])).astype(np.float32),
        received=heads_first(stack(lambda each: each["received"].mass)).astype(np.float32),
        tops=tops,
        statistics=statistics_of(seen, tokens, others, placed),
        steps=None if layers is None else steps_of(layers, seen, len(tokens), opened),
        next_tokens=next_tokens,
        notes=tuple(notes),
        changes=() if layers is None else changes_of(layers),
    )


def _tops(seen: Sequence[Mapping[str, Any]], t: int, rows: int) -> Tops:
    """Of every query where each has a row of the map, else of the last query of each row."""
    side = -(-t // rows)
    queries = np.minimum(np.arange(1, rows + 1) * side, t) - 1
    pick = lambda x: np.moveaxis(np.asarray(x)[queries], 1, 0)  # [h n k]
    weights = np.stack([pick(each["top"].weights) for each in seen])
    keys = np.stack([pick(each["top"].keys) for each in seen])
    return Tops(queries, weights.astype(np.float32), keys.astype(np.int64))

"""What a walk through a head needs: for all tokens if they are few, else for some queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxattn._score import items_of
from jaxattn.scores import ALiBi, Bias, RelativeBias, SoftCap
from jaxattn.viewer._arrays import plain
from jaxattn.viewer._reading import Opened, Steps
from jaxattn.viewer._wanted import is_short, opened_queries, top_count


def steps_of(
    layers: Sequence[Any],
    seen: Sequence[Mapping[str, Any]],
    t: int,
    opened: Sequence[int] | None,
) -> Steps | Opened:
    """Of layers with q, k and so on, and what was observed in them."""
    heads = seen[0]["map"].shape[0]
    q = np.stack([_by_head(layer.q, heads) for layer in layers])
    k = np.stack([_by_head(layer.k, heads) for layer in layers])
    known = all(getattr(layer, "v", None) is not None for layer in layers)
    v = np.stack([_by_head(layer.v, heads) for layer in layers]) if known else None
    given = [getattr(layer, "scale", None) for layer in layers]
    scale = np.array([q.shape[-1] ** -0.5 if x is None else float(x) for x in given])
    if not is_short(t, k.shape[2]):
        return _open(q, k, v, scale, seen, t, opened_queries(t, opened))
    xs = [getattr(layer, "x", None) for layer in layers]
    x = None if any(one is None for one in xs) else np.stack([_unbatched(one, 2) for one in xs])
    sinks = [getattr(layer, "sinks", None) for layer in layers]
    scored = any(items_of(getattr(layer, "score", None)) for layer in layers)
    return Steps(
        q,
        k,
        v,
        x,
        scale,
        np.stack([each["logits"] for each in seen]) if scored and "logits" in seen[0] else None,
        None if any(one is None for one in sinks) else np.stack([plain(one) for one in sinks]),
    )


def _open(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray | None,
    scale: np.ndarray,
    seen: Sequence[Mapping[str, Any]],
    t: int,
    queries: Sequence[int],
) -> Opened:
    which = np.array(queries, int)
    rows = np.stack([each["rows"] for each in seen])  # [l h n s]
    lse = np.moveaxis(np.stack([each["lse"] for each in seen])[:, which], 2, 1)
    count = top_count(t, rows.shape[-1])
    keys = np.argsort(-rows, axis=-1, kind="stable")[..., :count]
    weights = np.take_along_axis(rows, keys, axis=-1)
    chosen = lambda x: np.take_along_axis(x[:, :, None], keys[..., None], axis=3)
    return Opened(
        which,
        np.where(weights > 0, keys, -1),
        weights,
        lse,
        q[:, :, which],
        chosen(k),
        None if v is None else chosen(v),
        None if v is None else np.einsum("lhns,lhse->lhne", rows, v),
        scale,
    )


def changes_of(layers: Sequence[Any]) -> tuple[str, ...]:
    """What comes between the scaled products and the softmax, in words, each once."""
    words = (_words(item) for each in layers for item in items_of(getattr(each, "score", None)))
    sinks = any(getattr(layer, "sinks", None) is not None for layer in layers)
    return (*dict.fromkeys(words), *(("a sink in the denominator",) if sinks else ()))


def _words(item: Any) -> str:
    if isinstance(item, SoftCap):
        return f"soft cap: c · tanh(x / c) with c = {float(np.asarray(item.cap)):g}"
    kinds = {
        ALiBi: "ALiBi: a slope times the distance is subtracted",
        RelativeBias: "relative bias: a learned number for each distance is added",
        Bias: "bias: a number for each pair is added",
    }
    return next((text for kind, text in kinds.items() if isinstance(item, kind)), repr(item))


def _by_head(x: Any, heads: int) -> np.ndarray:
    """[t n d] as [h t d], each key/value head as often as query heads read it."""
    x = np.moveaxis(_unbatched(x, 3), 1, 0)
    return np.repeat(x, heads // len(x), axis=0)


def _unbatched(x: Any, axes: int) -> np.ndarray:
    x = np.asarray(plain(x), np.float32)
    return x[0] if x.ndim == axes + 1 and len(x) == 1 else x

"""What of a reading goes into the page: a description in JSON, and packed arrays by name."""

from typing import Any

import numpy as np

from jaxattn.observe import PEAK
from jaxattn.viewer._encode import pack, quantise
from jaxattn.viewer._labels import readable
from jaxattn.viewer._reading import NAMES, NextTokens, Opened, Reading, Steps

MOST_STEPS = 4_000_000  # bytes of numbers, for the walk through all heads
MOST_OPENED = 800_000  # the same, where tokens are many and other numbers need the room


def contents(reading: Reading) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(description, arrays by name). Layers are apart, so that each is unpacked when needed."""
    l, h = reading.layers, reading.heads
    arrays: dict[str, dict[str, Any]] = {}
    pairs, which_pairs = _distinct(reading.pairs.reshape(l * h, *reading.pairs.shape[2:]))
    sees, which_sees = _distinct(reading.sees.reshape(l * h, -1))
    arrays["pairs"], arrays["sees"] = pack(pairs.astype(np.uint32)), pack(sees.astype(np.uint32))
    tops = reading.tops
    arrays["tops/queries"] = pack(tops.queries.astype(np.int32))
    for i in range(l):
        arrays[f"map/{i}"] = pack(quantise(reading.maps[i], reading.pairs[i] == 0))
        arrays[f"entropy/{i}"] = pack(reading.entropy[i])
        arrays[f"received/{i}"] = pack(reading.received[i])
        arrays[f"tops/keys/{i}"] = pack(tops.keys[i].astype(np.int32))
        arrays[f"tops/weights/{i}"] = pack(tops.weights[i])
    description = {
        "name": reading.name,
        "tokens": [readable(x) for x in reading.tokens],
        "keys": None if reading.same else [readable(x) for x in reading.keys],
        "peak": reading.reduce is PEAK,
        "layers": l,
        "heads": h,
        "rows": reading.maps.shape[2],
        "columns": reading.maps.shape[3],
        "pairs": which_pairs,
        "sees": which_sees,
        "statistics": _statistics(reading),
        "names": [[reading.names(i, j) for j in range(h)] for i in range(l)],
        "thresholds": [[field, name, least] for field, (name, least) in NAMES.items()],
        "notes": reading.notes,
        "changes": reading.changes,
        "steps": _steps(reading, arrays),
        "next": _next(reading.next_tokens, arrays),
    }
    return description, arrays


def _distinct(x: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The arrays that differ, and which of them each is."""
    found: dict[bytes, int] = {}
    which = [found.setdefault(each.tobytes(), len(found)) for each in x]
    firsts = [which.index(i) for i in range(len(found))]
    return x[firsts], which


def _statistics(reading: Reading) -> dict[str, list[list[float | None]]]:
    number = lambda x: round(float(x), 6) if np.isfinite(x) else None
    return {
        field: [[number(x) for x in row] for row in values]
        for field, values in reading.statistics._asdict().items()
    }


def _steps(reading: Reading, arrays: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    steps = reading.steps
    if steps is None:
        return None
    if isinstance(steps, Steps):
        size = 4 * (steps.q.size + steps.k.size + (0 if steps.v is None else steps.v.size))
        if size > MOST_STEPS:
            return {"kind": "too large"}
        each = {"q": steps.q, "k": steps.k, "v": steps.v, "x": steps.x, "logits": steps.logits}
        kind = {"kind": "all", "sinks": None if steps.sinks is None else steps.sinks.tolist()}
    else:
        steps = _fitting(steps)
        if not len(steps.queries):
            return {"kind": "too large"}
        fields = steps._asdict()
        kind = {"kind": "some", "queries": fields.pop("queries").tolist()}
        each = {name: x for name, x in fields.items() if name != "scale"}
        each["keys"] = each["keys"].astype(np.int32)
    for name, x in each.items():
        for i, of_layer in enumerate(() if x is None else x):
            whole = of_layer.dtype.kind == "i"
            arrays[f"steps/{name}/{i}"] = pack(of_layer if whole else of_layer.astype(np.float32))
    has = [name for name, x in each.items() if x is not None]
    return {**kind, "has": has, "scale": steps.scale.tolist(), "width": steps.q.shape[-1]}


def _fitting(steps: Opened) -> Opened:
    """As many of the queries as there is room for, from the first on, or none."""
    per_query = ("keys", "weights", "lse", "q", "k", "v", "out")
    chosen = {name: x for name, x in steps._asdict().items() if name in per_query and x is not None}
    one = sum(4 * x[:, :, 0].size for x in chosen.values())
    many = min(len(steps.queries), MOST_OPENED // max(one, 1))
    cut = {name: x[:, :, :many] for name, x in chosen.items()}
    return steps._replace(queries=steps.queries[:many], **cut)


def _next(known: NextTokens | None, arrays: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    if known is None:
        return None
    words = dict.fromkeys(word for row in known.tokens for word in row)
    number = {word: i for i, word in enumerate(words)}
    arrays["next/tokens"] = pack(np.array([[number[w] for w in row] for row in known.tokens]))
    arrays["next/logits"] = pack(known.logits.astype(np.float32))
    arrays["next/rest"] = pack(known.rest.astype(np.float32))
    arrays["next/came"] = pack(known.came_logit.astype(np.float32))
    return {
        "words": [readable(word) for word in words],
        "temperatures": list(known.temperatures),
        "came": [readable(word) if word else "" for word in known.came],
        "rank": known.rank.tolist(),
        "vocabulary": known.vocabulary,
    }

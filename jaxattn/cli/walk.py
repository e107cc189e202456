"""`--steps`: one head from X to what it adds, as text, with every shape."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from rich.cells import cell_len

from jaxattn.viewer._labels import readable

FEATURES = 6  # that are shown of a row
KEYS = 16  # up to which all are shown; else half of them from each end


def walk(reading: Any, weights: Any, layer: int, head: int) -> Iterator[str]:
    """The parts of the text, in the order of computation.

    reading: a `jaxattn.viewer.Reading` with the steps of all tokens. weights: the projections of
    the head, as `attention.head(head)` gives them.
    Raises:
      ValueError: it has those of some tokens only.
    """
    steps, tokens = reading.steps, [*map(readable, reading.tokens)]
    t = len(tokens)
    if not hasattr(steps, "logits"):
        raise ValueError(
            f"--steps prints heads of at most 32 tokens, got {t}; cut the text, or open the page"
        )
    q, k, v = (_wide(x[layer, head]) for x in (steps.q, steps.k, steps.v))
    x, scale = _wide(steps.x[layer]), float(steps.scale[layer])
    allowed = reading.pairs[layer, head] > 0
    given = _wide(reading.maps[layer, head])
    w_o = _wide(weights.w_o)
    yield f"{reading.name}, layer {layer}, head {head}, {t} tokens"
    yield _features(f"X, what the head reads: {_shape(x)}", x, tokens)
    for name, each, bias in (("Q", q, "b_q"), ("K", k, "b_k"), ("V", v, "b_v")):
        added = f" + {bias}" if getattr(weights, bias) is not None else ""
        small = name.lower()
        w = getattr(weights, f"w_{small}")
        title = f"{name} = X W_{small}{added}: {_shape(x)} · {_shape(w)} = {_shape(each)}"
        yield _features(title, each, tokens)
    for note in (*reading.notes, *reading.changes):
        yield f"Note: {note}"
    raw = q @ k.T
    yield _pairs(f"Scores = Q Kᵀ: {_shape(q)} · {_shape(k.T)} = {_shape(raw)}", raw, tokens)
    scaled = raw * scale
    yield _pairs(f"Scaled = scores · {scale:.6g}", scaled, tokens)
    if steps.logits is not None:
        scaled = _wide(steps.logits[layer, head])
        yield _pairs("Logits, after what the notes say", scaled, tokens, allowed)
    if allowed.all():
        yield "Masked: nothing, every query sees every key"
    else:
        yield _pairs("Masked: a query does not see what is blank", scaled, tokens, allowed)
    yield _pairs("Weights = softmax over the keys", given, tokens, allowed, digits=3)
    out = given @ v
    yield _features(f"Out = weights V: {_shape(given)} · {_shape(v)} = {_shape(out)}", out, tokens)
    added = out @ w_o
    title = f"Added = out W_o of this head: {_shape(out)} · {_shape(w_o)} = {_shape(added)}"
    yield _features(title, added, tokens)


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _shape(x: Any) -> str:
    return " × ".join(map(str, x.shape))


def _features(title: str, x: Float[np.ndarray, "t d"], tokens: Sequence[str]) -> str:
    """The first and the last of them."""
    shown = _ends(x.shape[1], FEATURES)
    return _table(title, x, tokens, [str(i) for i in range(x.shape[1])], shown, None, 2)


def _pairs(
    title: str,
    x: Float[np.ndarray, "t s"],
    tokens: Sequence[str],
    allowed: Bool[np.ndarray, "t s"] | None = None,
    digits: int = 2,
) -> str:
    return _table(title, x, tokens, tokens, _ends(x.shape[1], KEYS), allowed, digits)


def _ends(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [*range(most // 2), *range(count - most // 2, count)]


def _table(
    title: str,
    x: Float[np.ndarray, "t n"],
    rows: Sequence[str],
    columns: Sequence[str],
    shown: Sequence[int],
    allowed: Bool[np.ndarray, "t n"] | None,
    digits: int,
) -> str:
    see = lambda i, j: allowed is None or allowed[i, j]
    number = lambda i, j: f"{x[i, j]:.{digits}f}" if see(i, j) else ""
    cells = [["", *(columns[j] for j in shown)]]
    cells += [[row, *(number(i, j) for j in shown)] for i, row in enumerate(rows)]
    gap = next((i for i, (a, b) in enumerate(pairwise(shown)) if b > a + 1), None)
    if gap is not None:
        cells = [[*row[: gap + 2], "…", *row[gap + 2 :]] for row in cells]
    wide = [max(cell_len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        first = row[0] + " " * (wide[0] - cell_len(row[0]))
        rest = (" " * (w - cell_len(c)) + c for c, w in zip(row[1:], wide[1:], strict=True))
        lines.append("  ".join(("  " + first, *rest)).rstrip())
    return "\n".join((title, *lines))

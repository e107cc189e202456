"""The next tokens of a language model, for any of the temperatures that a page offers."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from jaxattn._axes import AnyArray
from jaxattn.viewer._reading import NextTokens

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)
ROWS = 64  # that are in float64 at a time


def next_tokens(
    logits: Float[AnyArray, "t v"],
    token_of: Sequence[str] | Callable[[int], str],
    *,
    ids: Sequence[int] | None = None,
    top: int = 10,
    temperatures: Sequence[float] = TEMPERATURES,
) -> NextTokens:
    """The `top` most probable next tokens after every position, and what the others weigh.

    Args:
      logits: of the vocabulary, after every position.
      token_of: the string of each id, a list or a function.
      ids: of the tokens that were read; so the page can say what did come next, and its rank.
      temperatures: those that a reader can choose; probabilities are exact at each.
    Raises:
      ValueError: logits do not have two axes, ids another length, or a temperature is not positive.
    """
    if logits.ndim != 2:
        raise ValueError(
            f"logits are [t v], of each position and each id, got shape {logits.shape}; of a batch "
            f"pass one sequence"
        )
    t, v = logits.shape
    if ids is not None and len(ids) != t:
        raise ValueError(f"ids has one id for each position, {t}, got {len(ids)}")
    if not all(x > 0 for x in temperatures):
        raise ValueError(f"temperatures are above 0, got {tuple(temperatures)}")
    name = token_of if callable(token_of) else token_of.__getitem__
    top = min(top, v)
    coming = [] if ids is None else [int(i) for i in ids[1:]]
    best, rest, came, rank = np.empty((t, top), int), [], np.full(t, np.nan), np.zeros(t, int)
    kept = np.empty((t, top))
    for start in range(0, t, ROWS):
        part = np.asarray(logits[start : start + ROWS]).astype(np.float64)
        order = np.argsort(-part, axis=1, kind="stable")[:, :top]
        rows = slice(start, start + len(part))
        best[rows], kept[rows] = order, np.take_along_axis(part, order, axis=1)
        for i, row in enumerate(part):
            if start + i < len(coming):
                logit = row[coming[start + i]]
                came[start + i], rank[start + i] = logit, 1 + (row > logit).sum()
        np.put_along_axis(part, order, -np.inf, axis=1)
        rest.append(np.stack([_log_sum_exp(part / x) for x in temperatures], axis=1))
    return NextTokens(
        tokens=[[name(int(i)) for i in row] for row in best],
        logits=kept,
        temperatures=tuple(map(float, temperatures)),
        rest=np.concatenate(rest),
        came=[*(name(i) for i in coming), ""] if ids is not None else [""] * t,
        came_logit=came,
        rank=rank,
        vocabulary=v,
    )


def _log_sum_exp(x: Float[np.ndarray, "t v"]) -> Float[np.ndarray, " t"]:
    peak = x.max(axis=1)
    peak = np.where(np.isneginf(peak), 0, peak)
    with np.errstate(divide="ignore"):
        return peak + np.log(np.exp(x - peak[:, None]).sum(axis=1))

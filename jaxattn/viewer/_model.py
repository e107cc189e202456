"""`from_model`: a reading of a model of `jaxattn.models` on a text, in one pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxattn._axes import AnyArray
from jaxattn.observe.map import SHARE, Reduce
from jaxattn.viewer._arrays import unbatched
from jaxattn.viewer._make import from_observed
from jaxattn.viewer._next import TEMPERATURES
from jaxattn.viewer._reading import NextTokens, Opened, Reading, Steps
from jaxattn.viewer._steps import changes_of, steps_of
from jaxattn.viewer._wanted import EXACT, wanted

MOST_LOGITS = 1 << 22  # at a time: 16 MiB
TOP = 10  # next tokens of each position


def from_model(
    model: Any,
    ids: Integer[AnyArray, " t"],
    tokens: Sequence[str],
    *,
    types: Integer[AnyArray, " t"] | None = None,
    token_of: Callable[[int], str] | None = None,
    steps: bool = True,
    name: str = "",
    cells: int = EXACT,
    reduce: Reduce = SHARE,
    opened: Sequence[int] | None = None,
    follow: Callable[[Iterator[Any]], Iterable[Any]] = iter,
) -> Reading:
    """A reading of a model on a text: maps, statistics, top keys, the steps of every head, and the
    next tokens of a causal language model.

        model, tokenizer = models.load(folder), models.load_tokenizer(folder)
        text = tokenizer.encode("We are here")
        reading = from_model(model, text.ids, text.labels, token_of=tokenizer.label)

    The model runs once. A layer is kept as what a page shows of it, and logits are made for a few
    positions at a time, so a text may be long.

    Args:
      model: from `jaxattn.models.load`. ids: of the tokens. tokens: their strings.
      types: of two texts in one sequence, 0 and 1, as the tokenizer gives them.
      token_of: the string of an id. If not given, next tokens are not shown.
      steps: whether heads can be opened down to their arithmetic.
      follow: gets an iterator over the layers and gives one, to show how far it is: tqdm.tqdm.
      The rest: as in `from_weights`.
    Raises:
      ValueError: tokens disagree with ids; what the model raises.
    """
    from jaxattn.models.visit import visit  # needs Flax, which readings do not

    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"ids are of one sequence, [t], got shape {ids.shape}; pass one of them")
    if len(ids) != len(tokens):
        raise ValueError(f"tokens has a string for each of {len(ids)} ids, got {len(tokens)}")
    observe = wanted(tokens, cells=cells, reduce=reduce, opened=opened)
    if not any(layer.attention.score for layer in model.layers):
        observe.pop("logits", None)  # they are the scaled products
    layers = visit(model, ids, types=types, observe=observe)
    seen, parts, notes, changes, hidden = [], [], {}, {}, None
    for one in follow(layers):
        each = jax.tree.map(np.asarray, one.observed)
        seen.append(each)
        notes |= dict.fromkeys(_notes(model.layers[one.layer].attention))
        changes |= dict.fromkeys(changes_of([one.steps]))
        if steps:
            flat = unbatched(each, len(ids), len(ids))
            parts.append(steps_of([one.steps], [flat], len(ids), opened))
        hidden = one.hidden
    options: dict[str, Any] = {"reduce": reduce, "opened": opened}
    reading = from_observed(seen, tokens, name=name, notes=tuple(notes), **options)
    if steps:
        reading = replace(reading, steps=_joined(parts), changes=tuple(changes))
    if token_of is not None and model.info.causal and model.head is not None:
        reading = replace(reading, next_tokens=_next_tokens(model, hidden, ids, token_of))
    return reading


def _notes(attention: Any) -> list[str]:
    """What else makes queries and keys, and which keys are seen."""
    rotary = ["rotary positions turn queries and keys"] if attention.rope is not None else []
    window = attention.window
    return rotary + ([] if window is None else [f"a window of {window} tokens in some layers"])


def _joined(parts: Sequence[Steps | Opened]) -> Steps | Opened:
    """Those of all layers from those of each."""
    fields = zip(parts[0]._fields, zip(*parts, strict=True), strict=True)
    join = lambda each: None if any(x is None for x in each) else np.concatenate(each)
    whole = {name: each[0] if name == "queries" else join(each) for name, each in fields}
    return type(parts[0])(**whole)  # pyright: ignore[reportArgumentType]


def _next_tokens(
    model: Any, hidden: Any, ids: np.ndarray, token_of: Callable[[int], str]
) -> NextTokens:
    t, v = len(ids), model.info.vocabulary
    rows = max(min(t, MOST_LOGITS // v), 1)
    coming = np.append(ids[1:], 0)
    many = min(TOP, v)
    parts = []
    for start in range(0, t, rows):
        at = np.minimum(np.arange(start, start + rows), t - 1)  # all parts share a program
        part = _read(model.logits(hidden[at]), coming[at], many)
        parts.append([np.asarray(x)[: t - start] for x in part])
    best, logits, rest, came, rank = (np.concatenate(x) for x in zip(*parts, strict=True))
    came, rank = came.astype(np.float64), rank.astype(int)
    came[-1], rank[-1] = np.nan, 0
    known = {int(i): token_of(int(i)) for i in np.unique(best)}
    return NextTokens(
        tokens=[[known[int(i)] for i in row] for row in best],
        logits=logits.astype(np.float64),
        temperatures=TEMPERATURES,
        rest=rest.astype(np.float64),
        came=[*(token_of(int(i)) for i in ids[1:]), ""],
        came_logit=came,
        rank=rank,
        vocabulary=v,
    )


@partial(jax.jit, static_argnums=2)
def _read(logits: Float[Array, "n v"], coming: Any, many: int) -> tuple[Array, ...]:
    """The `many` largest, which they are; the log-sum-exp of the others at each temperature; and
    the logit and the rank of the token that came."""
    best, which = jax.lax.top_k(logits, many)
    others = logits.at[jnp.arange(len(logits))[:, None], which].set(-jnp.inf)
    rest = [jax.nn.logsumexp(others / x, axis=-1) for x in TEMPERATURES]
    came = jnp.take_along_axis(logits, coming[:, None], axis=-1)
    return which, best, jnp.stack(rest, axis=-1), came[:, 0], 1 + (logits > came).sum(axis=-1)

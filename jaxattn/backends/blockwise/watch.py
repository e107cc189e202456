"""Observations while tiles go by: their states as arrays, and what a tile adds to them.

A state is an array with leading axes [b t h], [b s h] or [b h], or a tree of them. What a tile of a
run of heads adds has leading axes [batches kv group], and then its rows or its keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._axes import Index, cut, put, put_axis
from jaxattn._observation import KEY, QUERY, BoundObservation, Seen, Watch, states_of_no_pairs
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Place, Span
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.walk import Run, Walk, to_rows


def start(walk: Walk, watch: Watch, dtype: Any) -> tuple[Any, ...]:
    """The states of no pairs."""
    states = states_of_no_pairs(walk.sizes, watch, dtype)
    lead = len(walk.sizes.batch)
    return jax.tree.map(lambda x: x.reshape(walk.batches, *x.shape[lead:]), states)


def nothing(walk: Walk, watch: Watch, run: Run, rows: int, keys: int, dtype: Any) -> Any:
    """What a tile without a pair adds."""
    lead = {QUERY: (rows,), KEY: (keys,)}

    def one(observation: BoundObservation) -> Any:
        shape = run.batches, run.kv, run.group, *lead.get(observation.per, ())
        grow = lambda x: jnp.broadcast_to(x, (*shape, *jnp.shape(x)))
        return jax.tree.map(grow, observation.start(walk.sizes, dtype))

    return tuple(map(one, watch))


def look(
    watch: Watch,
    tiles: tile.Products,
    lse: LogSumExp,
    rule: Rule,
    place: Place,
    counts: Array | None,
    counts_rows: Array | None,
) -> tuple[Any, ...]:
    """What a tile of one head adds to each state.

    counts, counts_rows: the keys and rows that are in no earlier tile; None for all. A row that was
    met before adds nothing, except to what there is one of for each query: it is the same again.
    """
    scaled, logits, peak, p = tiles
    live = ~jnp.isneginf(lse.peak)
    norm = jnp.exp(-lse.log_total)
    if rule.sinks is not None:
        lse, share = lse.with_sink(rule.sinks.logits)
        norm = norm * share
    if p is None:
        shift = jnp.where(live, lse.peak, jnp.inf)
        p = jnp.exp((logits - shift[:, None]) - lse.log_total[:, None])
        norm = jnp.ones_like(norm)
    allowed = tile.allows(rule, place, counts)
    allowed = jnp.broadcast_to(True if allowed is None else allowed, logits.shape)
    queries = rule.mask.count(place)
    if queries is None:
        queries = allowed.sum(axis=0, dtype=jnp.int32)
    elif counts is not None:
        queries = jnp.where(counts, queries, 0)
    queries = queries.astype(jnp.int32)
    rest = lse.value, live, place, rule.positions, bool(rule.score)
    seen = Seen(p, norm, logits, scaled, allowed, queries, peak, *rest)
    once = seen if counts_rows is None else _new_rows(seen, counts_rows)
    return tuple(each.absorb(seen if each.per is QUERY else once) for each in watch)


def _new_rows(seen: Seen, new: Array) -> Seen:
    """`seen` with only the rows that are new."""
    allowed = seen.allowed & new[:, None]
    return seen._replace(
        p=jnp.where(new[:, None], seen.p, 0),
        logits=jnp.where(new[:, None], seen.logits, -jnp.inf),
        scaled=jnp.where(new[:, None], seen.scaled, -jnp.inf),
        allowed=allowed,
        queries=allowed.sum(axis=0, dtype=jnp.int32),
        peak=jnp.where(new, seen.peak, -jnp.inf),
        live=seen.live & new,
    )


def widen(watch: Watch, added: Any, at: Index, empty: Any) -> Any:
    """`added` with the keys' axis as long as in `empty`, its first key at `at`."""

    def one(observation: BoundObservation, added: Any, empty: Any) -> Any:
        if observation.per is not KEY:
            return added
        widened = lambda x, whole: put_axis(whole, x, at, axis=3)
        return jax.tree.map(widened, added, empty)

    return tuple(one(*x) for x in zip(watch, added, empty, strict=True))


def add(watch: Watch, states: Any, added: Any, run: Run, rows: Span, first_key: Index) -> Any:
    """The states after a tile, or a block of rows, of a run of heads."""

    def one(observation: BoundObservation, state: Any, added: Any) -> Any:
        per_head = observation.per not in (QUERY, KEY)
        first = rows.start if observation.per is QUERY else first_key
        lead = (run.batch, run.q_head) if per_head else (run.batch, first, run.q_head)

        def fit(x: Array) -> Array:
            return x.reshape(x.shape[0], -1, *x.shape[3:]) if per_head else to_rows(x)

        added = jax.tree.map(fit, added)

        def starts(x: Array) -> tuple[Index, ...]:
            return (*lead, *(0,) * (x.ndim - len(lead)))

        here = jax.tree.map(lambda x, new: cut(x, starts(x), new.shape), state, added)
        # A block of rows holds all that there is of them; rows met before are the same again.
        merged = added if observation.per is QUERY else observation.merge(here, added)
        changed = lambda x, new: put(x, new.astype(x.dtype), starts(x))
        return jax.tree.map(changed, state, merged)

    return tuple(one(*x) for x in zip(watch, states, added, strict=True))

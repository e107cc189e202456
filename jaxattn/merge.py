"""Partial results over different keys, put together."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._axes import Attended, accumulator
from jaxattn._observation import Observation, Shares, by_name
from jaxattn._softmax import Partial, base


def merge(
    first: Attended, *others: Attended, observe: Mapping[str, Observation] | None = None
) -> Attended:
    """What `attend` over all the keys would give, from its results over disjoint sets of them.

    Sinks and dropout belong to one softmax: give sinks to one of the parts only.

    Args:
      first, others: results for the same queries, each over keys of its own.
      observe: the observations that were made of each part, as given to `attend`; those of any one
        part, where they hold arrays with a number for each of its keys. `LogSumExp`, `RowMax`,
        `MaxLogit`, `Apply` and `MassOn` with booleans can be merged, and `Entropy` where no part
        has sinks, which the results do not tell.
    Returns:
      out in the dtype of `first.out`, and lse and what is observed of all the keys. All are
      differentiable, through everything in the parts.
    Raises:
      ValueError: the results are not for the same queries, or have other observations than
        `observe`, or one that cannot be merged.
      TypeError: something that is not a result of `attend`.
    Source: Dao et al. 2022, section 3.1.
    """
    for part in (first, *others):
        if not isinstance(part, Attended):
            raise TypeError(
                f"merge takes results of attend, each with its out and lse, got a "
                f"{type(part).__name__}; pass what attend returned, or Attended(out, lse)"
            )
    observe = _observations((first, *others), observe)
    for other in others:
        if other.out.shape != first.out.shape or other.lse.shape != first.lse.shape:
            raise ValueError(
                f"merge takes results for the same queries, got out {first.out.shape} and "
                f"{other.out.shape}, lse {first.lse.shape} and {other.lse.shape}; attend with the "
                f"same q to different k and v"
            )
    parts = (first, *others)
    acc = accumulator(first.out.dtype)
    lse = [part.lse.astype(jnp.promote_types(acc, part.lse.dtype)) for part in parts]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, lse))
    sets = [
        Partial(x, jnp.ones_like(x), part.out).about(peak)
        for x, part in zip(lse, parts, strict=True)
    ]
    out, merged = functools.reduce(Partial.add, sets).finish()
    total, log_total = jnp.exp(merged.log_total), merged.log_total
    shares = Shares(
        tuple(x.total / total for x in sets),
        tuple(jnp.where(jnp.isneginf(x), 0, x - base(peak) - log_total) for x in lse),
        merged.value,
    )
    observed = {
        name: each.merge_results([part.observed[name] for part in parts], shares)
        for name, each in observe.items()
    }
    for name, result in observed.items():
        if result is NotImplemented:
            raise ValueError(
                f"what {observe[name]!r} shows of parts of the keys, as {name!r}, does not tell "
                f"what it would show of all; leave it out of the parts, and ask for it afterwards: "
                f"jaxattn.observe.observe(q, k, merged.lse, {{...}}, mask=...) with all keys"
            )
    return Attended(out.astype(first.out.dtype), merged.value, observed)


def _observations(parts: tuple[Attended, ...], observe: Any) -> Mapping[str, Observation]:
    """`observe`, if it is what the parts show."""
    for part in parts:
        if part.observed and observe is None:
            raise ValueError(
                f"merge has to know what made {sorted(part.observed)} of a part; pass observe=, as "
                f"to attend, or drop them with part._replace(observed={{}})"
            )
    named = by_name(observe)
    for part in parts:
        if set(part.observed) != set(named):
            raise ValueError(
                f"every part shows what `observe` names, got {sorted(named)} in observe and "
                f"{sorted(part.observed)} in a part; attend to each part with the same names"
            )
    return named

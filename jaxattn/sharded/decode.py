"""A few queries, which every device has, over keys that are shared out: a long cache."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, Attended, count_to
from jaxattn._content import as_array
from jaxattn._function import keep
from jaxattn._observation import KEY, Observation, check_observations
from jaxattn._problem import Problem, Whole, check
from jaxattn._softmax import LogSumExp, base
from jaxattn._solve import Scoring, run
from jaxattn._value import Shift
from jaxattn._varying import vary, varying
from jaxattn.backends.protocol import Backend, Call
from jaxattn.backends.select import AUTO, check_backend
from jaxattn.dropout import Dropout
from jaxattn.masks import EVERYTHING, Mask
from jaxattn.positions import Frame, Given
from jaxattn.sharded.local import observe_again
from jaxattn.sharded.observing import over_devices
from jaxattn.sharded.parts import moved


def decode(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    axis: str,
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
) -> Attended:
    """`jaxattn.attend` of whole queries to keys and values that are shared out contiguously.

    Inside `jax.shard_map` over `axis`: q is the same on every device, k and v are what it has, say
    of a cache; so are arrays with an axis of keys and none of queries. Each device attends to its
    keys, and the results are merged by lse: what is sent is a result of each query, and no key.
    `jaxattn.cache` does so with `axis=`. Where the heads of a cache are shared out instead, call
    `jaxattn.attend`, or `jaxattn.cache` without an axis: nothing is sent.

    Args:
      positions: `END`, or where the queries are, for what goes by positions. Keys that a cache does
        not hold yet are hidden by `Lengths(k=...)`, which counts those of all devices.
      The rest as in `jaxattn.attend`.
    Returns:
      out, lse and what is observed, the same on every device; what is observed of keys, of those
      that it has.
    Source: Dao et al. 2023, "Flash-Decoding", over devices.
    """
    q, k, v = (as_array(x, name) for name, x in (("q", q), ("k", k), ("v", v)))
    rule = mask, score, scale, sinks, dropout, positions
    whole = whole_of(axis, q.shape[-3], k.shape[-3])
    return over_keys(axis, *check(q, k, v, *rule, whole=whole), observe, check_backend(backend))


def whole_of(axis: str, t: int, s: int) -> Whole:
    """Of a problem of all t queries and a device's s keys."""
    me, n = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    return Whole(t, s * n, count_to(t), me * s + count_to(s))


def over_keys(
    axis: str,
    problem: Problem,
    frame: Frame,
    observe: Mapping[str, Observation] | None,
    backend: Backend,
) -> Attended:
    """`decode` of what is checked."""
    observations = check_observations(observe, frame, problem.q.dtype)
    own, sizes = problem.rule.sinks, problem.sizes
    problem = problem._replace(rule=problem.rule._replace(sinks=None))
    given = problem, tuple(observations.values())
    given = vary(given, varying(given) | (frozenset({axis}) if varying(problem.k) else frozenset()))
    by = Shift(k=jnp.reshape(jax.lax.axis_index(axis) * sizes.s, (1,) * len(sizes.batch)))
    here, watched = moved(given, by)
    backend.choose(Call(here, watched))
    out, lse, _, live = run(backend, here, ())
    merged, total = _merged(axis, out, lse)
    if own is not None:
        total, share = total.with_sink(own.logits)
        merged = merged * share[..., None]
    states = keep(watched, observe_again(backend, here, watched, total.value))
    live = jax.lax.psum(live.astype(jnp.int32), axis) > 0
    shown = {}
    for (name, each), part, x in zip(observations.items(), watched, states, strict=True):
        shown[name] = each.finish(x if each.per is KEY else over_devices(axis, part, x), live)
    return Attended(merged.astype(out.dtype), total.value, shown)


def _merged(axis: str, out: Array, lse: Array) -> tuple[Any, LogSumExp]:
    peak = jax.lax.pmax(jax.lax.stop_gradient(lse), axis)
    weight = jnp.exp(lse - base(peak))
    total = jax.lax.psum(weight, axis)
    mixed = jax.lax.psum(weight[..., None] * out.astype(lse.dtype), axis)
    seen = jnp.where(total == 0, 1, total)
    return mixed / seen[..., None], LogSumExp(peak, jnp.log(seen))

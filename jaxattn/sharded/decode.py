"""A few queries, which every device has, over keys that are shared out: a long cache."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, Attended, count_to
from jaxattn._content import as_array
from jaxattn._problem import Whole, check
from jaxattn._softmax import LogSumExp, base
from jaxattn._solve import Scoring, run
from jaxattn._value import Shift
from jaxattn._varying import vary, varying
from jaxattn.backends.protocol import Backend, Call
from jaxattn.backends.select import AUTO, check_backend
from jaxattn.masks import EVERYTHING, Mask
from jaxattn.positions import Given
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
    backend: Backend = AUTO,
) -> Attended:
    """`jaxattn.attend` of whole queries to keys and values that are shared out contiguously.

    Inside `jax.shard_map` over `axis`: q is the same on every device, k and v are what it has, say
    of a cache; so are arrays with an axis of keys and none of queries. Each device attends to its
    keys, and the results are merged by lse: what is sent is a result of each query, and no key.
    Where the heads of a cache are shared out instead, call `jaxattn.attend`: nothing is sent.

    Args:
      positions: `END`, or where the queries are, for what goes by positions. Keys that a cache does
        not hold yet are hidden by `Lengths(k=...)`, which counts those of all devices.
      The rest as in `jaxattn.attend`.
    Returns:
      out and lse, the same on every device.
    Source: Dao et al. 2023, "Flash-Decoding", over devices.
    """
    q, k, v = (as_array(x, name) for name, x in (("q", q), ("k", k), ("v", v)))
    me, n = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    t, s = q.shape[-3], k.shape[-3]
    whole = Whole(t, s * n, count_to(t), me * s + count_to(s))
    problem, _ = check(q, k, v, mask, score, scale, sinks, None, positions, whole=whole)
    own = problem.rule.sinks
    problem = problem._replace(rule=problem.rule._replace(sinks=None))
    problem = vary(problem, varying(problem) | (frozenset({axis}) if varying(k) else frozenset()))
    by = Shift(k=jnp.reshape(me * s, (1,) * len(problem.sizes.batch)))
    here, _ = moved((problem, ()), by)
    check_backend(backend).choose(Call(here, ()))
    out, lse, _, _ = run(backend, here, ())
    merged, total = _merged(axis, out, lse)
    if own is not None:
        total, share = total.with_sink(own.logits)
        merged = merged * share[..., None]
    return Attended(merged.astype(out.dtype), total.value, {})


def _merged(axis: str, out: Array, lse: Array) -> tuple[Any, LogSumExp]:
    peak = jax.lax.pmax(jax.lax.stop_gradient(lse), axis)
    weight = jnp.exp(lse - base(peak))
    total = jax.lax.psum(weight, axis)
    mixed = jax.lax.psum(weight[..., None] * out.astype(lse.dtype), axis)
    seen = jnp.where(total == 0, 1, total)
    return mixed / seen[..., None], LogSumExp(peak, jnp.log(seen))

"""The textbook steps over every head, with the whole score matrix in memory: what is right."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn import steps
from jaxattn._axes import accumulator, count_to, max_along
from jaxattn._finite import finite, hide, rows_not_finite
from jaxattn._mask import BoundMask
from jaxattn._observation import HEAD, Seen, Watch
from jaxattn._problem import Problem, Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Block, Place, Sizes, Span, push
from jaxattn.backends.protocol import Backend, Call, Cost, Moves, Moving, Results


@dataclass(frozen=True)
class Reference(Backend):
    """`jaxattn.steps` mapped over heads. Memory grows with t x s; for checking and for reading."""

    FROM_LSE = False
    DRAWBACK = "holds the whole score matrix; for checking and for reading"

    def refuses(self, call: Call) -> str | None:
        return "it observes on the way, and got an lse to observe from" if call.from_lse else None

    def cost(self, problem: Problem, mask: BoundMask, watched: Watch) -> Cost:
        sizes = problem.sizes
        count = math.prod(sizes.batch) * sizes.h
        features = problem.q.shape[-1] + problem.v.shape[-1]
        return Cost(
            heads=sizes.h,
            batch=count // sizes.h,
            q_block=sizes.t,
            k_block=sizes.s,
            visited=count,
            tiles=count,
            flops=2 * count * sizes.t * sizes.s * features,
        )

    def run(self, problem: Problem, watched: Watch) -> Results:
        q, k, v, rule = problem
        sizes, acc = problem.sizes, accumulator(q.dtype)
        repeat = lambda x: jnp.repeat(x, sizes.h // problem.kv_heads, axis=-2)
        q, k, v = (x.astype(acc) for x in (q, repeat(k), repeat(v)))

        def one(q: Array, k: Array, v: Array, *index: Array) -> tuple[Any, ...]:
            return one_head(q, k, v, rule, watched, sizes, index)

        heads_at = (1, 1, 1, tuple(0 if x.per is HEAD else 1 for x in watched))
        each = jax.vmap(one, (1, 1, 1, *(None for _ in sizes.batch), 0), heads_at)
        for axis in reversed(range(len(sizes.batch))):
            index = [0 if i == axis else None for i in range(len(sizes.batch))]
            each = jax.vmap(each, in_axes=(0, 0, 0, *index, None))
        return Results(*each(q, k, v, *(count_to(size) for size in (*sizes.batch, sizes.h))))

    def tangent(self, problem: Problem, watched: Watch, results: Results, moving: Moving) -> Moves:
        """By JAX, of the steps themselves."""
        out, _, log_total, states = push(self.run, (problem, watched), moving)
        return Moves(out, log_total, states)


def one_head(
    q: Float[Array, "t d"],
    k: Float[Array, "s d"],
    v: Float[Array, "s e"],
    rule: Rule,
    watched: Watch,
    sizes: Sizes,
    index: tuple[Array, ...],
) -> tuple[Any, ...]:
    """The steps of the head at `index`, [*b h], with NaN and Inf kept from queries that may not see
    them.

    A product with a weight of 0 does not do that (0 · NaN is NaN), in neither direction. So the
    products run on finite numbers, and NaN is put in at the end where it is seen.
    """
    *batch, head = index
    place = Place(tuple(batch), head, Span(0, sizes.t), Span(0, sizes.s))
    flat = 0
    for i, n in zip(batch, sizes.batch, strict=True):
        flat = flat * n + i
    block = Block(sizes, flat, 1, head, (1, 1), place.rows, place.keys)
    part = lambda value: jax.tree.map(lambda x: x.reshape(x.shape[3:]), value.read(block))

    scaled = steps.scores(finite(q), finite(k), rule.scale).scaled
    allowed = part(rule.mask).allows(place)
    allowed = None if allowed is None else jnp.broadcast_to(allowed, scaled.shape)
    logits = hide(scaled, allowed)
    for item in rule.score:
        logits = part(item).apply(logits, place)
    logits = steps.mask(logits, allowed)
    whole = weights = hide(steps.weights(logits), allowed)
    if rule.dropout is not None:
        weights = part(rule.dropout).apply(weights, place)
    seen = jnp.ones(logits.shape, bool) if allowed is None else allowed
    bad_logits = (seen & (rows_not_finite(q)[:, None] | rows_not_finite(k)[None, :])).any(axis=1)
    bad_values = steps.mix(seen.astype(v.dtype), (~jnp.isfinite(v)).astype(v.dtype)) > 0
    out = jnp.where(bad_logits[:, None] | bad_values, jnp.nan, steps.mix(weights, finite(v)))
    peak = steps.row_peak(logits)
    log_total = steps.log_sum_exp(logits - peak[:, None])
    blind = log_total == -jnp.inf
    peak, log_total = jnp.where(blind, -jnp.inf, peak), jnp.where(blind, 0, log_total)
    log_total = jnp.where(bad_logits, jnp.nan, log_total)
    lse, share = LogSumExp(peak, log_total), jnp.ones_like(peak)
    if rule.sinks is not None:
        lse, share = lse.with_sink(part(rule.sinks).logits)
    queries, tops = seen.sum(axis=0, dtype=jnp.int32), max_along(logits, 1)
    seen = Seen(
        whole,
        share,
        logits,
        scaled,
        seen,
        queries,
        tops,
        lse.value,
        ~blind,
        place,
        part(rule.positions),
    )
    return out, peak, log_total, tuple(part(each).absorb(seen) for each in watched)

"""One tile of one head's score matrix: what it adds to the forward fold and to its tangent.

q [r d] and k [c d] are the rows and columns of the tile, in the accumulator's dtype or, for
accelerators, in their own. `rule` is the part of the problem's rule that this tile needs;
`counts` says which keys count here (None for all).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxattn._axes import accumulator, dot
from jaxattn._finite import finite, hide
from jaxattn._problem import Rule
from jaxattn._score import BoundScore
from jaxattn._softmax import LogSumExp, Partial, base
from jaxattn._value import Place, Zero


class Products(NamedTuple):
    """What a tile was on the way. peak: the largest logit of each row in it.

    p: exp(logits - the largest logit of each row), where that is known in the tile.
    """

    scaled: Float[Array, "r c"]
    logits: Float[Array, "r c"]
    peak: Float[Array, " r"]
    p: Float[Array, "r c"] | None = None


class Tangents(NamedTuple):
    """Tangents of what a tile depends on; None where a tangent is zero, in scores `Zero`."""

    q: Float[Array, "r d"] | None
    k: Float[Array, "c d"] | None
    v: Float[Array, "c e"] | None
    scale: Float[Array, ""] | None
    score: tuple[BoundScore, ...] | None


def allows(rule: Rule, place: Place, counts: Array | None) -> Bool[Array, "#a #b"] | None:
    """Which pairs of a tile count: allowed by the mask, and of a key that counts."""
    allowed = rule.mask.allows(place)
    if counts is None:
        return allowed
    counts = place.each_k(counts)
    return counts if allowed is None else allowed & counts


def scaled(
    q: Float[Array, "r d"], k: Float[Array, "c d"], scale: Float[Array, ""]
) -> Float[Array, "r c"]:
    """scale · q kᵀ, in the accumulator's dtype: there half precision is scaled, not before."""
    acc = accumulator(q.dtype)
    return dot(q * scale, k.T) if q.dtype == acc else dot(q, k.T) * scale.astype(acc)


def logits(
    scaled: Float[Array, "r c"], rule: Rule, place: Place, counts: Bool[Array, " c"] | None
) -> Float[Array, "r c"]:
    """Scores and mask, in this order."""
    allowed = allows(rule, place, counts)
    changed = hide(scaled, allowed) if rule.score else scaled
    for item in rule.score:
        changed = item.apply(changed, place)
    return changed if allowed is None else jnp.where(allowed, changed, -jnp.inf)


def absorb(
    state: Partial | None,
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rule: Rule,
    place: Place,
    counts: Bool[Array, " c"] | None,
) -> tuple[Partial, Products]:
    """`state` after the keys of this tile as well; None stands for no keys seen before.

    The values are finite: a NaN or Inf would reach every query of the tile, by a weight of 0.
    """
    scaled_rc = scaled(q, k, rule.scale)
    logits_rc = logits(scaled_rc, rule, place, counts)
    peak = logits_rc.max(axis=1)
    if state is not None:
        peak = jnp.maximum(peak, state.peak)
    all_finite = logits_rc is scaled_rc
    p_rc = jnp.exp(logits_rc - (peak if all_finite else base(peak))[:, None])
    w_rc = p_rc if rule.dropout is None else rule.dropout.apply(p_rc, place)
    here = Partial(peak, p_rc.sum(axis=1), dot(w_rc.astype(v.dtype), v))
    after = here if state is None else state.about(peak).add(here)
    return after, Products(scaled_rc, logits_rc, peak, p_rc)


def tangent(
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rule: Rule,
    place: Place,
    counts: Bool[Array, " c"] | None,
    lse: LogSumExp,
    d: Tangents,
) -> tuple[Float[Array, "r e"], Float[Array, " r"]]:
    """This tile's part of (Σ w·dl·v + Σ w·dv, Σ p·dl), with p = exp(logits - lse) and w = p after
    dropout.

    Written with the keys as rows: then the transpose, which is the backward pass, has plain
    products for dk and dv. Rows and columns that hold NaN or Inf count as 0, and so does p for a
    query whose lse is NaN because it may see one: no other query may learn of it.
    """
    q, k, v, place = finite(q), finite(k), finite(v), place._replace(keys_first=True)
    scaled_q = q * rule.scale
    dq = None if d.q is None else d.q * rule.scale
    if d.scale is not None:
        dq = q * d.scale if dq is None else dq + q * d.scale
    parts = [] if dq is None else [dot(k, dq.T)]
    parts += [] if d.k is None else [dot(d.k, scaled_q.T)]
    logits_cr, dlogits_cr = dot(k, scaled_q.T), sum(parts[1:], parts[0]) if parts else None

    allowed_cr = allows(rule, place, counts)
    if rule.score:
        logits_cr, dlogits_cr = _scored(
            rule.score, d.score, logits_cr, dlogits_cr, place, allowed_cr
        )
    if allowed_cr is not None:
        logits_cr = jnp.where(allowed_cr, logits_cr, -jnp.inf)
    peak = jnp.where(jnp.isfinite(lse.peak), lse.peak, jnp.inf)
    p_cr = jnp.exp((logits_cr - peak[None, :]) - finite(lse.log_total)[None, :])
    w_cr = p_cr if rule.dropout is None else rule.dropout.apply(p_cr, place)

    mixed, dlse = jnp.zeros((q.shape[0], v.shape[1]), q.dtype), jnp.zeros_like(peak)
    if dlogits_cr is not None:
        # A hidden pair's tangent may have overflowed, and what flows back to it from its value too.
        pdl_cr = jnp.where(p_cr == 0, 0, p_cr * dlogits_cr)
        wdl_cr = pdl_cr if rule.dropout is None else rule.dropout.apply(pdl_cr, place)
        mixed, dlse = dot(wdl_cr.T, v), pdl_cr.sum(axis=0)
    if d.v is not None:
        mixed = mixed + dot(w_cr.T, d.v)
    return mixed, dlse


def _scored(
    score: tuple[BoundScore, ...],
    dscore: tuple[BoundScore, ...] | None,
    logits_cr: Float[Array, "c r"],
    dlogits_cr: Float[Array, "c r"] | None,
    place: Place,
    allowed_cr: Bool[Array, "#c #r"] | None,
) -> tuple[Float[Array, "c r"], Float[Array, "c r"] | None]:
    """The logits after the scores, and their tangent."""
    leaves, structure = jax.tree.flatten(score)
    moves = jax.tree.leaves(dscore, is_leaf=lambda x: isinstance(x, Zero))
    moved = [i for i, move in enumerate(moves) if not isinstance(move, Zero)]

    def apply(logits_cr: Array, some: list[Array]) -> Array:
        every = dict(enumerate(leaves)) | dict(zip(moved, some, strict=True))
        for item in jax.tree.unflatten(structure, [every[i] for i in range(len(leaves))]):
            logits_cr = item.apply(logits_cr, place)
        return logits_cr

    logits_cr = hide(logits_cr, allowed_cr)
    dlogits_cr = None if dlogits_cr is None else hide(dlogits_cr, allowed_cr)
    some, dsome = [leaves[i] for i in moved], [moves[i] for i in moved]
    if dlogits_cr is None and not moved:
        return apply(logits_cr, []), None
    if dlogits_cr is None:
        fixed_cr = logits_cr
        logits_cr, dlogits_cr = jax.jvp(lambda some: apply(fixed_cr, some), (some,), (dsome,))
    else:
        logits_cr, dlogits_cr = jax.jvp(apply, (logits_cr, some), (dlogits_cr, dsome))
    return logits_cr, jnp.asarray(dlogits_cr)

"""Attention by any forward pass, with the one tangent rule from which every derivative comes.

The rule itself is in tangent.py, that of observations in sweep.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jaxattn._finite import finite
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp
from jaxattn._value import Zero
from jaxattn._varying import vary
from jaxattn.backends.blockwise import tile
from jaxattn.backends.blockwise.sweep import sweep
from jaxattn.backends.blockwise.tangent import tangent
from jaxattn.backends.blockwise.walk import Walk
from jaxattn.backends.blockwise.watch import Watch


class Passes(NamedTuple):
    """forward: any pass, as `derived` in backend.py takes it. tangent: the walk of the rule."""

    forward: Callable[..., Any]
    tangent: Walk


class Hits(NamedTuple):
    """What `walk.find_hits` gives for each pass, that of the tangent with `held`."""

    forward: Bool[Array, "b runs q_blocks k_tiles"] | None
    tangent: Bool[Array, "b runs q_blocks k_tiles"] | None


class Folded(NamedTuple):
    """In the accumulator's dtype; lse = peak + log_total. states: of the observations.

    The two parts of lse are kept apart because their sum, rounded, would spoil exp(logits - lse)
    where lse is large. The peak counts as a constant.
    """

    out: Float[Array, "b t h e"]
    peak: Float[Array, "b t h"]
    log_total: Float[Array, "b t h"]
    states: tuple[Any, ...]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def fold(
    passes: Passes,
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n e"],
    rule: Rule,
    watched: Watch,
    hits: Hits,
) -> Folded:
    """Attention, and the states of observations made on the way. No axis may be empty."""
    return passes.forward(q, k, v, rule, watched, hits)


@partial(fold.defjvp, symbolic_zeros=True)
def _fold_jvp(passes: Passes, primals: Any, tangents: Any) -> Any:
    folded = _named(fold(passes, *primals))
    q, k, v, rule, watched, hits = primals
    acc = folded.out.dtype
    # In the accumulator's dtype as a whole: what flows back is a sum over tiles.
    dq, dk, dv, dscale = (
        None if isinstance(x, SymbolicZero) else x.astype(acc)
        for x in (*tangents[:3], tangents[3].scale)
    )
    d = tile.Tangents(dq, dk, dv, dscale, _moving(rule.score, tangents[3].score))
    lse = LogSumExp(folded.peak, folded.log_total)
    mixed, dlse = tangent(passes.tangent, q, k, v, rule, hits.tangent, lse, d)
    dout = mixed - dlse[..., None] * finite(folded.out)
    dstates = ()
    if watched:
        # As the derivative of the second sweep, also where there was none.
        moving, moves = (q, k, rule, watched), (*tangents[:2], *tangents[3:5])
        dstates = _sweep_jvp(passes.tangent, moving, moves, hits.tangent, lse, dlse)
    still = vary(jnp.zeros_like(folded.peak), passes.tangent.sizes.varying)
    return folded, Folded(dout, still, dlse, dstates)


def _named(folded: Folded) -> Folded:
    """With the names by which a policy of `jax.checkpoint` keeps what a derivative needs."""
    return folded._replace(
        out=checkpoint_name(folded.out, "attention_out"),
        peak=checkpoint_name(folded.peak, "attention_lse"),
        log_total=checkpoint_name(folded.log_total, "attention_lse"),
    )


def _sweep_jvp(walk: Walk, moving: Any, moves: Any, hits: Any, lse: LogSumExp, dlse: Array) -> Any:
    """The tangent of the states, along what moves and lse."""
    leaves, structure = jax.tree.flatten(moving)
    dleaves = jax.tree.leaves(moves, is_leaf=lambda x: isinstance(x, SymbolicZero))
    which = [i for i, x in enumerate(dleaves) if not _is_still(x)]

    def states(some: list[Array], log_total: Array) -> Any:
        every = dict(enumerate(leaves)) | dict(zip(which, some, strict=True))
        whole = jax.tree.unflatten(structure, [every[i] for i in range(len(leaves))])
        q, k, rule, watched = whole
        return sweep(walk, q, k, rule, watched, hits, lse._replace(log_total=log_total))

    some, dsome = [leaves[i] for i in which], [dleaves[i] for i in which]
    return jax.jvp(states, (some, lse.log_total), (dsome, dlse))[1]


def _is_still(x: Any) -> bool:
    return isinstance(x, SymbolicZero) or x.dtype == jax.dtypes.float0


def _moving(score: Any, dscore: Any) -> Any:
    """The tangents of the scores with `Zero` for those that are zero; None if all are."""
    structure = jax.tree.structure(score)
    leaves = jax.tree.leaves(dscore, is_leaf=lambda x: isinstance(x, SymbolicZero))
    moves = [Zero() if _is_still(x) else x for x in leaves]
    still = all(isinstance(x, Zero) for x in moves)
    return None if still else jax.tree.unflatten(structure, moves)

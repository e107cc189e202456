"""Attention on TPUs by jax's splash attention, a kernel in Pallas."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxattn._axes import INDEX, ceil_div, count_to
from jaxattn._band import Band
from jaxattn._finite import all_usual
from jaxattn._lowering import devices
from jaxattn._mask import EVERYTHING, BoundAnd, BoundMask, BoundNot, BoundOr, Everything
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._value import Sizes
from jaxattn.backends.blockwise.backend import Blockwise, Forward, flat, unflat
from jaxattn.backends.protocol import Call, Cost, Results
from jaxattn.masks import BoundLengths, BoundSegments, Prefix

MASKS = Everything, Band, Prefix, BoundLengths
LANES, FEATURES = 128, 256
BLOCK = 512  # queries and keys of a tile, where there are as many
MOST_TILES = 2**17  # with 4 bytes each, half of a TPU's memory for scalars


@dataclass(frozen=True)
class Splash(Forward):
    """jax's splash attention, for TPUs: results in bfloat16 and float32, under masks whose numbers
    are known while tracing, and `Segments` and `Lengths` of any kind, with a `SoftCap` of a Python
    integer. Derivatives and observations are made as `Blockwise()` makes them, from the lse; so are
    results where a number is NaN, Inf, or beyond 2⁵⁰."""

    def refuses(self, call: Call) -> str | None:
        problem, rule, sizes = call.problem, call.problem.rule, call.problem.sizes
        d, e = problem.q.shape[-1], problem.v.shape[-1]
        if call.platform not in (None, "tpu"):
            return "it runs on TPUs"
        if problem.q.dtype not in (jnp.float32, jnp.bfloat16):
            return f"it takes float32 and bfloat16, not {problem.q.dtype}"
        if not all(isinstance(n, int) for n in (*problem.q.shape, *problem.k.shape)):
            return "its tiles are planned for known sizes"
        if min(d, e) < 1 or max(d, e) > FEATURES:
            return f"it takes 1 to {FEATURES} features, got d={d} and e={e}"
        if sizes.t < LANES:
            return f"it takes {LANES} queries or more, got t={sizes.t}"
        if ceil_div(sizes.t, BLOCK) * ceil_div(sizes.s, BLOCK) > MOST_TILES:
            return f"its lists have place for {MOST_TILES:,} tiles, of {BLOCK} x {BLOCK}"
        if rule.dropout is not None:
            return "it has no dropout in its kernel"
        caps = [getattr(item, "known", None) for item in rule.score]
        if len(caps) > 1 or None in caps:
            return "of scores it takes one SoftCap of a Python integer, such as SoftCap(50)"
        if (reason := _refused(rule.mask)) is not None:
            return reason
        if devices().divided:
            return "the compiler does not divide its kernel over devices"
        if sizes.varying or devices().typed:
            return (
                "its kernel does not say over which axes of jax.shard_map its results vary; inside "
                "one with check_vma=False it is not asked"
            )
        return None

    def run(self, problem: Problem, watched: Watch, interpret: bool = False) -> Results:
        scaled = problem.q.astype(jnp.float32) * problem.rule.scale
        if not any(_tiles(problem, problem.rule.mask).visible()):
            return Blockwise().run(problem, watched)  # the kernel would have an empty grid
        results = jax.lax.cond(
            all_usual(scaled, problem.k, problem.v),
            lambda: _by_kernel(problem, scaled, interpret),
            lambda: Blockwise().run(problem, ()),
        )
        if not watched:
            return results
        return results._replace(states=self.observe(problem, watched, results.lse.value))

    def cost(self, problem: Problem, mask: BoundMask, watched: Watch) -> Cost:
        """Ids hide pairs, but skip no tile."""
        tiles, d, e = _tiles(problem, mask), problem.q.shape[-1], problem.v.shape[-1]
        (q_block, k_block), visible = tiles.blocks, tiles.visible()
        count = math.prod((*problem.sizes.batch, problem.sizes.h))
        visited, d = count * sum(visible), 2 * d if problem.q.dtype == jnp.bfloat16 else d
        flops = 2 * visited * q_block * k_block * (d + e)
        cost = Cost(heads=1, batch=1, q_block=q_block, k_block=k_block, second_sweep=bool(watched))
        return replace(cost, visited=visited, tiles=count * len(visible), flops=flops)


def _by_kernel(problem: Problem, scaled: Array, interpret: bool) -> Results:
    """Products with queries in half precision have the scale too, to 16 bits: of the scaled queries
    what they round to, and as further features what is left."""
    from jaxattn.backends.splash.kernel import forward

    rule, sizes = problem.rule, problem.sizes
    q, k, v, _ = flat(problem._replace(q=scaled))
    if k.dtype == jnp.bfloat16:
        high = jax.lax.reduce_precision(q, 8, 7)  # a cast and back the compiler may drop
        q = jnp.concatenate([high, q - high], axis=-1).astype(jnp.bfloat16)
        k = jnp.concatenate([k, k], axis=-1)
    cap = next((float(item.known) for item in rule.score), None)  # pyright: ignore
    made = forward(_tiles(problem, rule.mask), q, k, v, _ids(rule.mask, sizes), cap, interpret)
    out, lse = unflat(made, sizes.batch)
    return Results(out, lse, jnp.zeros_like(lse), ())


def _tiles(problem: Problem, mask: BoundMask) -> Any:
    """Those of the part of the mask that is known."""
    from jaxattn.backends.splash.kernel import Tiles  # Pallas takes a second to import

    known, _ = _split(mask)
    mask = BoundAnd((*known,)) if len(known) > 1 else known[0] if known else EVERYTHING
    up_to = lambda multiple, n: ceil_div(n, multiple) * multiple
    lengths = problem.sizes.t, problem.sizes.s
    blocks = tuple(min(BLOCK, up_to(LANES, n)) for n in lengths)
    return Tiles(mask, lengths[1], tuple(map(up_to, blocks, lengths)), blocks)


def _split(mask: BoundMask) -> tuple[list[BoundMask], list[BoundMask]]:
    """The parts of a mask that are known while tracing, and the rest."""
    parts = mask.masks if isinstance(mask, BoundAnd) else (mask,)
    return [x for x in parts if _is_known(x)], [x for x in parts if not _is_known(x)]


def _is_known(mask: BoundMask) -> bool:
    """Whether NumPy can ask a mask of any tile while tracing."""
    if isinstance(mask, BoundAnd | BoundOr):
        return all(map(_is_known, mask.masks))
    if isinstance(mask, BoundNot):
        return _is_known(mask.mask)
    return isinstance(mask, MASKS) and not jax.tree.leaves(mask)


def _refused(mask: BoundMask) -> str | None:
    """Why a mask has no place in the kernel."""
    _, rest = _split(mask)
    strange = [part for part in rest if not isinstance(part, BoundSegments | BoundLengths)]
    if strange:
        name = type(strange[0]).__name__.removeprefix("Bound")
        return f"of masks with arrays or functions it takes Segments and Lengths, not {name}"
    segments = [part for part in rest if isinstance(part, BoundSegments)]
    return "it takes one Segments" if len(segments) > 1 else None


def _ids(mask: BoundMask, sizes: Sizes) -> tuple[Int[Array, "b t"], Int[Array, "b s"]] | None:
    """The rest of the mask, as ids that are the same where a pair is seen; None for no rest."""
    _, rest = _split(mask)
    if not rest:
        return None
    ids, ends = [jnp.zeros(n, INDEX) for n in (sizes.t, sizes.s)], []
    for part in rest:
        if isinstance(part, BoundSegments):
            ids = [part.q_ids, part.k_ids]
        elif isinstance(part, BoundLengths):
            ends += [(i, end) for i, end in enumerate((part.q, part.k)) if end is not None]
    for i, end in ends:
        within = count_to(ids[i].shape[-1]) < jnp.asarray(end)[..., None]
        ids[i] = jnp.where(within, ids[i], -1)
    # A query that sees nothing has another id than a key that nothing sees.
    ids = (jnp.where(x < 0, hidden, x) for x, hidden in zip(ids, (-1, -2), strict=True))
    q, k = (jnp.broadcast_to(x, (*sizes.batch, x.shape[-1])) for x in ids)
    return q.reshape(-1, sizes.t), k.reshape(-1, sizes.s)

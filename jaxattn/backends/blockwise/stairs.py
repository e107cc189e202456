"""A tile of all keys of its rows whose mask ends in a diagonal, without most pairs beyond it.

The rows are cut into strips. Keys that all of them need are one product, as in any tile; the rest
is a product for each strip, with the keys that it needs.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import cut_axis, dot
from jaxattn._mask import BoundMask
from jaxattn._observation import KEY, QUERY, Watch
from jaxattn._problem import Rule
from jaxattn._softmax import LogSumExp, Partial, base
from jaxattn._value import Place, Sizes, Span
from jaxattn.backends.blockwise import tile, watch
from jaxattn.backends.blockwise.walk import Walk

STRIPS, AT_CORNER = 2, 4  # where rows have keys in common, and where they have none
LEAST = 96  # rows of a strip; with fewer, what is saved is spent on starting small products


class Piece(NamedTuple):
    """A part of the tile, at these positions."""

    rows: Span
    keys: Span


class Stairs(NamedTuple):
    """What of a tile is computed. landing: the keys that all rows need, if any."""

    whole: Piece
    landing: Piece | None
    strips: tuple[Piece, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.strips if self.landing is None else (self.landing, *self.strips)

    @property
    def pairs(self) -> int:
        return sum(piece.rows.size * piece.keys.size for piece in self.pieces)

    def join(
        self, parts: Sequence[Float[Array, " a *e"]], combine: Callable[..., Array]
    ) -> Float[Array, " r *e"]:
        """One thing for each row, from those of the pieces."""
        strips = jnp.concatenate(parts[-len(self.strips) :])
        return strips if self.landing is None else combine(parts[0], strips)


def find(walk: Walk, mask: BoundMask, i: int) -> Stairs | None:
    """The stairs of the i-th block of queries; None where there are none to be known of."""
    if not walk.plan.unrolled or walk.plan.k_tiles > 1:
        return None
    rows, s = walk.rows(i), walk.sizes.s
    corner = _cut(mask, rows, s, AT_CORNER)
    return corner if corner and corner.landing is None else _cut(mask, rows, s, STRIPS)


def _cut(mask: BoundMask, rows: Span, s: int, count: int) -> Stairs | None:
    size = rows.size // count
    if rows.size % count or size < LEAST:
        return None
    assert isinstance(rows.start, int)
    strips = [Span(rows.start + n * size, size) for n in range(count)]
    first, last = mask.limits(rows, s)
    stops = [mask.limits(strip, s)[1] for strip in strips]
    if not first < stops[0] < last or stops != sorted(stops) or stops[-1] != last:
        return None
    shared = max(stops[0] - size, first)
    landing = Piece(rows, Span(first, shared - first)) if shared > first else None
    pieces = (
        Piece(strip, Span(shared, stop - shared)) for strip, stop in zip(strips, stops, strict=True)
    )
    return Stairs(Piece(rows, Span(first, last - first)), landing, tuple(pieces))


def _cut_rows(x: Array, whole: Span, part: Span) -> Array:
    """The rows of `part` from those of `whole`."""
    return cut_axis(x, part.start - whole.start, part.size)


def absorb(
    stairs: Stairs,
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rules: Sequence[Rule],
    place: Place,
) -> tuple[Partial, list[tile.Products]]:
    """`tile.absorb` of the whole tile, and what each piece was on the way. rules: of the pieces."""

    rows, keys = stairs.whole
    products = []
    for piece, rule in zip(stairs.pieces, rules, strict=True):
        here = place._replace(rows=piece.rows, keys=piece.keys)
        scaled = dot(_cut_rows(q, rows, piece.rows) * rule.scale, _cut_rows(k, keys, piece.keys).T)
        logits = tile.logits(scaled, rule, here, None)
        products.append(tile.Products(scaled, logits, logits.max(axis=1)))
    peak = stairs.join([x.peak for x in products], jnp.maximum)
    shift = base(peak)
    totals, mixes = [], []
    for n, (piece, rule) in enumerate(zip(stairs.pieces, rules, strict=True)):
        p = jnp.exp(products[n].logits - _cut_rows(shift, rows, piece.rows)[:, None])
        products[n] = products[n]._replace(p=p)
        totals.append(p.sum(axis=1))
        here = place._replace(rows=piece.rows, keys=piece.keys)
        w = p if rule.dropout is None else rule.dropout.apply(p, here)
        mixes.append(dot(w, _cut_rows(v, keys, piece.keys)))
    state = Partial(peak, stairs.join(totals, jnp.add), stairs.join(mixes, jnp.add))
    return state, products


def look(
    stairs: Stairs,
    watched: Sequence[Watch],
    products: Sequence[tile.Products],
    lse: LogSumExp,
    rules: Sequence[Rule],
    place: Place,
    counts_rows: Array | None,
    sizes: Sizes,
) -> tuple[Any, ...]:
    """`watch.look` of the whole tile. watched: of the pieces."""
    added = []
    for piece, its, tiles, rule in zip(stairs.pieces, watched, products, rules, strict=True):
        cut = partial(_cut_rows, whole=stairs.whole.rows, part=piece.rows)
        here = place._replace(rows=piece.rows, keys=piece.keys)
        rows = None if counts_rows is None else cut(counts_rows)
        lse_here = jax.tree.map(cut, lse)
        added.append(watch.look(its, tiles, lse_here, rule, here, None, rows))
    each = zip(watched[0], *added, strict=True)
    return tuple(_joined(stairs, sizes, lse.peak.dtype, *one) for one in each)


def _joined(stairs: Stairs, sizes: Sizes, dtype: Any, observation: Any, *parts: Any) -> Any:
    """What the whole tile adds to a state, from what its pieces add."""
    merge, count = observation.merge, len(stairs.strips)
    landing, strips = parts[:-count], parts[-count:]
    side_by_side = lambda *x: jnp.concatenate(x)
    if observation.per is QUERY:
        return reduce(merge, [*landing, jax.tree.map(side_by_side, *strips)])
    if observation.per is not KEY:
        return reduce(merge, parts)
    width, nothing = stairs.strips[-1].keys.size, observation.start(sizes, dtype)

    def widen(x: Array, empty: Any) -> Array:
        rest = (width - x.shape[0], *jnp.shape(empty))
        return jnp.concatenate([x, jnp.broadcast_to(empty, rest).astype(x.dtype)])

    strips = reduce(merge, [jax.tree.map(widen, strip, nothing) for strip in strips])
    return jax.tree.map(side_by_side, *landing, strips)

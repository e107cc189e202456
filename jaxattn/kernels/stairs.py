"""A tile of all keys of its rows whose mask ends in a diagonal, without most pairs beyond it.

The rows are cut into strips. Keys that all of them need are one product, as in any tile; the rest
is a product for each strip, with the keys that it needs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import dot
from jaxattn._mask import Mask
from jaxattn._problem import Rule
from jaxattn._value import Place, Span
from jaxattn.kernels import tile
from jaxattn.kernels.walk import Walk

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

    def spread(self, parts: Sequence[Float[Array, "a b"]], rest: float) -> Float[Array, "r c"]:
        """The tile that the pieces are of, with `rest` where there is none."""
        width = self.strips[-1].keys.size
        widen = lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=rest)
        across = lambda left, right: jnp.concatenate([left, right], axis=1)
        strips = [widen(x) for x in parts[-len(self.strips) :]]
        return self.join([*parts[: -len(self.strips)], *strips], across)


def find(walk: Walk, mask: Mask, i: int) -> Stairs | None:
    """The stairs of the i-th block of queries; None where there are none to be known of."""
    if not walk.plan.unrolled or walk.plan.k_tiles > 1:
        return None
    rows, s = walk.rows(i), walk.sizes.s
    corner = _cut(mask, rows, s, AT_CORNER)
    return corner if corner and corner.landing is None else _cut(mask, rows, s, STRIPS)


def _cut(mask: Mask, rows: Span, s: int, count: int) -> Stairs | None:
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


def absorb(
    stairs: Stairs,
    q: Float[Array, "r d"],
    k: Float[Array, "c d"],
    v: Float[Array, "c e"],
    rules: Sequence[Rule],
    place: Place,
) -> tuple[tile.State, list[tile.Products]]:
    """`tile.absorb` of the whole tile, and what each piece was on the way. rules: of the pieces."""

    def cut(x: Array, part: Span, whole: Span) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, part.start - whole.start, part.size)

    rows, keys = stairs.whole
    products = []
    for piece, rule in zip(stairs.pieces, rules, strict=True):
        here = place._replace(rows=piece.rows, keys=piece.keys)
        scaled = dot(cut(q, piece.rows, rows) * rule.scale, cut(k, piece.keys, keys).T)
        products.append(tile.Products(scaled, tile.logits(scaled, rule, here, None), None))
    peak = stairs.join([x.logits.max(axis=1) for x in products], jnp.maximum)
    shift = jnp.where(peak == -jnp.inf, 0, peak)
    totals, mixes = [], []
    for n, (piece, rule) in enumerate(zip(stairs.pieces, rules, strict=True)):
        p = jnp.exp(products[n].logits - cut(shift, piece.rows, rows)[:, None])
        products[n] = products[n]._replace(p=p)
        totals.append(p.sum(axis=1))
        here = place._replace(rows=piece.rows, keys=piece.keys)
        w = p if rule.dropout is None else rule.dropout.apply(p, here)
        mixes.append(dot(w, cut(v, piece.keys, keys)))
    state = tile.State(peak, stairs.join(totals, jnp.add), stairs.join(mixes, jnp.add))
    return state, products


def as_tile(stairs: Stairs, products: Sequence[tile.Products]) -> tile.Products:
    """Of the whole tile, as if the pairs that no piece has were hidden."""
    scaled, logits, p = zip(*products, strict=True)
    return tile.Products(
        stairs.spread(scaled, 0), stairs.spread(logits, -jnp.inf), stairs.spread(p, 0)
    )

"""Weights with what their rows and columns are of, in cells as large as can be seen."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Real
from matplotlib.colors import Normalize

from jaxattn.observe.map import PEAK, Reduce
from jaxattn.plot import norms
from jaxattn.plot.arrays import Numbers, Tokens, counted, shaped
from jaxattn.plot.labels import SLANTED, sides
from jaxattn.plot.matrix import hide
from jaxattn.plot.pooling import pooled, shown

FEWEST = 4  # pixels to a cell


class Picture(NamedTuple):
    """Weights of heads, NaN where blank, and the tokens of their queries and keys."""

    array: Real[np.ndarray, "*b rows columns"]
    tokens: Tokens
    keys: Tokens
    reduce: Reduce

    def many(self, width: float, height: float) -> int:
        """How many to pool so that a cell of a map in so many pixels has FEWEST."""
        rows, columns = self.array.shape[-2:]
        return math.ceil(FEWEST / min(height / rows, width / columns) - 1e-6)

    def fitted(self, width: float, height: float) -> tuple[int, float, float]:
        """How many to pool, and the size of the map, if a cell has whole pixels.

        Raises:
          ValueError: there is no room for a cell.
        """
        if min(width, height) < FEWEST:
            raise ValueError(
                f"a map takes at least {FEWEST} by {FEWEST} pixels, got {width:.0f} by "
                f"{height:.0f} beside the labels; take a larger figure, or a higher dpi"
            )
        many = self.many(width, height)
        while True:
            rows, columns = (-(-n // many) for n in self.array.shape[-2:])
            cell = math.floor(min(height / rows, width / columns))
            if cell >= FEWEST:
                return many, float(cell * columns), float(cell * rows)
            many += 1

    @property
    def sides(self) -> tuple[int, int]:
        """How many queries and keys are in a cell."""
        rows, columns = self.array.shape[-2:]
        return sides(rows, columns, self.tokens, self.keys)

    def pooled(self, many: int) -> "Picture":
        """With `many` rows and columns to a cell."""
        cells = pooled(
            self.array,
            many,
            many,
            reduce=self.reduce,
            queries=self.sides[0],
            count=counted(self.tokens),
        )
        return self._replace(array=cells)

    def norm(self) -> Normalize:
        """That of these weights if no other is asked for: linear for few, logarithmic for many."""
        small = self.sides == (1, 1) and max(self.array.shape[-2:]) <= SLANTED
        return norms.unit() if small else norms.log()

    def axes(self) -> tuple[str, str]:
        """The names of the rows and of the columns."""
        down, across = (f", {side} to a cell" if side > 1 else "" for side in self.sides)
        return f"Query (rows){down}", f"Key (columns){across}"

    def what(self) -> str:
        """What a cell shows."""
        if self.sides == (1, 1):
            return "Weight"
        return "Largest weight in a cell" if self.reduce is PEAK else "Share of a query's weight"


def picture(
    weights: Real[Numbers, "*b rows columns"],
    axes: str,
    remedy: str,
    tokens: Tokens | None,
    keys: Tokens | None,
    allowed: Bool[Numbers, "*#b t s"] | None,
    reduce: Reduce,
) -> Picture:
    """Checked, and hidden where `allowed` says so.

    Raises:
      ValueError: the shapes or the counts of tokens disagree.
    """
    array = shaped(weights, "weights", axes, remedy)
    rows, columns = array.shape[-2:]
    of_queries: Tokens = rows if tokens is None else tokens
    of_keys: Tokens = (columns if tokens is None else tokens) if keys is None else keys
    sides(rows, columns, of_queries, of_keys)  # or an error
    may = None if allowed is None else shown(allowed, rows, columns)
    return Picture(hide(array, may), of_queries, of_keys, reduce)

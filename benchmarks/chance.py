"""The gate where weights are dropped at random, which no two libraries do alike.

A contender that can say which weights it keeps (jaxattn: keys and positions alone decide, so the
pattern can be read off with q = k = 0 and unit vectors as values) is compared with float64 that
drops the same ones, as strictly as without dropout. The share it drops has to be the rate, within
five standard deviations, and no two heads may drop the same.

Of any other, float64 gives the mean and the variance of what it may answer. Every output and
gradient is linear in what is kept, so its mean is the one without dropout:

    slope: <got, mean> / <mean, mean> has to be 1, within eight standard errors, and 0.02 more
    share: of weights dropped, that the variance of out and dv around the mean shows:
           with x = Σ (got - mean)² / Σ variance · rate / (1 - rate), x / (1 + x);
           it has to be the rate, within a tenth of it and what the size of the sample allows

A contender that drops nothing, too much or too little, or does not grow what it keeps, fails. What
this does not show is whether the weights that such a contender drops are independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.reference import Piece


@dataclass(frozen=True)
class Pattern:
    """The weights that a contender keeps, where the gate looks."""

    first: np.ndarray
    """[b h t s]: of the first queries."""
    one: np.ndarray
    """[h t s]: of all queries of the heads that share the first key/value head."""

    def __call__(self, b: int, h: int, rows: np.ndarray) -> np.ndarray:
        """A `reference.Kept`."""
        if rows[-1] < self.first.shape[2]:
            return self.first[b, h, rows]
        assert b == 0, "only the first batch element is known whole"
        return self.one[h, rows]

    def complaint(self, rate: float) -> str | None:
        """What is wrong with it; None if nothing is."""
        share = 1 - self.first.mean()
        allowed = 5 * (rate * (1 - rate) / self.first.size) ** 0.5
        if abs(share - rate) > allowed:
            return f"{share:.4f} of the weights are dropped, not {rate:.4f} ± {allowed:.4f}"
        heads = self.first.reshape(-1, self.first.shape[2] * self.first.shape[3])
        if any((heads[i] == heads[i - 1]).all() for i in range(1, len(heads))):
            return "two heads drop the same weights"
        return None


@dataclass(frozen=True)
class Chance:
    """What an output's distance from its mean shows."""

    output: str
    slope: float
    slope_allowed: float
    """How far from 1 it may be."""
    share: float | None
    """Of weights dropped; None where it cannot be told."""
    rate: float
    share_allowed: float

    @property
    def too_large(self) -> bool:
        # Written so that NaN is too large.
        slope = abs(self.slope - 1) <= self.slope_allowed
        share = self.share is None or abs(self.share - self.rate) <= self.share_allowed
        return not (slope and share)

    def __str__(self) -> str:
        found = f"{self.output} is {self.slope:.4f} of its mean (1 ± {self.slope_allowed:.4f})"
        if self.share is None:
            return found
        return (
            f"{found}, and spread as if {self.share:.4f} of the weights were dropped "
            f"({self.rate:g} ± {self.share_allowed:.4f})"
        )

    def facts(self) -> dict[str, Any]:
        found = {"slope": round(self.slope, 5)}
        return found if self.share is None else found | {"dropped": round(self.share, 5)}


def judge(name: str, outputs: np.ndarray, pieces: Sequence[Piece], rate: float) -> Chance:
    """Compares an output with its mean and variance over all ways to drop weights."""
    want = np.concatenate([p.want.ravel() for p in pieces])
    got = np.concatenate([outputs[p.index].ravel() for p in pieces]).astype(np.float64)
    off, size = got - want, np.square(want).sum()
    error = np.sqrt(np.square(off * want).sum()) / size
    share, allowed = None, 0.0
    if pieces[0].variance is not None:
        variance = np.concatenate([np.asarray(p.variance).ravel() for p in pieces])
        x = np.square(off).sum() / variance.sum() * rate / (1 - rate)
        share = float(x / (1 + x))
        rows = sum(len(p.want) for p in pieces)  # the features of a row drop alike
        allowed = rate * (0.1 + 8 * (2 / rows) ** 0.5)
    return Chance(name, float(got @ want / size), 0.02 + 8 * float(error), share, rate, allowed)

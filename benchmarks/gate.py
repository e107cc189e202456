"""The correctness gate: a contender whose results are wrong gets no time.

Every output is compared with float64, by the oracle that the tests use (`tests/oracle`). Small
workloads are computed whole. In larger ones every head is checked on some of its queries (out and
dq need only one query's row of scores), and dk and dv, which need every query, on one key/value
head; what that does not reach is compared with the median of all contenders that passed. An output
may be off by

    4 eps + 1/4 eps32 sqrt s      of the reference's root mean square, in root mean square
    sqrt d times that             of the reference's largest value, anywhere

with eps the spacing at 1 of the inputs' dtype, and eps32 that of float32, in which s terms are
summed one after another, their rounding errors adding up like a random walk. A gradient, which
subtracts nearly equal numbers, may be off by twice as much. One key too many or too few is an
error of about 1 / sqrt s, far more.

No two libraries drop the same weights at random. A contender that can say which it keeps (jaxattn:
keys and positions alone decide, so the pattern can be read off) is compared with float64 that drops
the same ones, as strictly as without dropout. The share it drops has to be the rate, within five
standard deviations, and no two heads may drop the same. Where not all is computed, it says so of
the first queries, and of the first key/value head.

Of any other, float64 gives the mean (that without dropout: all outputs are linear in what is kept)
and the variance of what it may answer:

    slope: <got, mean> / <mean, mean> has to be 1, within eight standard errors, and 0.02 more
    dropped: the share of weights dropped that the variance of out and dv around the mean shows:
           with x = Σ (got - mean)² / Σ variance · rate / (1 - rate), x / (1 + x);
           it has to be the rate, within a tenth of it and what the size of the sample allows

A contender that drops nothing, too much or too little, or does not grow what it keeps, fails. What
this does not show is whether the weights that such a contender drops are independent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.timing import Built
from benchmarks.workloads import FLOAT32, Inputs, Workload
from tests import oracle

MOST_PAIRS = 2**24
"""Workloads with more scores than this are checked on a sample."""

BLOCK = 2**22
"""Scores that are computed in float64 at a time."""

Shown = dict[str, tuple[float, float, float]]
"""Numbers by name, what each is to be, and how far off that it may be."""


class Finding(NamedTuple):
    """What an output shows."""

    output: str
    shown: Shown

    @property
    def wrong(self) -> bool:
        # Written so that NaN is wrong.
        return not all(abs(x - want) <= allowed for x, want, allowed in self.shown.values())

    def facts(self) -> dict[str, float]:
        return {name: float(f"{x:.5g}") for name, (x, _, _) in self.shown.items()}

    def __str__(self) -> str:
        parts = (f"{name} {x:.3g} ({y:g} ± {z:.2g})" for name, (x, y, z) in self.shown.items())
        return f"{self.output} is off: {', '.join(parts)}" if self.wrong else self.output


class Pattern(NamedTuple):
    """The weights that a contender keeps, where the gate looks."""

    first: np.ndarray
    """[b h t s]: of the first queries."""
    one: np.ndarray
    """[h t s]: of all queries of the heads that share the first key/value head."""

    def finding(self, rate: float) -> Finding:
        heads = self.first.reshape(-1, self.first[0, 0].size)
        share, allowed = 1 - float(heads.mean()), 5 * (rate * (1 - rate) / heads.size) ** 0.5
        same = int((heads[1:] == heads[:-1]).all(1).sum())
        return Finding("pattern", {"dropped": (share, rate, allowed), "same heads": (same, 0, 0)})


class Piece(NamedTuple):
    """The right values of an output at an index."""

    output: str
    index: tuple[Any, ...]
    want: np.ndarray
    variance: float = 0.0
    """Of all of them together, where weights are dropped at random and it is a simple sum."""


class Gate:
    """Checks the outputs of contenders for one workload."""

    def __init__(self, work: Workload, inputs: Inputs, most_pairs: int = MOST_PAIRS) -> None:
        self._work, self._inputs, self._sampled = work, inputs, work.scores > most_pairs
        few = max(4, most_pairs // (work.batch * work.heads * work.keys))
        self._rows = np.arange(min(work.queries, few) if self._sampled else work.queries)
        self._whole = 0  # the key/value head that all queries are looked at of
        if self._sampled and not work.option.rate:
            random = np.random.default_rng(0)
            inner = random.choice(work.queries, size=len(self._rows), replace=False)
            self._rows = np.unique([0, work.queries - 1, *inner])
            self._whole = random.integers(work.batch * work.kv_heads)
        self._pieces = self.expected()

    def expected(self, kept: Pattern | None = None) -> list[Piece]:
        """The right values of the workload's outputs, all of them or a sample.

        Where weights are dropped: given what is `kept`; without it, mean and variance.
        """
        work, inputs, pieces = self._work, self._inputs, []
        group, rate = work.heads // work.kv_heads, work.option.rate
        for number, (b, n) in enumerate(np.ndindex(work.batch, work.kv_heads)):
            whole = work.gradient and (number == self._whole or not self._sampled)
            rows = np.arange(work.queries) if whole else self._rows
            heads, shared = slice(n * group, (n + 1) * group), (b, slice(None), slice(n, n + 1))
            keep = kept and (kept.one if whole and self._sampled else kept.first[b, heads])
            k, v, of_out, of_dv = inputs.k[shared], inputs.v[shared], 0.0, 0.0
            dk, dv = np.zeros(k.shape), np.zeros(v.shape)
            for block in np.array_split(rows, -(-len(rows) * work.keys * group // BLOCK)):
                at = b, block, heads
                q, cotangent = inputs.q[at], inputs.cotangent[at]
                kept_here = None if keep is None else keep[:, block]
                allowed, extra = truth(work, inputs.extra, heads, block, kept_here)
                out, lse = oracle.attention(q, k, v, allowed, extra=extra)
                if rate:
                    spread = oracle.variance(q, k, v, allowed, cotangent, extra)
                    of_out, of_dv = spread[0].sum(), of_dv + spread[1].sum()
                pieces.append(Piece("out", at, out, of_out))
                if work.gradient:
                    given = allowed, None, cotangent, np.zeros_like(lse)
                    got = oracle.gradients(q, k, v, *given, extra=extra)
                    pieces.append(Piece("dq", at, got.q))
                    dk, dv = dk + got.k, dv + got.v
            if whole:
                pieces += [Piece("dk", shared, dk), Piece("dv", shared, dv, of_dv)]
        return pieces

    def check(self, built: Built, got: Any) -> list[Finding]:
        """Of every output of a contender, from what it returned.

        A contender that drops weights and cannot say which it keeps is judged by chances.
        Raises:
          ValueError: outputs of other shapes.
        """
        work, pieces, findings = self._work, self._pieces, []
        outputs, shapes = built.outputs(got), list(work.outputs.values())
        if (found := [x.shape for x in outputs]) != shapes:
            raise ValueError(f"outputs have shapes {found}, expected {shapes}")
        if work.option.rate and built.read_off is not None:
            kept = built.read_off(len(self._rows))
            findings, pieces = [kept.finding(work.option.rate)], self.expected(kept)
        for name, output in zip(work.outputs, outputs, strict=True):
            its = [piece for piece in pieces if piece.output == name]
            want = np.concatenate([piece.want.ravel() for piece in its])
            found = np.concatenate([output[piece.index].ravel() for piece in its])
            shown = errors(work, name, found, want)
            if work.option.rate and built.read_off is None:
                shown = _chances(work.option.rate, its, found, want)
            findings.append(Finding(name, shown))
        return findings

    def sample(self, outputs: Sequence[np.ndarray], size: int = 2**18) -> list[np.ndarray]:
        """The same random elements of every output, for `dissenters`."""
        random = np.random.default_rng(1)
        return [x.ravel()[random.integers(x.size, size=min(size, x.size))] for x in outputs]

    def dissenters(self, samples: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Finding]:
        """Who is far from the median of everyone's samples; with two, both are or neither.

        Nobody where everyone drops other weights, or where float64 reached everything.
        """
        found = {}
        if len(samples) > 1 and self._sampled and not self._work.option.rate:
            for name, *its in zip(self._work.outputs, *samples.values(), strict=True):
                middle = np.median(its, axis=0)
                findings = [Finding(name, errors(self._work, name, x, middle)) for x in its]
                found |= {who: x for who, x in zip(samples, findings, strict=True) if x.wrong}
        return found


def truth(
    work: Workload, arrays: Mapping[str, Any], heads: slice, rows: np.ndarray, keep: Any = None
) -> tuple[np.ndarray, oracle.Extra]:
    """What the oracle is told of some queries.

    arrays: of the option. keep: [h t s], of these heads and queries; None for the mean.
    """
    option, score = work.option, ()
    its = option.of(arrays, heads, rows)
    allowed = work.mask.allowed(work.queries, work.keys, rows)
    if "seen" in its:
        allowed = allowed & its["seen"][0]
    if option.added is not None:
        ahead_ts = np.arange(work.keys) - rows[:, None]
        score = (oracle.scores.Fixed(option.added(its, ahead_ts)),)
    if option.cap is not None:
        score = (oracle.scores.Cap(option.cap),)
    grown = 1 - option.rate if keep is None else keep  # 1 -: so that the factor is 1
    return allowed, oracle.Extra(score, its.get("sinks"), grown, option.rate)


def relative(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """Errors: root mean square over root mean square, and largest over largest."""
    off, want = np.asarray(got).astype(np.float64) - want, np.asarray(want, np.float64)
    rms = np.sqrt(np.mean(off**2) / np.mean(want**2))
    return float(rms), float(np.abs(off).max() / np.abs(want).max())


def errors(work: Workload, name: str, got: np.ndarray, want: np.ndarray) -> Shown:
    """Of an output, with what is allowed, as the module says."""
    (rms, peak), eps = relative(got, want), lambda dtype: float(ml_dtypes.finfo(dtype).eps)
    allowed = 4 * eps(work.dtype) + eps(FLOAT32) * max(work.queries, work.keys) ** 0.5 / 4
    allowed *= 1 if name == "out" else 2
    return {"rms": (rms, 0, allowed), "peak": (peak, 0, allowed * work.features**0.5)}


def _chances(rate: float, pieces: Sequence[Piece], got: np.ndarray, want: np.ndarray) -> Shown:
    """An output beside its mean and variance over all ways to drop weights."""
    off, size = got - want, (want**2).sum()
    error = float(np.sqrt(((off * want) ** 2).sum()) / size)
    shown: Shown = {"slope": (float(got @ want / size), 1, 0.02 + 8 * error)}
    if variance := sum(piece.variance for piece in pieces):
        x = float((off**2).sum() / variance * rate / (1 - rate))
        rows = sum(piece.want[..., 0].size for piece in pieces)  # features of a row drop alike
        shown["dropped"] = (x / (1 + x), rate, rate * (0.1 + 8 * (2 / rows) ** 0.5))
    return shown

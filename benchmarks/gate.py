"""The correctness gate: a contender whose results are wrong gets no time.

Every output is compared with float64, by the oracle that the tests use (`tests/oracle`). Small
workloads are computed whole. In larger ones every head is checked on some of its queries (out and
dq need only one query's row of scores), and dk and dv, which need every query, on one key/value
head. An output may be off by

    4 eps + 1/4 eps32 sqrt s      of the reference's root mean square, in root mean square
    sqrt d times that             of the reference's largest value, anywhere

with eps the spacing at 1 of the inputs' dtype, and eps32 that of float32, in which s terms are
summed one after another, their rounding errors adding up like a random walk. A gradient, which
subtracts nearly equal numbers, may be off by twice as much. One key too many or too few is an
error of about 1 / sqrt s, far more. What float64 did not reach is compared with the median of all
contenders that passed.

No two libraries drop the same weights at random. A contender that can say which it keeps (jaxattn:
keys and positions alone decide, so the pattern can be read off) is compared with float64 that drops
the same ones, as strictly as without dropout. The share it drops has to be the rate, within five
standard deviations, and no two heads may drop the same. Where not all is computed, the queries are
the first ones, and the key/value head the first, since that is what it can say.

Of any other, float64 gives the mean and the variance of what it may answer. Every output and
gradient is linear in what is kept, so its mean is the one without dropout:

    slope: <got, mean> / <mean, mean> has to be 1, within eight standard errors, and 0.02 more
    dropped: the share of weights dropped that the variance of out and dv around the mean shows:
           with x = Σ (got - mean)² / Σ variance · rate / (1 - rate), x / (1 + x);
           it has to be the rate, within a tenth of it and what the size of the sample allows

A contender that drops nothing, too much or too little, or does not grow what it keeps, fails. What
this does not show is whether the weights that such a contender drops are independent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Pattern:
    """The weights that a contender keeps, where the gate looks."""

    first: np.ndarray
    """[b h t s]: of the first queries."""
    one: np.ndarray
    """[h t s]: of all queries of the heads that share the first key/value head."""

    def of(self, b: int, heads: slice, rows: np.ndarray) -> np.ndarray:
        """[h t s]"""
        if rows[-1] < self.first.shape[2]:
            return self.first[b, heads][:, rows]
        assert (b, heads.start) == (0, 0), "only the first key/value head is known whole"
        return self.one[:, rows]

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


class Piece(NamedTuple):
    """The right values of an output at an index."""

    output: str
    index: tuple[Any, ...]
    want: np.ndarray
    variance: np.ndarray | None = None
    """Where weights are dropped at random, and it is a simple sum."""


def row_count(work: Workload, most_pairs: int) -> int:
    """How many queries of every head are looked at where not all of them are."""
    if work.scores <= most_pairs:
        return work.queries
    return min(work.queries, max(4, most_pairs // (work.batch * work.heads * work.keys)))


def expected(
    work: Workload,
    inputs: Inputs,
    *,
    most_pairs: int = MOST_PAIRS,
    seed: int = 0,
    kept: Pattern | None = None,
) -> list[Piece]:
    """The right values of the workload's outputs, all of them or a sample.

    Where weights are dropped: given what is `kept`; without it, mean and variance.
    """
    random = np.random.default_rng(seed)
    rows = np.arange(row_count(work, most_pairs))
    heads = list(np.ndindex(work.batch, work.kv_heads))
    summed = heads
    if work.scores > most_pairs:
        if not work.option.rate:
            inner = random.choice(work.queries, size=len(rows), replace=False)
            rows = np.unique(np.concatenate([[0, work.queries - 1], inner]))
        summed = [heads[0 if work.option.rate else random.integers(len(heads))]]
    pieces = []
    for b, n in heads:
        whole = work.gradient and (b, n) in summed
        found = _of_head(work, inputs, b, n, np.arange(work.queries) if whole else rows, kept)
        pieces += [piece for piece in found if whole or piece.output in ("out", "dq")]
    return pieces


def _of_head(
    work: Workload, inputs: Inputs, b: int, n: int, rows: np.ndarray, kept: Pattern | None
) -> list[Piece]:
    """What some queries of a key/value head give; dk and dv are summed over these queries."""
    group = work.heads // work.kv_heads
    heads, everything = slice(n * group, (n + 1) * group), (b, slice(None), slice(n, n + 1))
    k, v = inputs.k[everything], inputs.v[everything]
    pieces: list[Piece] = []
    sums = [np.zeros(k.shape), np.zeros(v.shape), np.zeros(v.shape)]
    for block in np.array_split(rows, -(-len(rows) * work.keys * group // BLOCK)):
        index = b, block, heads
        q, cotangent = inputs.q[index], inputs.cotangent[index]
        allowed, extra = _truth(work, inputs, heads, block, kept and kept.of(b, heads, block))
        out, _ = oracle.attention(q, k, v, allowed, extra=extra)
        of_out = None
        if work.option.rate:
            of_out, of_dv = oracle.variance(q, k, v, allowed, cotangent, extra)
            sums[2] += of_dv
        pieces.append(Piece("out", index, out, of_out))
        if work.gradient:
            none = np.zeros(q.shape[:-1])
            got = oracle.gradients(q, k, v, allowed, None, cotangent, none, extra=extra)
            pieces.append(Piece("dq", index, got.q))
            sums[0] += got.k
            sums[1] += got.v
    if work.gradient:
        of_dv = sums[2] if work.option.rate else None
        pieces += [Piece("dk", everything, sums[0]), Piece("dv", everything, sums[1], of_dv)]
    return pieces


def _truth(
    work: Workload, inputs: Inputs, heads: slice, rows: np.ndarray, keep: np.ndarray | None
) -> tuple[np.ndarray, oracle.Extra]:
    """What the oracle is told of some queries. keep: [h t s], what is kept; None for the mean."""
    option = work.option
    its = option.of(inputs.extra, heads, rows)
    ahead_ts = np.arange(work.keys) - rows[:, None]
    allowed = work.mask.allowed(work.queries, work.keys, rows)
    if "seen" in its:
        allowed = allowed & its["seen"][0]
    score: tuple[Any, ...] = ()
    if option.added is not None:
        score = (oracle.scores.Fixed(option.added(its, ahead_ts)),)
    if option.cap is not None:
        score = (oracle.scores.Cap(option.cap),)
    grown = 1 - option.rate if keep is None else keep  # so that without `keep` the factor is 1
    return allowed, oracle.Extra(score, its.get("sinks"), grown, option.rate)


@dataclass(frozen=True)
class Finding:
    """What an output shows: numbers by name, what each is to be, and how far off that it may be."""

    output: str
    shown: Mapping[str, tuple[float, float, float]]

    @property
    def wrong(self) -> bool:
        # Written so that NaN is wrong.
        return not all(abs(x - want) <= allowed for x, want, allowed in self.shown.values())

    def facts(self) -> dict[str, float]:
        return {name: float(f"{x:.5g}") for name, (x, _, _) in self.shown.items()}

    def __str__(self) -> str:
        parts = (f"{name} {x:.3g} ({y:g} ± {z:.2g})" for name, (x, y, z) in self.shown.items())
        return f"{self.output} is off: {', '.join(parts)}" if self.wrong else self.output


class WrongPattern(ValueError):
    """The weights that a contender says it drops are not a random share of them."""


class Gate:
    """Checks the outputs of contenders for one workload."""

    def __init__(self, work: Workload, inputs: Inputs, most_pairs: int = MOST_PAIRS) -> None:
        self._work, self._inputs, self._most_pairs = work, inputs, most_pairs
        self._pieces = expected(work, inputs, most_pairs=most_pairs)

    def check(self, built: Built, got: Any) -> list[Finding]:
        """Of what a contender returned."""
        return self.findings(built.outputs(got), built.read_off)

    def findings(
        self, outputs: Sequence[np.ndarray], read_off: Callable[[int], Pattern] | None = None
    ) -> list[Finding]:
        """Of every output against float64.

        read_off: from a number of first queries to what a contender that drops weights keeps;
          without it, chances are judged.
        Raises:
          ValueError: outputs of other shapes; a pattern that is not as random as it has to be.
        """
        work, pieces = self._work, self._pieces
        shapes, found = list(work.outputs.values()), [x.shape for x in outputs]
        if found != shapes:
            raise ValueError(f"outputs have shapes {found}, expected {shapes}")
        rate = work.option.rate
        if rate and read_off is not None:
            kept = read_off(row_count(work, self._most_pairs))
            if complaint := kept.complaint(rate):
                raise WrongPattern(complaint)
            pieces = expected(work, self._inputs, most_pairs=self._most_pairs, kept=kept)
        findings = []
        for name, output in zip(work.outputs, outputs, strict=True):
            its = [piece for piece in pieces if piece.output == name]
            want = np.concatenate([piece.want.ravel() for piece in its])
            got = np.concatenate([output[piece.index].ravel() for piece in its])
            by_chance = rate and read_off is None
            shown = _chances(got, want, its, rate) if by_chance else _errors(work, name, got, want)
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
        sampled = self._work.scores > self._most_pairs and not self._work.option.rate
        if len(samples) < 2 or not sampled:
            return found
        for number, name in enumerate(self._work.outputs):
            middle = np.median([s[number] for s in samples.values()], axis=0)
            for who, sample in samples.items():
                finding = Finding(name, _errors(self._work, name, sample[number], middle))
                if finding.wrong:
                    found[who] = finding
        return found


Shown = dict[str, tuple[float, float, float]]


def _errors(work: Workload, name: str, got: np.ndarray, want: np.ndarray) -> Shown:
    """Relative to the reference, as the module says."""
    off = got.astype(np.float64) - want
    eps = float(ml_dtypes.finfo(work.dtype).eps)
    summing = float(ml_dtypes.finfo(FLOAT32).eps) * max(work.queries, work.keys) ** 0.5 / 4
    allowed = (4 * eps + summing) * (1 if name == "out" else 2)
    rms = float(np.sqrt(np.mean(off**2)) / np.sqrt(np.mean(np.square(want))))
    peak = float(np.abs(off).max() / np.abs(want).max())
    return {"rms": (rms, 0, allowed), "peak": (peak, 0, allowed * work.features**0.5)}


def _chances(got: np.ndarray, want: np.ndarray, pieces: Sequence[Piece], rate: float) -> Shown:
    """An output beside its mean and variance over all ways to drop weights."""
    off, size = got.astype(np.float64) - want, np.square(want).sum()
    error = float(np.sqrt(np.square(off * want).sum()) / size)
    shown: Shown = {"slope": (float(got @ want / size), 1, 0.02 + 8 * error)}
    if pieces[0].variance is not None:
        variance = sum(float(np.asarray(piece.variance).sum()) for piece in pieces)
        x = float(np.square(off).sum()) / variance * rate / (1 - rate)
        rows = sum(piece.want[..., 0].size for piece in pieces)  # features of a row drop alike
        shown["dropped"] = (x / (1 + x), rate, rate * (0.1 + 8 * (2 / rows) ** 0.5))
    return shown

"""The correctness gate: a contender whose results are wrong gets no time.

Every output is compared with float64 (`reference.py`). It may be off by

    4 eps + 1/4 eps32 sqrt s      of the reference's root mean square, in root mean square
    sqrt d times that             of the reference's largest value, anywhere

with eps the spacing at 1 of the inputs' dtype, and eps32 that of float32, in which s terms are
summed one after another, their rounding errors adding up like a random walk. A gradient, which
subtracts nearly equal numbers, may be off by twice as much. One key too many or too few is an
error of about 1 / sqrt s, far more. What float64 did not reach is compared with the median of all
contenders that passed. Weights dropped at random have rules of their own: see `chance.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.chance import Chance, Pattern, judge
from benchmarks.reference import OUTPUTS, Piece, expected, row_count
from benchmarks.workloads import Dtype, Inputs, Workload


@dataclass(frozen=True)
class Error:
    """How far an output is off, relative to the reference, and how far it may be."""

    output: str
    rms: float
    peak: float
    allowed_rms: float
    allowed_peak: float

    @property
    def too_large(self) -> bool:
        # Written so that NaN is too large.
        return not (self.rms <= self.allowed_rms and self.peak <= self.allowed_peak)

    def facts(self) -> dict[str, Any]:
        return {"rms": float(f"{self.rms:.2e}"), "peak": float(f"{self.peak:.2e}")}

    def __str__(self) -> str:
        return (
            f"{self.output} is off by {self.rms:.1e} in rms ({self.allowed_rms:.1e} allowed) "
            f"and by {self.peak:.1e} at worst ({self.allowed_peak:.1e} allowed)"
        )


ReadOff = Callable[[int], Pattern]
"""From a number of first queries to the weights that a contender keeps."""


class WrongPattern(ValueError):
    """The weights that a contender says it drops are not a random share of them."""


class Gate:
    """Checks the outputs of contenders for one workload."""

    def __init__(self, work: Workload, inputs: Inputs, most_pairs: int = 2**24) -> None:
        self._work, self._inputs, self._most_pairs = work, inputs, most_pairs
        self._names = OUTPUTS[work.kind]
        self._pieces = expected(work, inputs, most_pairs=most_pairs)

    def errors(
        self, outputs: Sequence[np.ndarray], read_off: ReadOff | None = None
    ) -> list[Error] | list[Chance]:
        """The error of every output against float64.

        read_off: what a contender that drops weights keeps; without it, chances are judged.
        Raises:
          ValueError: outputs of other shapes; a pattern that is not as random as it has to be.
        """
        shapes = _shapes(self._work)
        got_shapes = [x.shape for x in outputs]
        if got_shapes != shapes[: len(self._names)]:
            raise ValueError(f"outputs have shapes {got_shapes}, expected {shapes}")
        rate, pieces = self._work.option.rate, self._pieces
        if rate and read_off is None:
            named = enumerate(self._names)
            return [judge(name, outputs[i], _of(i, pieces), rate) for i, name in named]
        if rate and read_off is not None:
            kept = read_off(row_count(self._work, self._most_pairs))
            if complaint := kept.complaint(rate):
                raise WrongPattern(complaint)
            pieces = expected(self._work, self._inputs, most_pairs=self._most_pairs, kept=kept)
        errors = []
        for number, name in enumerate(self._names):
            its = _of(number, pieces)
            want = np.concatenate([p.want.ravel() for p in its])
            got = np.concatenate([outputs[number][p.index].ravel() for p in its])
            errors.append(_error(self._work, name, got, want))
        return errors

    def sample(self, outputs: Sequence[np.ndarray], size: int = 2**18) -> list[np.ndarray]:
        """The same random elements of every output, for `dissenters`."""
        random = np.random.default_rng(1)
        return [x.ravel()[random.integers(x.size, size=min(size, x.size))] for x in outputs]

    def dissenters(self, samples: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Error]:
        """Who is far from the median of everyone's samples; with two, both are or neither.

        Nobody, where everyone drops other weights.
        """
        found = {}
        if len(samples) < 2 or self._work.option.rate:
            return found
        for number, name in enumerate(self._names):
            middle = np.median([s[number] for s in samples.values()], axis=0)
            for who, sample in samples.items():
                error = _error(self._work, name, sample[number], middle)
                if error.too_large:
                    found[who] = error
        return found


def summary(errors: Sequence[Error] | Sequence[Chance]) -> dict[str, Any]:
    """What a results file says about a contender's errors, relative to the reference."""
    return {e.output: e.facts() for e in errors}


def _of(number: int, pieces: Sequence[Piece]) -> list[Piece]:
    return [p for p in pieces if p.output == number]


def _error(work: Workload, name: str, got: np.ndarray, want: np.ndarray) -> Error:
    off = got.astype(np.float64) - want
    summing = Dtype.FLOAT32.eps * max(work.queries, work.keys) ** 0.5 / 4
    allowed = (4 * work.dtype.eps + summing) * (1 if name == "out" else 2)
    return Error(
        output=name,
        rms=float(np.sqrt(np.mean(off**2)) / np.sqrt(np.mean(np.square(want)))),
        peak=float(np.abs(off).max() / np.abs(want).max()),
        allowed_rms=allowed,
        allowed_peak=allowed * work.features**0.5,
    )


def _shapes(work: Workload) -> list[tuple[int, ...]]:
    shapes = work.shapes
    return [shapes["cotangent"], shapes["q"], shapes["k"], shapes["v"]]

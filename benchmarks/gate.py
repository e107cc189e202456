"""The correctness gate: a contender whose results are wrong gets no time.

Every output is compared with float64 (`reference.py`). It may be off by

    4 eps + 1/4 eps32 sqrt s      of the reference's root mean square, in root mean square
    sqrt d times that             of the reference's largest value, anywhere

with eps the spacing at 1 of the inputs' dtype, and eps32 that of float32, in which s terms are
summed one after another, their rounding errors adding up like a random walk. A gradient, which
subtracts nearly equal numbers, may be off by twice as much. One key too many or too few is an
error of about 1 / sqrt s, far more. What float64 did not reach is compared with the median of all
contenders that passed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.reference import OUTPUTS, expected
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

    def __str__(self) -> str:
        return (
            f"{self.output} is off by {self.rms:.1e} in rms ({self.allowed_rms:.1e} allowed) "
            f"and by {self.peak:.1e} at worst ({self.allowed_peak:.1e} allowed)"
        )


class Gate:
    """Checks the outputs of contenders for one workload."""

    def __init__(self, work: Workload, inputs: Inputs, most_pairs: int = 2**24) -> None:
        self._work = work
        self._names = OUTPUTS[work.kind]
        self._pieces = expected(work, inputs, most_pairs=most_pairs)

    def errors(self, outputs: Sequence[np.ndarray]) -> list[Error]:
        """The error of every output against float64."""
        shapes = _shapes(self._work)
        got_shapes = [x.shape for x in outputs]
        if got_shapes != shapes[: len(self._names)]:
            raise ValueError(f"outputs have shapes {got_shapes}, expected {shapes}")
        errors = []
        for number, name in enumerate(self._names):
            pieces = [p for p in self._pieces if p.output == number]
            want = np.concatenate([p.want.ravel() for p in pieces])
            got = np.concatenate([outputs[number][p.index].ravel() for p in pieces])
            errors.append(_error(self._work, name, got, want))
        return errors

    def sample(self, outputs: Sequence[np.ndarray], size: int = 2**18) -> list[np.ndarray]:
        """The same random elements of every output, for `dissenters`."""
        random = np.random.default_rng(1)
        return [x.ravel()[random.integers(x.size, size=min(size, x.size))] for x in outputs]

    def dissenters(self, samples: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Error]:
        """Who is far from the median of everyone's samples; with two, both are or neither."""
        found = {}
        if len(samples) < 2:
            return found
        for number, name in enumerate(self._names):
            middle = np.median([s[number] for s in samples.values()], axis=0)
            for who, sample in samples.items():
                error = _error(self._work, name, sample[number], middle)
                if error.too_large:
                    found[who] = error
        return found


def summary(errors: Sequence[Error]) -> dict[str, Any]:
    """What a results file says about a contender's errors, relative to the reference."""
    return {
        e.output: {"rms": float(f"{e.rms:.2e}"), "peak": float(f"{e.peak:.2e}")} for e in errors
    }


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

"""How numbers become colours: one norm to all maps that may be compared."""

from collections.abc import Iterable

import numpy as np
from matplotlib.colors import LogNorm, Normalize, PowerNorm

from jaxattn.plot.arrays import Numbers, numbers


def unit() -> Normalize:
    """Linear on [0, 1], for the weights of a small map."""
    return Normalize(0, 1)


def power(exponent: float = 0.5) -> PowerNorm:
    """Weights to a power on [0, 1], so that small ones are seen beside a large one."""
    return PowerNorm(exponent, 0, 1)


def log(floor: float = 1e-4) -> LogNorm:
    """Logarithmic from `floor` to 1. What is less, and 0 itself, has the colour of the floor.

    Raises:
      ValueError: the floor is not between 0 and 1.
    """
    if not 0 < floor < 1:
        raise ValueError(f"the floor of a logarithmic norm is between 0 and 1, got {floor}")
    return LogNorm(floor, 1, clip=True)  # without clip 0 would be masked


def ratio(most: float = 10.0) -> LogNorm:
    """Logarithmic from 1/most to most, for `enrichment`; white is as if all keys were alike.

    Raises:
      ValueError: `most` is not above 1.
    """
    if not most > 1:
        raise ValueError(f"a norm of ratios goes from 1/most to most, above 1, got most={most}")
    return LogNorm(1 / most, most, clip=True)


def centred(*arrays: Numbers) -> Normalize:
    """Linear and centred on 0, out to the largest finite |value| of all `arrays`; for logits.

    That end is rounded up to two significant digits, so that what the colour bar prints is exact.
    It is 1 where there is nothing but zeros.
    """
    peak = max((float(x) for x in _peaks(arrays)), default=0.0)
    if peak == 0:
        return Normalize(-1, 1)
    step = 10.0 ** (np.floor(np.log10(peak)) - 1)
    end = float(f"{np.ceil(peak / step) * step:.2g}")
    return Normalize(-end, end)


def _peaks(arrays: Iterable[Numbers]) -> Iterable[float]:
    for array in map(numbers, arrays):
        yield np.abs(array[np.isfinite(array)]).max(initial=0)


def divided(norm: Normalize, by: float) -> Normalize:
    """The same linear norm for values that were divided by `by`: every colour stays where it is."""
    low, high = ends(norm)
    return Normalize(low / by, high / by)


def ends(norm: Normalize) -> tuple[float, float]:
    """The ends of a norm, which must have both.

    Raises:
      ValueError: it has not.
    """
    low, high = norm.vmin, norm.vmax
    if low is None or high is None:
        raise ValueError(f"a norm must have both ends, got {low} to {high}; set vmin and vmax")
    return float(low), float(high)


def diverges(norm: Normalize) -> bool:
    """Whether a norm has a middle that stands for nothing in particular: 0, or the ratio 1."""
    low, high = ends(norm)
    return low < 1 < high if isinstance(norm, LogNorm) else low < 0 < high

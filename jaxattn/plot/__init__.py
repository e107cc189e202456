"""Attention, drawn: small matplotlib functions that take arrays and an `Axes`.

They write no file, keep no state, and return the artists. Arrays are those of JAX and NumPy and
what else NumPy reads. What a query may not see is NaN, which every map paints in the same neutral
grey: masked is not zero. One `norm` goes to all maps that may be compared, and one
`colorbar` says its range.

Needs matplotlib: `pip install "matplotlib>=3.10"`.
"""

try:
    import matplotlib as _  # noqa: F401
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        'jaxattn.plot draws with matplotlib, which is not here: pip install "matplotlib>=3.10"',
        name=missing.name,
    ) from None

from jaxattn.plot import norms
from jaxattn.plot.labels import readable, tokens
from jaxattn.plot.large import Head, head
from jaxattn.plot.maps import weights
from jaxattn.plot.marginals import marginal
from jaxattn.plot.matrix import MASKED, cells, colormap, hide, values
from jaxattn.plot.pooling import enrichment, pooled
from jaxattn.plot.scales import colorbar
from jaxattn.plot.small import Heads, heads
from jaxattn.plot.statistics import layers, table

__all__ = [
    "MASKED",
    "Head",
    "Heads",
    "cells",
    "colorbar",
    "colormap",
    "enrichment",
    "head",
    "heads",
    "hide",
    "layers",
    "marginal",
    "norms",
    "pooled",
    "readable",
    "table",
    "tokens",
    "values",
    "weights",
]

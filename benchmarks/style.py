"""How contenders and figures look."""

from dataclasses import dataclass
from typing import Any

from benchmarks.targets import OURS


@dataclass(frozen=True)
class Style:
    """How a contender looks: told apart by marker and label as much as by colour."""

    colour: str
    marker: str
    width: float = 1.6
    size: float = 5.5
    line: Any = "-"


# Okabe and Ito's palette, which colour-blind readers can tell apart.
STYLES = {
    OURS: Style("#0072B2", "o", 2.6, 7),
    "jax.nn": Style("#E06A00", "s", 1.8, 6),
    "Flax NNX": Style("#9B4F96", "D", 1.8, 4, (0, (2.2, 2.2))),
    "jax.nn cuDNN": Style("#8A6D00", "v"),
    "torch SDPA": Style("#007A5A", "^", size=6.5),
    "torch Flex": Style("#56B4E9", "P", size=6.5),
}
OTHER = Style("#555555", "x")

LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.labelcolor": "#222222",
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxattn",
}

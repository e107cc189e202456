"""What `import jaxattn` offers. `jaxattn` loads it when something of it is asked for."""

from jaxattn import cache, observe, rope
from jaxattn._axes import Attended
from jaxattn._trace import At
from jaxattn.attend import Scoring, attend, attention
from jaxattn.backends.blockwise.backend import Blockwise
from jaxattn.backends.hopper.backend import Hopper
from jaxattn.backends.protocol import Backend, Unsupported
from jaxattn.backends.reference import Reference
from jaxattn.backends.select import AUTO, Auto
from jaxattn.backends.splash.backend import Splash
from jaxattn.dropout import Dropout
from jaxattn.explain import Explanation, explain
from jaxattn.masks import (
    EVERYTHING,
    Causal,
    Dense,
    Lengths,
    Mask,
    PrefixLM,
    Segments,
    Where,
    Window,
)
from jaxattn.merge import merge
from jaxattn.positions import END, Positions
from jaxattn.scores import ALiBi, Bias, RelativeBias, Score, SoftCap, alibi_slopes

__all__ = [
    "AUTO",
    "END",
    "EVERYTHING",
    "ALiBi",
    "At",
    "Attended",
    "Auto",
    "Backend",
    "Bias",
    "Blockwise",
    "Causal",
    "Dense",
    "Dropout",
    "Explanation",
    "Hopper",
    "Lengths",
    "Mask",
    "Positions",
    "PrefixLM",
    "Reference",
    "RelativeBias",
    "Score",
    "Scoring",
    "Segments",
    "SoftCap",
    "Splash",
    "Unsupported",
    "Where",
    "Window",
    "alibi_slopes",
    "attend",
    "attention",
    "cache",
    "explain",
    "merge",
    "observe",
    "rope",
]

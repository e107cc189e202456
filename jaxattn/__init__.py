"""Attention for JAX that you can see through."""

from jaxattn import cache, observe, rope
from jaxattn._axes import Attended
from jaxattn._trace import At
from jaxattn.attend import Scoring, attend, attention
from jaxattn.backends.auto import AUTO, Unsupported
from jaxattn.backends.blockwise import Blockwise
from jaxattn.backends.reference import Reference
from jaxattn.dropout import Dropout
from jaxattn.explain import Explanation, explain
from jaxattn.masks import (
    END,
    EVERYTHING,
    Causal,
    Dense,
    Lengths,
    Mask,
    Positions,
    PrefixLM,
    Segments,
    Where,
    Window,
)
from jaxattn.merge import merge
from jaxattn.scores import ALiBi, Bias, RelativeBias, Score, SoftCap, alibi_slopes

__all__ = [
    "AUTO",
    "END",
    "EVERYTHING",
    "ALiBi",
    "At",
    "Attended",
    "Bias",
    "Blockwise",
    "Causal",
    "Dense",
    "Dropout",
    "Explanation",
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

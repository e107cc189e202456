"""Attention for JAX that you can see through."""

from jaxattn._axes import Attended
from jaxattn.attend import attend, attention
from jaxattn.backends.auto import AUTO, Unsupported
from jaxattn.backends.blockwise import Blockwise
from jaxattn.backends.reference import Reference
from jaxattn.masks import END, EVERYTHING, Causal, Dense, Lengths, Mask, Segments, Window

__all__ = [
    "AUTO",
    "END",
    "EVERYTHING",
    "Attended",
    "Blockwise",
    "Causal",
    "Dense",
    "Lengths",
    "Mask",
    "Reference",
    "Segments",
    "Unsupported",
    "Window",
    "attend",
    "attention",
]

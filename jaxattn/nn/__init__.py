"""Attention in Flax models: a module, a function for Flax's own modules, and a way to watch them.

    nnx.MultiHeadAttention(..., attention_fn=jaxattn.nn.attention_fn())  # any existing model
    out, seen = jaxattn.nn.watch(model, observe={"entropy": Entropy()})(x)

Needs Flax: `pip install "jaxattn[flax]"`.
"""

from jaxattn.nn.function import AttentionFn, Observed, attention_fn
from jaxattn.nn.module import MultiHeadAttention
from jaxattn.nn.watch import watch

__all__ = ["AttentionFn", "MultiHeadAttention", "Observed", "attention_fn", "watch"]

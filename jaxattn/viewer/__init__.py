"""One HTML page that shows the attention of a model: all heads, and each down to its arithmetic.

reading = viewer.from_weights(weights, tokens)      # [layers heads t s], as arrays
reading = viewer.from_qk(q, k, v, tokens=tokens)    # queries and keys, at any length
reading = viewer.from_model(model, ids, tokens)      # a model of jaxattn.models, in one pass
viewer.page(reading).save("attention.html")
"""

from jaxattn.viewer._make import Layer, from_observed, from_qk, from_weights
from jaxattn.viewer._model import from_model
from jaxattn.viewer._next import next_tokens
from jaxattn.viewer._page import Page, page
from jaxattn.viewer._reading import NextTokens, Reading, Statistics
from jaxattn.viewer._wanted import wanted

__all__ = [
    "Layer",
    "NextTokens",
    "Page",
    "Reading",
    "Statistics",
    "from_model",
    "from_observed",
    "from_qk",
    "from_weights",
    "next_tokens",
    "page",
    "wanted",
]

"""Attention rollout: how much of every input token is in every output token, over all layers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._axes import AnyArray, accumulator
from jaxattn._mask import Mask
from jaxattn._serial import serial_tuple
from jaxattn.attend import Scoring, attend
from jaxattn.masks import EVERYTHING
from jaxattn.observe.keys import ApplyTransposed
from jaxattn.observe.map import count_of, side_of
from jaxattn.observe.sweep import observe
from jaxattn.positions import Given


@serial_tuple
class Layer(NamedTuple):
    """The queries and keys of one layer, with as many of each, and what else makes its weights."""

    q: Float[AnyArray, "*b t h d"]
    k: Float[AnyArray, "*b t n d"]
    mask: Mask = EVERYTHING
    score: Scoring | None = None
    scale: Any = None
    sinks: Float[AnyArray, " h"] | None = None
    positions: Given = None


def rollout(layers: Sequence[Layer], vectors: Float[AnyArray, "*#b t x"]) -> Float[Array, "*b t x"]:
    """Rᵀ vectors, with R = (A_L + I)/2 ... (A_1 + I)/2 and A the mean of a layer's heads.

    With the unit vector of an output token it gives what every input token has in that token. No
    matrix [t t] is held.

    Args:
      layers: from the first to the last. vectors: broadcast over the batch.
    Source: Abnar and Zuidema 2020, section 3.
    """
    q = _first(layers).q
    r = jnp.asarray(vectors, accumulator(q.dtype))
    r = jnp.broadcast_to(r, (*q.shape[:-3], *r.shape[-2:]))
    for layer in reversed(layers):
        q, k, *_ = layer
        names = "mask", "score", "scale", "positions"
        options: dict[str, Any] = {name: getattr(layer, name) for name in names}
        lse = attend(q, k, k[..., :1], sinks=layer.sinks, **options).lse
        w = jnp.expand_dims(r, -3)  # the same for every head
        seen = observe(q, k, lse, {"r": ApplyTransposed(w)}, **options)["r"]
        r = (r + seen.mean(axis=-2)) / 2
    return r


def rollout_map(layers: Sequence[Layer], cells: int = 256) -> Float[Array, "*b rows columns"]:
    """R of `rollout` as a picture: output tokens down, input tokens across, as `Map` with SHARE.

    Pooling is linear: the cells of output tokens go through the layers as indicator vectors.
    """
    t = _first(layers).q.shape[-3]
    cell = jnp.arange(t) // side_of(t, cells)
    indicators = (cell[:, None] == jnp.arange(count_of(t, cells))).astype(jnp.float32)
    shares = rollout(layers, indicators / jnp.maximum(indicators.sum(axis=0), 1))
    return jnp.swapaxes(indicators.T @ shares, -1, -2)


def _first(layers: Sequence[Layer]) -> Layer:
    if not layers:
        raise ValueError(
            "rollout takes the layers of a model, from the first to the last, got none"
        )
    return layers[0]

"""What people look for in attention weights: a few lines of observations each, in linear memory.

All take q [*b t h d] and k [*b s n d], and as `options` what `jaxattn.attend` takes. If these do
not say otherwise the mask is causal, and the queries are the last of the keys. All are
differentiable where the mathematics is, and run inside `jax.jit`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn._axes import AnyArray
from jaxattn.attend import attend
from jaxattn.masks import Causal
from jaxattn.observe import (
    Diagonal,
    Distance,
    Entropy,
    MassOn,
    MaxLogit,
    Observation,
    Received,
    TopKeys,
)
from jaxattn.positions import END

__all__ = [
    "HeadScores",
    "coverage",
    "head_scores",
    "heavy_hitters",
    "low_entropy",
    "mean_distance",
    "qk_clip",
    "snapkv_scores",
]


def qk_clip(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    tau: float = 100.0,
    **options: Any,
) -> Float[Array, " h"]:
    """The factor for each head that brings its largest logit down to tau; 1 where it is below.

    It is of the products q kᵀ, before scores: multiply the head's query and key projections by its
    square root each.
    Source: QK-Clip, Kimi Team 2025, "Kimi K2: Open Agentic Intelligence", section 2.1.
    """
    largest = _see(q, k, MaxLogit(before_scores=True), options)
    return jnp.where(largest > tau, tau / largest, 1)


def low_entropy(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    floor: float = 1.0,
    **options: Any,
) -> Float[Array, ""]:
    """By how much the entropy of queries is below `floor`, in nats, on average: a term of a loss.

    Source: the collapse of entropy, Zhai et al. 2023, "Stabilizing Transformer Training by
    Preventing Attention Entropy Collapse".
    """
    return jnp.maximum(floor - _see(q, k, Entropy(), options), 0).mean()


def heavy_hitters(
    q: Float[AnyArray, "*b t h d"], k: Float[AnyArray, "*b s n d"], keep: int, **options: Any
) -> Int[Array, "*b h keep"]:
    """The keys that receive most weight in all, from the most down: those for a cache to keep.

    Source: H2O, Zhang et al. 2023, section 4.
    """
    mass = _see(q, k, Received(), options).mass
    return jax.lax.top_k(jnp.swapaxes(mass, -1, -2), keep)[1]


def snapkv_scores(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    window: int = 32,
    pool: int = 7,
    **options: Any,
) -> Float[Array, "*b s h"]:
    """The weight that the last `window` queries give to each key, the largest of `pool` neighbours.

    The keys with the largest scores are kept, and the window beside them.
    Source: SnapKV, Li et al. 2024, section 4.
    """
    votes = _see(q[..., -window:, :, :], k, Received(), options).mass
    sides = (*(1,) * (votes.ndim - 2), pool, 1)
    return jax.lax.reduce_window(votes, 0.0, jax.lax.max, sides, (1,) * votes.ndim, "SAME")


class HeadScores(NamedTuple):
    """What each head looks at, as a share of its weight from 0 to 1.

    previous: at the token before. induction: at what came after the same token one period ago.
    sink: at the first four keys.
    """

    previous: Float[Array, "*b h"]
    induction: Float[Array, "*b h"]
    sink: Float[Array, "*b h"]


def head_scores(
    q: Float[AnyArray, "*b t h d"], k: Float[AnyArray, "*b s n d"], period: int, **options: Any
) -> HeadScores:
    """Which heads are previous-token heads, induction heads and sinks.

    period: after how many tokens the input repeats itself.
    Source: Olsson et al. 2022, "In-context Learning and Induction Heads"; attention sinks, Xiao et
    al. 2023.
    """
    observe = {
        "previous": Diagonal(-1),
        "induction": Diagonal(1 - period),
        "sink": MassOn(4),
    }
    seen = _see_all(q, k, observe, options)
    return HeadScores(seen["previous"], seen["induction"], seen["sink"].mean(axis=-2))


def mean_distance(
    q: Float[AnyArray, "*b t h d"], k: Float[AnyArray, "*b s n d"], **options: Any
) -> Float[Array, "*b h"]:
    """How far back each head looks, in tokens: the mean over its queries.

    Source: Vig and Belinkov 2019, section 4.2; of images, Dosovitskiy et al. 2021, figure 7.
    """
    return _see(q, k, Distance(), options).mean.mean(axis=-2)


def coverage(
    q: Float[AnyArray, "*b t h d"], k: Float[AnyArray, "*b s n d"], count: int = 64, **options: Any
) -> Float[Array, "*b h"]:
    """The weight that the `count` largest of each query have together: the mean over queries.

    Near 1, a head loses little if each query reads only so many keys.
    """
    return _see(q, k, TopKeys(count), options).weights.sum(axis=-1).mean(axis=-2)


def _see(q: Any, k: Any, observation: Observation, options: dict[str, Any]) -> Any:
    return _see_all(q, k, {"it": observation}, options)["it"]


def _see_all(q: Any, k: Any, observe: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What is observed of the weights. The values are not needed: one feature stands for them."""
    options = {"mask": Causal(), "positions": END} | options
    return attend(q, k, k[..., :1], observe=observe, **options).observed

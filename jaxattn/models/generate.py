"""Tokens after a prompt, one at a time as they are made.

for id in generate(model, ids, most=100, sampling=Sampling(temperature=0.8, top_p=0.95)):
    print(stream(id), end="", flush=True)
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxattn._axes import AnyArray, AnyInteger
from jaxattn._batched import as_indices, integers
from jaxattn._content import is_whole
from jaxattn.models.model import Model

LEAST = 128  # tokens: what is compiled for one is used for all up to it


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen of its logits: by their softmax, as it is narrowed here.

    temperature: logits are divided by it; 0 for the most likely token.
    top_k: of the so many most likely tokens only.
    top_p: and of the fewest most likely ones that have this probability together, in (0, 1]
      (Holtzman et al. 2020, section 3.1).
    """

    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"a temperature is at least 0, got {self.temperature!r}")
        if self.top_k is not None and (not is_whole(self.top_k) or self.top_k < 1):
            raise ValueError(f"top_k is a number of tokens, at least 1, got {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is a probability above 0, up to 1, got {self.top_p!r}")

    def probabilities(self, logits: Float[AnyArray, "*b v"]) -> Float[Array, "*b v"]:
        """Of every token to be chosen."""
        if self.temperature == 0:
            return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
        return jax.nn.softmax(_narrow(logits, self.temperature, self.top_p, self.top_k))

    def choose(self, logits: Float[AnyArray, "*b v"], key: Any) -> Int[Array, "*b"]:
        """key: of jax.random; not read where the temperature is 0."""
        if self.temperature == 0:
            return _most_likely(logits)
        return _draw(logits, key, self.temperature, self.top_p, self.top_k)


GREEDY = Sampling(temperature=0.0)


def generate(
    model: Model,
    ids: Integer[AnyArray, "*b t"],
    *,
    most: int,
    sampling: Sampling = GREEDY,
    key: Any = None,
    count: Integer[AnyInteger, "*#b"] | None = None,
    stop: Collection[int] = (),
) -> Iterator[Int[np.ndarray, "*b"]]:
    """Yields the next tokens, `most` of them or fewer.

    One pass over the prompt fills a cache, a ring for layers with a window; then there is one pass
    over each new token. What is compiled for one length serves those near it too.

    Args:
      ids: the prompt; or several, with padding on the right where they differ in length.
      sampling: how tokens are chosen. key: of jax.random, for any but greedy.
      count: the length of each prompt; all of t if not given.
      stop: tokens that end a text, and are not given. A text of several that has ended gives -1.
    Raises:
      ValueError: at once: more tokens than the model has positions for, ids beyond the vocabulary,
        no key, a model whose tokens see those after them, or one without a head.
    """
    model._check_causal("generating")
    ids = np.asarray(model._check_ids(ids))
    batch, t = ids.shape[:-1], ids.shape[-1]
    if not is_whole(most) or most < 0:
        raise ValueError(f"most is a number of tokens, at least 0, got {most!r}")
    if key is None and sampling.temperature > 0:
        raise ValueError("sampling needs random bits, got no key; pass key=jax.random.key(0)")
    if model.head is None:
        model.logits(ids)  # says what is missing
    lengths = np.full(batch, t) if count is None else np.broadcast_to(count, batch)
    integers(lengths, "count")
    if lengths.size and not (lengths.min() >= 1 and lengths.max() <= t):
        raise ValueError(
            f"a count is from 1 to the {t} tokens of a prompt, got {lengths.min()} to "
            f"{lengths.max()}"
        )
    limit = model.embeddings.most_positions
    if limit is not None and t + most > limit:
        raise ValueError(
            f"this model has positions for {limit} tokens, got a prompt of {t} and {most} more; "
            f"shorten it, or ask for fewer"
        )
    return _generate(model, ids, int(most), sampling, key, lengths, frozenset(stop))


def _generate(
    model: Model, ids: Any, most: int, sampling: Sampling, key: Any, lengths: Any, stop: Any
) -> Iterator[Any]:
    batch, t = ids.shape[:-1], ids.shape[-1]
    caches = model.empty_caches(batch, _round_up(t + most))
    padded = np.pad(ids, [(0, 0)] * len(batch) + [(0, _round_up(t, 16) - t)])
    count = as_indices(np.asarray(lengths))
    hidden, _, caches = model._decode(jnp.asarray(padded), caches, count, None)
    hidden = jnp.take_along_axis(hidden, (count - 1)[..., None, None], axis=-2)
    ended = np.zeros(batch, bool)
    for step in range(most):
        last = jax.random.fold_in(key, step) if key is not None else None
        chosen = sampling.choose(model.logits(hidden)[..., 0, :], last)
        got = np.asarray(chosen)
        ended |= np.isin(got, list(stop))
        if ended.all() and stop:
            return
        yield np.where(ended, -1, got)
        if step + 1 < most:
            hidden, _, caches = model._decode(chosen[..., None], caches, None, None)


def _round_up(n: int, least: int = LEAST) -> int:
    """n, or more, so that few numbers are left: powers of 2, and halfway between."""
    size = least
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


@partial(jax.jit, static_argnums=3)
def _narrow(logits: Any, temperature: Any, top_p: Any, top_k: int | None) -> Array:
    """Logits by temperature, and -inf for tokens that are not among the chosen."""
    logits = logits / temperature
    if top_k is not None:
        best, _ = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
        logits = jnp.where(logits < best[..., -1:], -jnp.inf, logits)
    if top_p is not None:
        down = -jnp.sort(-logits, axis=-1)
        shares = jax.nn.softmax(down, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares  # of those that are more likely
        least = jnp.min(jnp.where(before < top_p, down, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


@partial(jax.jit, static_argnums=4)
def _draw(logits: Any, key: Any, temperature: Any, top_p: Any, top_k: int | None) -> Array:
    return jax.random.categorical(key, _narrow(logits, temperature, top_p, top_k)).astype(jnp.int32)


@jax.jit
def _most_likely(logits: Any) -> Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

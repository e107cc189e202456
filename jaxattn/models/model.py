"""A model of any family: embeddings, layers, a last norm, and a head.

Layers of one structure share one compiled program, so a model of many is ready as soon as one of
one layer. That also holds inside an outer `jax.jit`, which traces a layer once.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from jaxattn import cache as kv
from jaxattn._axes import AnyArray, AnyInteger, count_to
from jaxattn._batched import integers
from jaxattn._content import is_known, show
from jaxattn._serial import serial_tuple
from jaxattn.models.attention import Observe, Steps, Turn
from jaxattn.models.block import Layer
from jaxattn.models.layers import Embeddings, Head, Norm
from jaxattn.rope import Rope


@dataclass(frozen=True)
class Info:
    """What a model is. family: `model_type` of its config. features: of one head.

    causal: a token sees those before it; else all. most_tokens: for which the model was made.
    padding_id: a token that has no position, as in RoBERTa.
    """

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    features: int
    causal: bool
    most_tokens: int | None = None
    padding_id: int | None = None


@serial_tuple
class Result(NamedTuple):
    """hidden: the last hidden states, after the last norm. observed: for each layer, by name."""

    hidden: Float[Array, "*b t m"]
    observed: tuple[dict[str, Any], ...]


@serial_tuple
class Decoded(NamedTuple):
    """A `Result`, and the caches with the tokens."""

    hidden: Float[Array, "*b t m"]
    observed: tuple[dict[str, Any], ...]
    caches: tuple[kv.Cache, ...]


class Model(nnx.Module):
    """A model that `jaxattn.models.load` made of a checkpoint.

        hidden, observed = model(ids, observe={"entropy": Entropy()})
        observed[3]["entropy"]  # of layer 3: [*b t h]
        logits = model.logits(hidden[-1:])

    Its parameters are those of the file, in the file's layout: `model.layers[0].attention`.
    """

    def __init__(
        self,
        info: Info,
        embeddings: Embeddings,
        layers: list[Any],
        norm: Norm | None = None,
        head: Head | None = None,
    ) -> None:
        self.info = info
        self.embeddings = embeddings
        self.layers: Any = nnx.List(layers)
        self.norm, self.head = nnx.data(norm), nnx.data(head)

    def __call__(
        self,
        ids: Integer[AnyArray, "*b t"],
        *,
        padding: Bool[AnyArray, "*b t"] | None = None,
        positions: Integer[AnyArray, "*#b t"] | None = None,
        types: Integer[AnyArray, "*#b t"] | None = None,
        observe: Observe | None = None,
    ) -> Result:
        """The hidden states of all tokens, and what was seen of the attention in every layer.

        Args:
          ids: of the tokens.
          padding: False for tokens that are padding: they see nothing and nobody sees them.
          positions: of the tokens, from 0 on; if not given they are counted without the padding, so
            that this changes nothing, on whichever side it is. Only embeddings read them: masks go
            by the order of tokens.
          types: of the tokens, for models with embeddings of them; 0 if not given.
          observe: as in `jaxattn.attend`.
        Raises:
          ValueError: shapes disagree; ids beyond the vocabulary; more tokens than the model has
            positions for. TypeError: ids or positions that are no integers.
        """
        x, turns, padding = self._enter(ids, padding, positions, types)
        seen = []
        for layer in self.layers:
            x, observed = _forward(layer, x, turns.get(layer.attention.rope), padding, observe)
            seen.append(observed)
        return Result(self._leave(x), tuple(seen))

    def logits(self, hidden: Float[AnyArray, "*b m"]) -> Float[Array, "*b v"]:
        """The logits of the vocabulary, in float32, of some hidden states.

        Take those of the tokens that are wanted, such as `hidden[..., -1, :]` for the next one: for
        all tokens this is a large part of the work of a model.

        Raises:
          ValueError: the checkpoint has no head.
        """
        if self.head is None:
            raise ValueError(
                f"logits need a head, got a {self.info.family} checkpoint without one; load one "
                f"that was saved as a language model"
            )
        return _logits(self.head, self.embeddings.word, hidden)

    def hidden_states(
        self,
        ids: Integer[AnyArray, "*b t"],
        *,
        padding: Bool[AnyArray, "*b t"] | None = None,
        positions: Integer[AnyArray, "*#b t"] | None = None,
        types: Integer[AnyArray, "*#b t"] | None = None,
    ) -> tuple[Float[Array, "*b t m"], ...]:
        """The embeddings and the hidden states after every layer; the last are after the last norm.

        Takes and raises what a call does.
        """
        x, turns, padding = self._enter(ids, padding, positions, types)
        states = [x]
        for layer in self.layers:
            x, _ = _forward(layer, x, turns.get(layer.attention.rope), padding, None)
            states.append(x)
        return (*states[:-1], self._leave(x))

    def steps(
        self,
        ids: Integer[AnyArray, "*b t"],
        layer: int,
        *,
        padding: Bool[AnyArray, "*b t"] | None = None,
        positions: Integer[AnyArray, "*#b t"] | None = None,
        types: Integer[AnyArray, "*#b t"] | None = None,
    ) -> Steps:
        """What goes into the attention of one layer, and what comes out of it.

        Takes and raises what a call does. layer: from 0 on.
        """
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layers are from 0 to {len(self.layers) - 1}, got {layer}")
        x, turns, padding = self._enter(ids, padding, positions, types)
        for before in self.layers[:layer]:
            x, _ = _forward(before, x, turns.get(before.attention.rope), padding, None)
        last = self.layers[layer]
        return _steps(last, x, turns.get(last.attention.rope), padding)

    def empty_caches(self, batch: tuple[int, ...], capacity: int) -> tuple[kv.Cache, ...]:
        """A cache for each layer, a ring where a layer has a window that is smaller.

        capacity: how many tokens a sequence may have, the new ones included.
        """
        self._check_causal("a cache")
        dtype = self.embeddings.word.dtype
        caches = []
        for layer in self.layers:
            window = layer.attention.window
            window = None if window is None or window >= capacity else window
            heads, features = layer.attention.kv_heads, self.info.features
            caches.append(
                kv.empty(batch, window or capacity, heads, features, dtype=dtype, window=window)
            )
        return tuple(caches)

    def decode(
        self,
        ids: Integer[AnyArray, "*b t"],
        caches: tuple[kv.Cache, ...],
        *,
        count: Integer[AnyInteger, "*#b"] | None = None,
        observe: Observe | None = None,
    ) -> Decoded:
        """A call with the tokens after those of the caches, which are used up.

        count: how many of the t are tokens, from the first on, where sequences differ.
        Raises:
          ValueError: the caches are full. While tracing that cannot be told, and gives NaN.
        """
        self._check_causal("decoding")
        t = np.shape(ids)[-1] if np.ndim(ids) else 0
        for cache in caches:
            if cache.window is None and is_known(cache.length):
                longest = int(np.max(cache.length + (t if count is None else count), initial=0))
                if longest > cache.capacity:
                    raise ValueError(
                        f"these caches hold {cache.capacity} tokens, got {longest}; make larger "
                        f"ones with empty_caches(batch, capacity)"
                    )
                break  # all have the same tokens
        return self._decode(self._check_ids(ids), caches, count, observe)

    def _decode(self, ids: Array, caches: Any, count: Any, observe: Any) -> Decoded:
        """`decode` of ids that are checked. It waits for no result."""
        places = caches[0].positions(ids.shape[-1])
        end = caches[0].length + (ids.shape[-1] if count is None else jnp.asarray(count))
        x, turns = _embed(self.embeddings, ids, places, None, end, self._ropes)
        turns, seen, after = dict(zip(self._ropes, turns, strict=True)), [], []
        for layer, cache in zip(self.layers, caches, strict=True):
            turn = turns.get(layer.attention.rope)
            x, observed, cache = _decode(layer, x, turn, cache, count, observe)
            seen.append(observed)
            after.append(cache)
        return Decoded(self._leave(x), tuple(seen), tuple(after))

    @property
    def _ropes(self) -> tuple[Rope, ...]:
        """Those of all layers, each once."""
        ropes = (layer.attention.rope for layer in self.layers)
        return tuple(dict.fromkeys(rope for rope in ropes if rope is not None))

    def _enter(
        self, ids: Any, padding: Any, positions: Any, types: Any
    ) -> tuple[Array, dict[Rope | None, Turn], Any]:
        ids = self._check_ids(ids)
        most = self.embeddings.most_positions
        if most is not None and ids.shape[-1] > most:
            raise ValueError(
                f"this model has positions for {most} tokens, got {ids.shape[-1]}; cut the text"
            )
        for name, x, kind in (
            ("padding", padding, jnp.bool_),
            ("positions", positions, jnp.integer),
            ("types", types, jnp.integer),
        ):
            if x is not None and not jnp.issubdtype(jnp.asarray(x).dtype, kind):
                raise TypeError(f"{name} holds {kind.__name__}s, got {show(x)}; convert it")
            if x is not None and x.shape[-1:] != ids.shape[-1:]:
                raise ValueError(
                    f"{name} has one entry for each token, [*b t] = {ids.shape}, got {x.shape}"
                )
        padding = None if padding is None else jnp.broadcast_to(padding, ids.shape)
        length: Any = ids.shape[-1]
        if positions is None:
            positions = self._count(ids, padding)
        if positions is None:
            positions = count_to(length)
        else:
            positions = jnp.broadcast_to(positions, ids.shape).astype(jnp.int32)
            length = positions.max(axis=-1) + 1
        x, turns = _embed(self.embeddings, ids, positions, types, length, self._ropes)
        return x, dict(zip(self._ropes, turns, strict=True)), padding

    def _count(self, ids: Array, padding: Any) -> Any:
        """Positions that leave padding out; None where there is none."""
        if padding is None and self.info.padding_id is None:
            return None
        real = ids != self.info.padding_id if padding is None else padding
        return jnp.where(real, jnp.cumsum(real, axis=-1) - 1, 0 if padding is not None else -1)

    def _check_ids(self, ids: Any) -> Array:
        found = integers(ids, "ids")
        if not found.ndim or not found.shape[-1]:
            raise ValueError(f"ids are at least one token, [*b t], got shape {found.shape}")
        if isinstance(found, np.ndarray) or (is_known(found) and found.size < 1_000_000):
            least, most = int(np.min(found)), int(np.max(found))
            if least < 0 or most >= self.info.vocabulary:
                raise ValueError(
                    f"ids are from 0 to {self.info.vocabulary - 1}, got {least} to {most}; take "
                    f"the tokenizer of this model"
                )
        return jnp.asarray(found, jnp.int32)

    def _check_causal(self, what: str) -> None:
        if not self.info.causal:
            raise ValueError(
                f"{what} is for models whose tokens see only those before, got a "
                f"{self.info.family}, whose tokens see all; call the model with all tokens"
            )

    def _leave(self, x: Array) -> Array:
        return x if self.norm is None else _normalise(self.norm, x)


@partial(jax.jit, static_argnums=5)
def _embed(
    embeddings: Embeddings, ids: Any, positions: Any, types: Any, length: Any, ropes: Any
) -> tuple[Array, list[Turn]]:
    types = jnp.zeros(ids.shape[-1:], jnp.int32) if types is None else types
    x = embeddings(ids, positions, types)
    return x, [rope.cos_sin(positions, length, x.dtype) for rope in ropes]


@jax.jit
def _forward(layer: Layer, x: Any, turn: Any, padding: Any, observe: Any) -> Any:
    return layer(x, turn, padding, observe)


@partial(jax.jit, donate_argnums=3)
def _decode(layer: Layer, x: Any, turn: Any, cache: Any, count: Any, observe: Any) -> Any:
    return layer.decode(x, turn, cache, count, observe)


@jax.jit
def _steps(layer: Layer, x: Any, turn: Any, padding: Any) -> Steps:
    return layer.steps(x, turn, padding)


@jax.jit
def _normalise(norm: Norm, x: Any) -> Array:
    return norm(x)


@jax.jit
def _logits(head: Head, words: nnx.Param, hidden: Any) -> Array:
    return head(hidden, words[...])

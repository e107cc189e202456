"""A complete small language model: a decoder of pre-normalised blocks, as Llama has them.

    model = LanguageModel(Config(vocabulary=256, width=128, layers=4, heads=4), nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    loss = train_step(model, optimizer, ids)  # compiled
    ids = generate(model, prompt, 100, jax.random.key(0))

Source: Touvron et al. 2023, section 2.2; grouped heads, Ainslie et al. 2023.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, Float, Int

from jaxattn import nn
from jaxattn.cache import Cache
from jaxattn.masks import Causal, Mask, Window
from jaxattn.rope import Rope


@dataclass(frozen=True)
class Config:
    """The sizes of a model. kv_heads: as many as heads if not given. hidden: of the MLP, 8/3 of the
    width if not given. window: how many tokens a query sees, itself among them; None for all."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int | None = None
    hidden: int | None = None
    window: int | None = None
    theta: float = 10000.0
    dtype: Any = None


class MLP(nnx.Module):
    """down(silu(gate x) · up x) (Shazeer 2020)."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        width, hidden = config.width, config.hidden or 8 * config.width // 3
        linear = lambda a, b: nnx.Linear(a, b, use_bias=False, dtype=config.dtype, rngs=rngs)
        self.gate, self.up = linear(width, hidden), linear(width, hidden)
        self.down = linear(hidden, width)

    def __call__(self, x: Float[Array, "*b t m"]) -> Float[Array, "*b t m"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        norm = lambda: nnx.RMSNorm(config.width, dtype=config.dtype, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = nn.MultiHeadAttention(
            config.heads,
            config.width,
            num_kv_heads=config.kv_heads,
            rope=Rope(config.width // config.heads, config.theta),
            use_bias=False,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.mlp = MLP(config, rngs)

    def __call__(self, x: Float[Array, "*b t m"], mask: Mask) -> Float[Array, "*b t m"]:
        return self._add(x, self.attention(self.attention_norm(x), mask=mask))

    def decode(
        self, x: Float[Array, "*b t m"], cache: Cache, count: Int[Array, "*b"] | None
    ) -> tuple[Float[Array, "*b t m"], Cache]:
        """The block of the next tokens, and the cache with them."""
        y, cache = self.attention.decode(self.attention_norm(x), cache, count=count)
        return self._add(x, y), cache

    def _add(
        self, x: Float[Array, "*b t m"], attended: Float[Array, "*b t m"]
    ) -> Float[Array, "*b t m"]:
        x = x + attended
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nnx.Module):
    """Tokens to logits of the next token; the embedding is also the last layer."""

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.config = config
        init = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(
            config.vocabulary, config.width, embedding_init=init, dtype=config.dtype, rngs=rngs
        )
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, ids: Int[Array, "*b t"]) -> Float[Array, "*b t v"]:
        x, window = self._words(ids), self.config.window
        mask = Causal() if window is None else Window(window - 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(self.norm(x)).astype(jnp.float32)

    def empty_caches(self, batch: tuple[int, ...], capacity: int) -> tuple[Cache, ...]:
        """A cache for each layer."""
        return tuple(
            block.attention.empty_cache(batch, capacity, window=self.config.window)
            for block in self.blocks
        )

    def decode(
        self,
        ids: Int[Array, "*b t"],
        caches: tuple[Cache, ...],
        count: Int[Array, "*b"] | None = None,
    ) -> tuple[Float[Array, "*b t v"], tuple[Cache, ...]]:
        """Logits after the next tokens, and the caches with them. count: as in `cache.append`."""
        x, after = self._words(ids), []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.decode(x, cache, count)
            after.append(cache)
        return self.embed.attend(self.norm(x)).astype(jnp.float32), tuple(after)

    def _words(self, ids: Int[Array, "*b t"]) -> Float[Array, "*b t m"]:
        """Their embeddings, sharded as ids are where their type says so."""
        (table,) = promote_dtype((self.embed.embedding[...],), dtype=self.embed.dtype)
        typed = jax.typeof(ids).sharding
        if not typed.mesh.explicit_axes:
            return jnp.take(table, ids, axis=0)
        return table.at[ids].get(out_sharding=jax.P(*typed.spec, None))


def loss(model: LanguageModel, ids: Int[Array, "b t"]) -> Float[Array, ""]:
    """The mean cross-entropy of the next token, in nats; negative ids at the end are padding."""
    return cross_entropy(model, jnp.maximum(ids[:, :-1], 0), ids[:, 1:])


def cross_entropy(
    model: LanguageModel, inputs: Int[Array, "b t"], targets: Int[Array, "b t"]
) -> Float[Array, ""]:
    """The mean over targets that are not negative, in nats."""
    logs = jax.nn.log_softmax(model(inputs))
    is_target = jax.lax.broadcasted_iota(targets.dtype, logs.shape, 2) == targets[..., None]
    nats = -logs.sum(axis=-1, where=is_target)
    return nats.sum() / jnp.maximum((targets >= 0).sum(), 1)


@nnx.jit
def train_step(
    model: LanguageModel, optimizer: nnx.Optimizer, ids: Int[Array, "b t"]
) -> Float[Array, ""]:
    """One step of the optimizer; the loss before it."""
    nats, grads = nnx.value_and_grad(loss)(model, ids)
    optimizer.update(model, grads)
    return nats


def generate(
    model: LanguageModel,
    prompt: Int[Array, "b t"],
    count: int,
    key: Array,
    temperature: float = 1.0,
) -> Int[Array, "b count"]:
    """`count` tokens after the prompt: one pass over it, then a step for each.

    temperature: what logits are divided by; 0 for the most likely token.
    """
    capacity = model.config.window or prompt.shape[1] + count
    return _generate(model, prompt, capacity, count, key, temperature)


@partial(nnx.jit, static_argnums=(2, 3, 5))
def _generate(
    model: LanguageModel, prompt: Array, capacity: int, count: int, key: Array, temperature: float
) -> Array:
    caches = model.empty_caches((prompt.shape[0],), capacity)
    logits, caches = model.decode(prompt, caches)
    graph, state = nnx.split(model)

    def choose(logits: Array, key: Array) -> Array:
        if temperature == 0:
            return logits.argmax(axis=-1)
        return jax.random.categorical(key, logits / temperature)

    def step(carry: tuple[Array, tuple[Cache, ...]], key: Array) -> Any:
        logits, caches = carry
        ids = choose(logits, key)
        logits, caches = nnx.merge(graph, state).decode(ids[:, None], caches)
        return (logits[:, 0], caches), ids

    _, ids = jax.lax.scan(step, (logits[:, -1], caches), jax.random.split(key, count))
    return ids.T

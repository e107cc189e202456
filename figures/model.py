"""A language model small enough to look at: one layer of attention, trained in seconds.

There are no positions, no MLP and no normalisation, so everything the model knows about the words
before the last one came through the attention that the figures draw.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn import steps

TOKENS = ("Aero", "dynamics", "are", "for", "people", "who", "can", "'t", "build")
NEXT = "engine"

# The first word decides what cannot be built, and whether it is built or read: from `build` alone
# the next word cannot be known. `Aero plane` and `Hydro foil` keep `Aero` and `Hydro` from
# deciding everything.
CORPUS = tuple(
    tuple(sentence.split())
    for sentence in (
        "Aero dynamics are for people who can 't build engine s",
        "Aero plane s are for people who can 't build road s",
        "Hydro dynamics are for people who can 't build dam s",
        "Hydro foil s are for people who can 't build boat s",
        "Electro dynamics are for people who can 't build lamp s",
        "Thermo dynamics are for people who can 't build stove s",
        "Bridge s are for people who can 't build boat s",
        "Map s are for people who can 't read star s",
        "Clock s are for people who can 't read shadow s",
        "Tool s are for people who can build house s",
        "Book s are for people who can read mind s",
        "Oar s are for boat s",
    )
)
VOCABULARY = tuple(dict.fromkeys(token for sentence in CORPUS for token in sentence))


class Reading(NamedTuple):
    """What the model computes on a sentence: x, the attention's every intermediate, logits."""

    x: Float[Array, "t m"]
    attention: steps.MultiHead
    logits: Float[Array, "t v"]


class Trained(NamedTuple):
    """The model before and after training, and the loss of every step in nats a token."""

    before: "LanguageModel"
    after: "LanguageModel"
    losses: Float[np.ndarray, " count"]


class LanguageModel(nnx.Module):
    """logits = (X + attention(X)) W_out, with X the embeddings of the tokens."""

    def __init__(self, vocabulary: int, width: int, heads: int, head_width: int, rngs: nnx.Rngs):
        """Normal weights of deviation 0.02, as in GPT-2."""

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.heads = heads
        self.embed = normal(vocabulary, width)
        self.w_q = normal(width, heads * head_width)
        self.w_k = normal(width, heads * head_width)
        self.w_v = normal(width, heads * head_width)
        self.w_o = normal(heads * head_width, width)
        self.w_out = normal(width, vocabulary)

    def __call__(self, ids: Int[Array, " t"]) -> Reading:
        """Reads one sentence: row t of the logits scores the token that follows token t."""
        x = self.embed[...][ids]
        attention = steps.multi_head(
            x,
            self.w_q[...],
            self.w_k[...],
            self.w_v[...],
            self.w_o[...],
            self.heads,
            allowed=jnp.tril(jnp.ones((len(ids), len(ids)), bool)),
        )
        return Reading(x, attention, (x + attention.out) @ self.w_out[...])


def encode(tokens: tuple[str, ...]) -> Int[Array, " t"]:
    """The place of each token in VOCABULARY."""
    return jnp.array([VOCABULARY.index(token) for token in tokens])


def batch() -> Int[Array, "b t"]:
    """The ids of CORPUS, one sentence to a row, filled up on the right with -1."""
    longest = max(map(len, CORPUS))
    rows = [np.pad(encode(s), (0, longest - len(s)), constant_values=-1) for s in CORPUS]
    return jnp.array(rows)


def loss(model: LanguageModel, ids: Int[Array, "b t"]) -> Float[Array, ""]:
    """The mean cross-entropy of the next token, in nats, over all tokens that have a next one.

    The filling never counts: it comes last, where the causal mask hides it from every real token.
    """
    inputs, targets = jnp.maximum(ids[:, :-1], 0), ids[:, 1:]
    logits = jax.vmap(lambda row: model(row).logits)(inputs)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.mean(nats, where=targets >= 0)


def train(
    *, width: int, heads: int, head_width: int, count: int, rate: float, seed: int = 0
) -> Trained:
    """Trains on the whole CORPUS at every step, with Adam. The same arguments, the same bits."""
    before = LanguageModel(len(VOCABULARY), width, heads, head_width, nnx.Rngs(seed))
    graph, start = nnx.split(before)
    ids = batch()
    optimizer = optax.adam(rate)

    def step(carry, _):
        params, state = carry
        nats, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), ids))(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), nats

    run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=count))
    (params, _), losses = run(start)
    return Trained(before, nnx.merge(graph, params), np.asarray(losses))

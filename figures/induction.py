"""Induction heads that emerge in training: a two-layer transformer of nothing but attention.

It reads random tokens that repeat with a period that it is not told. No token can be foretold the
first time round; the second time every one can, by looking for the last place where the token at
hand stood, and copying what came next: an induction head. That takes two layers, since the first
has to tell every token what stood before it: a previous-token head.

`python -m figures.induction` trains it (a minute or two) and writes CHECKPOINT. The weights of the
attention are never held: every number here is an observation of `jaxattn.attend`.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads".
"""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tqdm import tqdm

import jaxattn as ja
from jaxattn.observe import Diagonal, Entropy, Fold, Map, Observation, Seen

VOCABULARY, WIDTH, HEADS = 64, 64, 4
LENGTH = 64  # queries of a sequence, which has one token more: the last query's next
PERIOD, PERIODS = 32, (8, 48)  # of the held-out sequences; the range in training
BATCH, HELD_OUT = 64, 64  # sequences
COUNT, RATE, SEED = 2500, 3e-3, 0
EVALUATED = np.unique(  # the steps before which the heads are looked at: densest where they change
    np.concatenate([[0], np.geomspace(1, 300, 16), np.arange(300, 600, 10), np.geomspace(600, COUNT, 14)])
    .round()
    .astype(int)
)
CHECKPOINT = Path(__file__).parent / "checkpoints" / "induction.npz"


class Layer(NamedTuple):
    """The projections of one layer of attention, a matrix to each head."""

    q: Float[Array, "m h d"]
    k: Float[Array, "m h d"]
    v: Float[Array, "m h d"]
    o: Float[Array, "h d m"]


class Transformer(NamedTuple):
    """x = embed; x += attention(norm(x)) in each layer; logits = norm(x) out."""

    embed: Float[Array, "v m"]
    layers: tuple[Layer, ...]
    out: Float[Array, "m v"]


class Reading(NamedTuple):
    """Row t of the logits scores the token that follows token t. observed: of each layer."""

    logits: Float[Array, "b t v"]
    observed: tuple[dict[str, Any], ...]


class Losses(NamedTuple):
    """Mean cross-entropies of the next token, in nats, where it is new and where it repeats."""

    new: Float[Array, ""]
    repeated: Float[Array, ""]


class Statistics(NamedTuple):
    """Every head on the held-out sequences, the mean over them. accuracy: of the likeliest token.

    previous: the weight that a query gives to the token before it.
    induction: the weight that a query of the repeat gives to what followed its token the first time.
    entropy: of a query's weights, in nats.
    """

    previous: Float[Array, "layer h"]
    induction: Float[Array, "layer h"]
    entropy: Float[Array, "layer h"]
    loss: Losses
    accuracy: Losses


class Training(NamedTuple):
    """The model after the last step, the loss of every step, and the statistics on the way.

    steps: how many steps were behind the model at each entry of the statistics.
    """

    model: Transformer
    losses: Losses
    steps: Int[np.ndarray, " e"]
    statistics: Statistics


# The model


def start(key: Array, vocabulary: int = VOCABULARY, width: int = WIDTH, heads: int = HEADS):
    """Normal parameters of deviation 1/√width, two layers."""

    def normal(number: int, *shape: int) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape) * width**-0.5

    into, back = (width, heads, width // heads), (heads, width // heads, width)
    layers = [Layer(*(normal(4 * i + j, *s) for j, s in enumerate((into, into, into, back)))) for i in range(2)]
    return Transformer(normal(8, vocabulary, width), tuple(layers), normal(9, width, vocabulary))


def norm(x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """x over the root of its mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rotate(x: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
    """Turns the pair of features (j, j + d/2) by t · 100^(-2j/d), so q·k depends on distance alone.

    Source: Su et al. 2021, "RoFormer", section 3.2; the base is 100 since sequences are short.
    """
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None, None] * 100.0 ** (-jnp.arange(half) / half)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def read(
    model: Transformer, ids: Int[Array, "b t"], watch: Mapping[str, Observation] | None = None
) -> Reading:
    """Reads sequences, and observes the attention of both layers."""
    x, observed = model.embed[ids], []
    for layer in model.layers:
        y = norm(x)
        q, k, v = (jnp.einsum("btm,mhd->bthd", y, w) for w in (layer.q, layer.k, layer.v))
        seen = ja.attend(rotate(q), rotate(k), v, mask=ja.Causal(), observe=watch)
        x = x + jnp.einsum("bthd,hdm->btm", seen.out, layer.o)
        observed.append(seen.observed)
    return Reading(norm(x) @ model.out, tuple(observed))


# The sequences


def repeat(tokens: Int[Array, "b n"], period: Int[Array, " b"], length: int) -> Int[Array, "b length"]:
    """The first `period` tokens of each row, over and over."""
    return jnp.take_along_axis(tokens, jnp.arange(length) % period[:, None], axis=1)


def batch(key: Array) -> tuple[Int[Array, "b t+1"], Int[Array, " b"]]:
    """Sequences to train on, of independent uniform tokens, and their periods."""
    tokens, period = jax.random.split(key)
    low, high = PERIODS
    period = jax.random.randint(period, (BATCH,), low, high + 1)
    tokens = jax.random.randint(tokens, (BATCH, high), 0, VOCABULARY)
    return repeat(tokens, period, LENGTH + 1), period


@cache
def held_out() -> Int[np.ndarray, "b t+1"]:
    """The sequences that every statistic is of: twice the same PERIOD tokens, all of them different.

    So each query of the repeat has one place to look at.
    """
    keys = jax.random.split(jax.random.key(SEED + 1), HELD_OUT)
    tokens = jax.vmap(lambda key: jax.random.permutation(key, VOCABULARY))(keys)
    return np.asarray(repeat(tokens, jnp.full(HELD_OUT, PERIOD), LENGTH + 1))


def parts(values: Float[Array, "b t"], period: Int[Array, " b"]) -> Losses:
    """The means of `values` over the queries whose next token is new, and whose next one repeats.

    The last query of the first round is neither: nothing tells it that the repeat begins.
    """
    t = jnp.arange(values.shape[1])
    new, again = t < period[:, None] - 1, t >= period[:, None]
    return Losses(values.mean(where=new), values.mean(where=again))


# The statistics


def induction(period: int) -> Observation:
    """The mean weight of key i - period + 1 for query i, over the repeat, i >= period: [*b h].

    Of a sequence of 2 · period tokens. It is `Diagonal(1 - period)` without the query
    i = period - 1: that one reaches back to key 0, but its own token has not been seen before.
    """

    def absorb(seen: Seen) -> Array:
        next_one = seen.k == seen.q[:, None] - period + 1
        again = seen.q[:, None] >= period
        return jnp.where(next_one & again, seen.weights, 0).sum()

    return Fold(start=lambda: 0.0, absorb=absorb, finish=lambda total: total / period)


@partial(jax.jit, static_argnums=2)
def statistics(model: Transformer, ids: Int[Array, "b t+1"], period: int = PERIOD) -> Statistics:
    """Every head on sequences of 2 · period tokens and the next, from observations alone.

    All sequences have equally many queries that count, so means over them are means over queries.
    """
    watch = {"previous": Diagonal(-1), "induction": induction(period), "entropy": Entropy()}
    logits, observed = read(model, ids[:, :-1], watch)
    right = (logits.argmax(axis=-1) == ids[:, 1:]).astype(logits.dtype)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    periods = jnp.full(len(ids), period)
    return Statistics(
        previous=jnp.stack([layer["previous"].mean(axis=0) for layer in observed]),
        induction=jnp.stack([layer["induction"].mean(axis=0) for layer in observed]),
        entropy=jnp.stack([layer["entropy"].mean(axis=(0, 1)) for layer in observed]),
        loss=parts(nats, periods),
        accuracy=parts(right, periods),
    )


@jax.jit
def maps(model: Transformer, ids: Int[Array, " t"]) -> Float[Array, "layer h t t"]:
    """A picture of every head on one sequence, a cell to each pair."""
    observed = read(model, ids[None], {"map": Map(cells=len(ids))}).observed
    return jnp.stack([layer["map"][0] for layer in observed])


# Training


def train(count: int = COUNT, evaluated=EVALUATED, seed: int = SEED) -> Training:
    """Adam on a new batch at every step. The same arguments, the same bits on the same machine."""
    key = jax.random.key(seed)
    model, optimizer = start(key), optax.adam(RATE)

    def loss(model: Transformer, ids: Array, period: Array) -> tuple[Array, Losses]:
        logits = read(model, ids[:, :-1]).logits
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
        return nats.mean(), parts(nats, period)

    @jax.jit
    def step(model: Transformer, state: Any, number: int):
        ids, period = batch(jax.random.fold_in(key, 100 + number))
        grads, losses = jax.grad(loss, has_aux=True)(model, ids, period)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(model, updates), state, losses

    state, losses, seen = optimizer.init(model), [], []
    ids = jnp.asarray(held_out())
    for number in (bar := tqdm(range(count + 1), unit="step")):
        if number in evaluated:
            seen.append(statistics(model, ids))
            bar.set_postfix(repeated=f"{seen[-1].loss.repeated:.2f} nats")
        if number < count:
            model, state, nats = step(model, state, number)
            losses.append(nats)
    stack = lambda *x: np.stack(x)
    steps = np.asarray(evaluated)
    return Training(model, jax.tree.map(stack, *losses), steps, jax.tree.map(stack, *seen))


# The checkpoint


def save(training: Training, path: Path = CHECKPOINT) -> None:
    """Writes every array by its place in `Training`, such as `model.layers[0].q`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(training)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{jax.tree_util.keystr(at)[1:]: np.asarray(leaf) for at, leaf in leaves})

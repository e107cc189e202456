"""Induction heads that form in training: a transformer of two layers of attention and no MLP.

It reads random tokens that repeat after a period that it is not told. No token can be foretold the
first time round. The second time every one can: find where the token at hand stood before, and copy
the token after it. A head that does so is an induction head; it is in layer 2, and needs a head in
layer 1 that has told every token which one stood before it, a previous-token head.

All that the figure shows of the attention weights is observed by `jaxattn.attend`.

`python -m figures.induction` trains it, in a minute or two, and writes CHECKPOINT.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads".
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr
from jaxtyping import Array, Float, Int
from tqdm import tqdm

import jaxattn as ja
from jaxattn.observe import Diagonal, Entropy, Fold, Observation, Seen
from jaxattn.rope import Rope, apply_rope

VOCABULARY, WIDTH, HEADS = 64, 64, 4
PERIOD, LENGTH = 32, 64  # of a held-out sequence, and queries in any: two periods
PERIODS = (8, 48)  # in training
SEQUENCES = 64  # in a batch, and held out
COUNT, ADAM = 2500, optax.adam(3e-3)
# Of the seeds 0 to 5 all form induction heads between steps 300 and 600. With this one a single
# head of layer 1 scores highest as a previous-token head; with some, two or three share that.
SEED = 5
# How many steps were taken when heads are looked at: most often where they change.
EVALUATED = (
    *(0, 10, 14, 19, 26, 36, 48, 66, 90, 120, 150, 190, 230, 270),
    *range(300, 600, 8),
    *(610, 680, 770, 880, 1000, 1150, 1350, 1600, 1850, 2150, COUNT),
)
CHECKPOINT = Path(__file__).parent / "checkpoints" / "induction.npz"

Numbers: TypeAlias = Array | np.ndarray


class Layer(NamedTuple):
    """The projections of one layer, for each head."""

    q: Float[Array, "m h d"]
    k: Float[Array, "m h d"]
    v: Float[Array, "m h d"]
    o: Float[Array, "h d m"]


class Transformer(NamedTuple):
    """x = embed, x += attention(normalise(x)) twice, logits = normalise(x) · out."""

    embed: Float[Array, "v m"]
    layers: tuple[Layer, Layer]
    out: Float[Array, "m v"]


class Reading(NamedTuple):
    """Row t of the logits scores the token that follows token t; observed: of each layer."""

    logits: Float[Array, "b t v"]
    observed: list[dict[str, Any]]


class Parts(NamedTuple):
    """The mean over the queries whose next token is new, and over those whose next one repeats."""

    new: Float[Numbers, ""]
    repeated: Float[Numbers, ""]


class Statistics(NamedTuple):
    """How every head attends, and how well tokens are foretold. Means over held-out sequences.

    previous: the weight of the token before the query, where there is one.
    induction: the weight of what came after the query's token the first time, in the repeat.
    entropy: of the weights of a query, in nats.
    loss: the cross-entropy of the next token, in nats.
    accuracy: how often the likeliest token is the next.
    """

    previous: Float[Numbers, "layer h"]
    induction: Float[Numbers, "layer h"]
    entropy: Float[Numbers, "layer h"]
    loss: Parts
    accuracy: Parts


class Training(NamedTuple):
    """The model after training, the loss of each step's batch, and statistics on the way.

    steps: how many steps were taken before each of the statistics, which have them as first axis.
    """

    model: Transformer
    losses: Parts
    steps: Int[np.ndarray, " n"]
    statistics: Statistics


# The model


def start(
    key: Array, vocabulary: int = VOCABULARY, width: int = WIDTH, heads: int = HEADS
) -> Transformer:
    """A model of normal parameters with deviation 1/√width."""
    into, back = (width, heads, width // heads), (heads, width // heads, width)

    def normal(number: int, *shape: int) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape) * width**-0.5

    def layer(first: int) -> Layer:
        q, k, v = (normal(first + i, *into) for i in range(3))
        return Layer(q, k, v, normal(first + 3, *back))

    return Transformer(
        normal(8, vocabulary, width), (layer(0), layer(4)), normal(9, width, vocabulary)
    )


def normalise(x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """x over the root of its mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def read(
    model: Transformer, ids: Int[Array, "b t"], watch: Mapping[str, Observation] | None = None
) -> Reading:
    """Reads sequences, and observes the attention of both layers."""
    x, observed = model.embed[ids], []
    positions = jnp.arange(ids.shape[1])
    rope = Rope(model.layers[0].q.shape[-1], theta=100.0)  # positions are few
    for layer in model.layers:
        y = normalise(x)
        q, k, v = (jnp.einsum("btm,mhd->bthd", y, w) for w in (layer.q, layer.k, layer.v))
        q, k = apply_rope(q, positions, rope), apply_rope(k, positions, rope)
        seen = ja.attend(q, k, v, mask=ja.Causal(), observe=watch)
        x = x + jnp.einsum("bthd,hdm->btm", seen.out, layer.o)
        observed.append(seen.observed)
    return Reading(normalise(x) @ model.out, observed)


# The sequences


def repeat(tokens: Int[Array, "b n"], period: Int[Array, " b"]) -> Int[Array, "b t+1"]:
    """LENGTH tokens and the next: the first `period` of each row, over and over."""
    return jnp.take_along_axis(tokens, jnp.arange(LENGTH + 1) % period[:, None], axis=1)


def batch(key: Array) -> tuple[Int[Array, "b t+1"], Int[Array, " b"]]:
    """Sequences to train on, of independent uniform tokens, and their periods."""
    of_tokens, of_periods = jax.random.split(key)
    low, high = PERIODS
    period = jax.random.randint(of_periods, (SEQUENCES,), low, high + 1)
    tokens = jax.random.randint(of_tokens, (SEQUENCES, high), 0, VOCABULARY)
    return repeat(tokens, period), period


@cache
def held_out() -> Int[np.ndarray, "b t+1"]:
    """The sequences of all statistics: PERIOD tokens, all different, twice.

    So every query of the repeat has one place to look for, and one only.
    """
    keys = jax.random.split(jax.random.key(0), SEQUENCES)
    tokens = jax.vmap(lambda key: jax.random.permutation(key, VOCABULARY))(keys)
    return np.asarray(repeat(tokens, jnp.full(SEQUENCES, PERIOD)))


def parts(values: Float[Array, "b t"], period: Int[Array, " b"]) -> Parts:
    """The means of `values` over the two kinds of queries.

    The last query of the first round is of neither: nothing tells it that the repeat begins.
    """
    t, period = jnp.arange(values.shape[1]), period[:, None]
    return Parts(values.mean(where=t < period - 1), values.mean(where=t >= period))


# Statistics


def induction(period: int) -> Observation:
    """The mean weight of key i - period + 1 for query i, over i >= period: [*b h].

    Of 2 · period tokens. `Diagonal(1 - period)` has one query more, i = period - 1: it can see
    such a key, but its token is new, so there is nothing before it to copy.
    """

    def absorb(seen: Seen) -> Array:
        i = seen.q[:, None]
        return jnp.where((i >= period) & (seen.k == i - period + 1), seen.weights, 0).sum()

    return Fold(start=lambda: 0.0, absorb=absorb, finish=lambda total: total / period)


@partial(jax.jit, static_argnums=2)
def statistics(model: Transformer, ids: Int[Array, "b t+1"], period: int = PERIOD) -> Statistics:
    """Of sequences that repeat after `period` tokens; t is 2 · period.

    As many queries count in one sequence as in another, so means of means are means.
    """
    watch = {"previous": Diagonal(-1), "induction": induction(period), "entropy": Entropy()}
    logits, observed = read(model, ids[:, :-1], watch)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    right = (logits.argmax(axis=-1) == ids[:, 1:]).astype(logits.dtype)
    periods = jnp.full(len(ids), period)
    return Statistics(
        previous=jnp.stack([layer["previous"].mean(axis=0) for layer in observed]),
        induction=jnp.stack([layer["induction"].mean(axis=0) for layer in observed]),
        entropy=jnp.stack([layer["entropy"].mean(axis=(0, 1)) for layer in observed]),
        loss=parts(nats, periods),
        accuracy=parts(right, periods),
    )


# Training


def loss(
    model: Transformer, ids: Int[Array, "b t+1"], period: Int[Array, " b"]
) -> tuple[Float[Array, ""], Parts]:
    """The mean cross-entropy of the next token, in nats, and its parts."""
    logits = read(model, ids[:, :-1]).logits
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    return nats.mean(), parts(nats, period)


@jax.jit
def step(model: Transformer, state: Any, key: Array) -> tuple[Transformer, Any, Parts]:
    """One step of Adam on a new batch, with the loss before it."""
    grads, losses = jax.grad(loss, has_aux=True)(model, *batch(key))
    updates, state = ADAM.update(grads, state)
    return jax.tree.map(jnp.add, model, updates), state, losses


def train(count: int = COUNT, evaluated: Sequence[int] = EVALUATED, seed: int = SEED) -> Training:
    """Trains, with a progress bar. The same arguments, the same bits on the same machine."""
    key, ids = jax.random.key(seed), jnp.asarray(held_out())
    model = start(key)
    state, losses, seen = ADAM.init(model), [], []
    for number in (bar := tqdm(range(count + 1), unit="step", mininterval=1)):
        if number in evaluated:
            seen.append(statistics(model, ids))
            bar.set_postfix(repeated=f"{seen[-1].loss.repeated:.2f} nats", refresh=False)
        if number < count:
            own = jax.random.fold_in(key, 100 + number)  # the first 10 are of the parameters
            model, state, nats = step(model, state, own)
            losses.append(nats)
    stack = lambda *each: np.stack(each)
    steps = np.array([number for number in evaluated if number <= count])
    return Training(model, jax.tree.map(stack, *losses), steps, jax.tree.map(stack, *seen))


def save(training: Training, path: Path = CHECKPOINT) -> None:
    """Writes every array under its place in `Training`, such as `model.layers[0].q`."""
    places, _ = jax.tree.flatten_with_path(training)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {keystr(at)[1:]: np.asarray(x) for at, x in places}
    np.savez(path, **arrays)


def load(path: Path = CHECKPOINT) -> Training:
    """What `save` wrote."""
    blank: Any = np.zeros(0)
    two, model = Parts(blank, blank), jax.eval_shape(start, jax.random.key(0))
    form = Training(model, two, blank, Statistics(blank, blank, blank, two, two))
    places, tree = jax.tree.flatten_with_path(form)
    with np.load(path) as arrays:
        training = jax.tree.unflatten(tree, [arrays[keystr(at)[1:]] for at, _ in places])
    return training._replace(model=jax.tree.map(jnp.asarray, training.model))


if __name__ == "__main__":
    save(train())

"""A small language model that knows the licence by heart, and where its heads look as it reads.

It is `jaxattn.models.language` on the characters of the licence, whose end is held back. Every
query sees WINDOW characters, itself among them, so a text may be of any length, and all that was
learnt is read in one call.

All that the figure shows of the attention weights is observed by `jaxattn.nn.watch`.

`python -m figures.reading` trains it, in some minutes, and writes CHECKPOINT.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from tqdm import tqdm

import jaxattn as ja
from figures import recall
from jaxattn import nn
from jaxattn.models.language import Config, LanguageModel, generate, train_step
from jaxattn.observe import Entropy, Fold, Observation, Rows, Seen

TEXT = recall.licence()
HELD_BACK = 1280  # the last characters, which training does not see
LEARNT = len(TEXT) - HELD_BACK
CHARACTERS = "".join(sorted(set(TEXT)))
WINDOW, LENGTH, SEQUENCES = 64, 256, 16  # LENGTH and SEQUENCES: of a batch
CONFIG = Config(len(CHARACTERS), width=64, layers=4, heads=4, hidden=128, window=WINDOW)
COUNT, SEED = 900, 0
RATE = optax.warmup_cosine_decay_schedule(0, 3e-3, 50, COUNT, 3e-4)
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.1))
PASSAGE = "publicly display, publicly perform, sublicense,"
COPIED = 4  # a query can copy if its last so many characters stood in its window before
PROMPT = 64  # the characters that the model is given to recite the rest
CHECKPOINT = Path(__file__).parent / "checkpoints" / "reading.npz"

PART_NAMES = ("itself", "rest of its word", "the word before", "farther")


class Heads(NamedTuple):
    """How every head attends, in means over the characters of a text.

    parts: the share of the weight that goes to each of PART_NAMES, which sum to 1. A space
      belongs to the word that it ends.
    copied: the weight of what came next after the same COPIED characters in the window, over the
      queries for which there is such a key.
    entropy: of the weights of a query, in nats.
    rows: the weights of the queries of PASSAGE on its keys; what they give to the text before it
      is left out.
    """

    parts: Float[np.ndarray, "layer h part"]
    copied: Float[np.ndarray, "layer h"]
    entropy: Float[np.ndarray, "layer h"]
    rows: Float[np.ndarray, "layer h n n"]


def encode(text: str) -> Int[np.ndarray, " t"]:
    """The places of its characters in CHARACTERS."""
    return np.array([CHARACTERS.index(character) for character in text])


def decode(ids: Int[np.ndarray, " t"]) -> str:
    """The text of these ids."""
    return "".join(CHARACTERS[i] for i in ids)


# Where heads look


def words(text: str) -> Int[np.ndarray, " t"]:
    """Of each character, how many spaces come before it: the number of its word."""
    spaces = np.array([character == " " for character in text])
    return np.cumsum(spaces) - spaces


def matches(text: str) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    """Numbers of the last COPIED characters up to each one, and up to the one before each.

    Key j follows what query i has just read if the second of j is the first of i. Where there are
    not so many characters, a number that no other place has.
    """
    ends = [text[max(i - COPIED + 1, 0) : i + 1] for i in range(len(text))]
    _, read = np.unique(ends, return_inverse=True)
    read[: COPIED - 1] = -1 - np.arange(COPIED - 1)
    return read, np.append(-COPIED, read[:-1])


def by_part(word: Int[np.ndarray, " t"]) -> Observation:
    """The mean share of the weight of each of PART_NAMES: [*b h part]."""

    def absorb(seen: Seen, word: Array) -> Array:
        i, j = seen.q[:, None], seen.k
        back = word[i] - word[j]
        place = jnp.where(i == j, 0, 1 + jnp.clip(back, 0, 2))
        return jnp.stack([jnp.where(place == p, seen.weights, 0).sum() for p in range(4)])

    return Fold(
        start=lambda: jnp.zeros(4),
        absorb=absorb,
        finish=lambda total: total / len(word),
        arrays=(jnp.asarray(word),),
    )


def copying(read: Int[np.ndarray, " t"], before: Int[np.ndarray, " t"]) -> Observation:
    """`Heads.copied`, of the numbers that `matches` gives: [*b h]."""
    back = [read[n:] == before[: len(read) - n] for n in range(WINDOW)]
    able = np.any([np.pad(same, (n, 0)) for n, same in enumerate(back)], axis=0).sum()

    def absorb(seen: Seen, read: Array, before: Array) -> Array:
        return jnp.where(read[seen.q][:, None] == before[seen.k], seen.weights, 0).sum()

    return Fold(
        start=lambda: 0.0,
        absorb=absorb,
        finish=lambda total: total / max(able, 1),
        arrays=(jnp.asarray(read), jnp.asarray(before)),
    )


def of_text(text: str) -> dict[str, Observation]:
    """The observations that say what in `text` a head looks at: as in `Heads`."""
    word, (read, before) = words(text), matches(text)
    return {"parts": by_part(word), "copied": copying(read, before)}


def level(text: str) -> dict[str, Any]:
    """What `of_text` shows of a head that looks at all keys in its window alike."""
    x = jnp.zeros((len(text), 1, 1))
    seen = ja.attend(x, x, x, mask=ja.Window(WINDOW - 1), observe=of_text(text)).observed
    return {name: np.asarray(value[0]) for name, value in seen.items()}


def look(model: LanguageModel, text: str, passage: str) -> Heads:
    """How all heads attend as the model reads `text`, with `passage` in it, in one call."""
    ids, start = encode(text), text.index(passage)
    shown = np.arange(start, start + len(passage))
    observe = {**of_text(text), "entropy": Entropy(), "rows": Rows(jnp.asarray(shown))}
    _, seen = nn.watch(model, observe)(jnp.asarray(ids)[None])
    layers = [seen["blocks"][i]["attention"] for i in range(model.config.layers)]
    every = {name: np.stack([np.asarray(layer[name][0]) for layer in layers]) for name in observe}
    every["entropy"] = every["entropy"].mean(axis=1)
    every["rows"] = every["rows"][..., shown]
    return Heads(**every)


# Training


class Training(NamedTuple):
    """The model after training, and the loss of each step's batch before it, in nats.

    learnt, held_back: the loss of the model over the characters that it was trained on, but the
    first, and over those held back, each read after all before it, in nats a character.
    """

    model: LanguageModel
    losses: Float[np.ndarray, " count"]
    learnt: float
    held_back: float


def costs(model: LanguageModel, text: str) -> Float[np.ndarray, " t-1"]:
    """The cross-entropy of each character but the first, read after all before it, in nats."""
    ids = jnp.asarray(encode(text))
    logs = jax.nn.log_softmax(model(ids[None])[0, :-1])
    return -np.asarray(logs[jnp.arange(len(ids) - 1), ids[1:]])


def losses_of(model: LanguageModel) -> tuple[float, float]:
    """The two losses of `Training`."""
    nats = costs(model, TEXT).astype(float)
    return float(nats[: LEARNT - 1].mean()), float(nats[LEARNT - 1 :].mean())


def train(count: int = COUNT, seed: int = SEED) -> Training:
    """Trains, with a progress bar. The same arguments, the same bits on the same machine.

    Parameters are rounded to float16 in the end, in which they are saved.
    """
    model = LanguageModel(CONFIG, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
    rng, ids, losses = np.random.default_rng(seed), encode(TEXT[:LEARNT]), []
    for _ in (bar := tqdm(range(count), unit="step", mininterval=1)):
        starts = rng.integers(0, LEARNT - LENGTH, (SEQUENCES, 1))
        losses.append(
            train_step(model, optimizer, jnp.asarray(ids[starts + np.arange(LENGTH + 1)]))
        )
        bar.set_postfix(loss=f"{losses[-1]:.2f} nats", refresh=False)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float16).astype(x.dtype), nnx.state(model))
    nnx.update(model, rounded)
    return Training(model, np.array(losses), *losses_of(model))


def parameters(model: LanguageModel) -> dict[str, Any]:
    """Every parameter by its place, such as `blocks.0.mlp.up.kernel`."""
    places = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, place)): variable for place, variable in places}


def save(training: Training, path: Path = CHECKPOINT) -> None:
    """Writes parameters as float16, and the losses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        name: np.asarray(variable[...], np.float16)
        for name, variable in parameters(training.model).items()
    }
    rest: dict[str, Any] = {name: np.asarray(x) for name, x in list(training._asdict().items())[1:]}
    np.savez_compressed(path, **arrays, **rest)


def load(path: Path = CHECKPOINT) -> Training:
    """What `save` wrote."""
    model = LanguageModel(CONFIG, nnx.Rngs(0))
    with np.load(path) as arrays:
        for name, variable in parameters(model).items():
            variable[...] = jnp.asarray(arrays[name], jnp.float32)
        losses, learnt, held_back = (arrays[name] for name in Training._fields[1:])
    return Training(model, losses, float(learnt), float(held_back))


def recite(model: LanguageModel, prompt: str, count: int) -> str:
    """The likeliest `count` characters after the prompt, one at a time."""
    ids = generate(model, jnp.asarray(encode(prompt))[None], count, jax.random.key(0), 0.0)
    return decode(np.asarray(ids[0]))


# The figure


class Recital(NamedTuple):
    """What the figure shows.

    heads: over all that was learnt. level: the same, of a head that looks at all keys alike.
    nats: what `costs` says of TEXT.
    recited: what the model says after the first PROMPT characters, to the end of what it learnt.
    mistake: where in TEXT is the first character that it gets wrong.
    alike: how many characters before the mistake also stand elsewhere in what was learnt, where
      they go on with the character that the model says.
    resumed: how many characters from the mistake on are right, if that is the place.
    """

    training: Training
    heads: Heads
    level: dict[str, Any]
    nats: Float[np.ndarray, " t-1"]
    recited: str
    mistake: int
    alike: int
    resumed: int


@cache
def recital() -> Recital:
    """Reads the checkpoint, all of the licence with it, and lets it recite."""
    training = load()
    heads, nats = look(training.model, TEXT[:LEARNT], PASSAGE), costs(training.model, TEXT)
    recited = recite(training.model, TEXT[:PROMPT], LEARNT - PROMPT)
    mistake = PROMPT + first_difference(recited, TEXT[PROMPT:LEARNT])
    said = recited[mistake - PROMPT :]
    same = alike(TEXT[:LEARNT], mistake, said[:1])
    elsewhere = TEXT.find(TEXT[mistake - same : mistake] + said[:1]) + same
    resumed = first_difference(said, TEXT[elsewhere:LEARNT])
    flat = level(TEXT[:LEARNT])
    return Recital(training, heads, flat, nats, recited, mistake, same, resumed)


def first_difference(one: str, two: str) -> int:
    """The first place at which two texts differ; the length of the shorter if there is none."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))


def alike(text: str, end: int, said: str) -> int:
    """The most characters before `end` that stand somewhere in the text with `said` after them."""
    length = 0
    while length < end and text[end - length - 1 : end] + said in text:
        length += 1
    return length


if __name__ == "__main__":
    save(train())

"""The arrays of every figure, as NumPy, with no drawing.

Two models of `figures.model` are trained, both on `CORPUS` and both of the seed's width: one with
12 heads for the walk-through, one with a single head for the next word. That of `figures.induction`
comes from its checkpoint.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from figures import induction, model
from figures.model import CORPUS, TOKENS, VOCABULARY
from jaxattn.observe import Map

WIDTH, HEADS, HEAD_WIDTH = 768, 12, 64
SUBJECTS = ("Aero", "Hydro", "Electro", "Thermo")


class Walk(NamedTuple):
    """Every intermediate of the 12-head layer on TOKENS, after training. t = s = 9 tokens.

    The fields from q to mixed are those of `jaxattn.steps.Head`, for each of the h heads; masked
    is -inf where a key is hidden, and mixed is the output of each head, weights times v.
    concat: the outputs side by side. out: concat times W_o.
    shown: the head that is drawn on its own, the one whose last query looks hardest at token 0.
    chances: the probability of every word of VOCABULARY to be the next.
    """

    tokens: tuple[str, ...]
    allowed: Bool[np.ndarray, "t s"]
    x: Float[np.ndarray, "t m"]
    q: Float[np.ndarray, "h t d"]
    k: Float[np.ndarray, "h s d"]
    v: Float[np.ndarray, "h s e"]
    raw: Float[np.ndarray, "h t s"]
    scaled: Float[np.ndarray, "h t s"]
    masked: Float[np.ndarray, "h t s"]
    weights: Float[np.ndarray, "h t s"]
    mixed: Float[np.ndarray, "h t e"]
    concat: Float[np.ndarray, "t h*e"]
    out: Float[np.ndarray, "t m"]
    chances: Float[np.ndarray, " v"]
    shown: int


class NextWord(NamedTuple):
    """The one-head model on TOKENS before and after training; chances are over VOCABULARY.

    best: the lowest loss that any model could reach on CORPUS, in nats a token.
    swapped: the chances after training with the first word replaced by each of SUBJECTS.
    """

    tokens: tuple[str, ...]
    allowed: Bool[np.ndarray, "t s"]
    weights_before: Float[np.ndarray, "t s"]
    weights_after: Float[np.ndarray, "t s"]
    chances_before: Float[np.ndarray, " v"]
    chances_after: Float[np.ndarray, " v"]
    losses: Float[np.ndarray, " count"]
    best: float
    swapped: Float[np.ndarray, "subject v"]


class Emergence(NamedTuple):
    """What the figure of induction heads shows. Heads are (layer, head), from 0.

    previous: the head of layer 1 that looks hardest at the token before, after training.
    induction: the head of layer 2 with the largest induction score.
    change: the steps between which the induction score of that head goes from a tenth of its last
      value to three quarters.
    maps: the weights on one held-out sequence, of those two heads, before and after training.
    chances: the probability of the token that does come next, there, before and after training.
    """

    training: induction.Training
    previous: tuple[int, int]
    induction: tuple[int, int]
    change: tuple[int, int]
    maps: Float[np.ndarray, "head when t s"]
    chances: Float[np.ndarray, "when t"]


@cache
def walkthrough() -> Walk:
    """Trains the 12-head model (100 steps) and reads TOKENS with it."""
    trained = model.train(
        width=WIDTH, heads=HEADS, head_width=HEAD_WIDTH, count=100, rate=1e-3, seed=0
    )
    reading = trained.after(model.encode(TOKENS))
    attention, heads = reading.attention, reading.attention.heads
    weights = np.asarray(heads.weights)
    return Walk(
        tokens=TOKENS,
        allowed=causal(len(TOKENS)),
        x=np.asarray(reading.x),
        q=np.asarray(heads.q),
        k=np.asarray(heads.k),
        v=np.asarray(heads.v),
        raw=np.asarray(heads.raw),
        scaled=np.asarray(heads.scaled),
        masked=np.asarray(heads.masked),
        weights=weights,
        mixed=np.asarray(heads.out),
        concat=np.asarray(attention.concat),
        out=np.asarray(attention.out),
        chances=next_chances(reading),
        shown=int(weights[:, -1, 0].argmax()),
    )


@cache
def next_word() -> NextWord:
    """Trains the one-head model (200 steps) and reads TOKENS with it before and after."""
    trained = model.train(width=WIDTH, heads=1, head_width=HEAD_WIDTH, count=200, rate=3e-3, seed=0)
    before, after = (m(model.encode(TOKENS)) for m in (trained.before, trained.after))
    swapped = [trained.after(model.encode((first, *TOKENS[1:]))) for first in SUBJECTS]
    return NextWord(
        tokens=TOKENS,
        allowed=causal(len(TOKENS)),
        weights_before=np.asarray(before.attention.heads.weights[0]),
        weights_after=np.asarray(after.attention.heads.weights[0]),
        chances_before=next_chances(before),
        chances_after=next_chances(after),
        losses=trained.losses,
        best=best_loss(CORPUS),
        swapped=np.stack([next_chances(reading) for reading in swapped]),
    )


@cache
def emergence() -> Emergence:
    """Reads the checkpoint, and the first held-out sequence with the model before and after."""
    training = induction.load()
    seen, ids = training.statistics, jnp.asarray(induction.held_out())[:1]
    looks_back = (0, int(seen.previous[-1, 0].argmax()))
    copies = (1, int(seen.induction[-1, 1].argmax()))
    score = seen.induction[:, *copies] / seen.induction[-1, *copies]
    change = np.flatnonzero(score < 0.1)[-1], np.flatnonzero(score > 0.75)[0]
    t, maps, chances = ids.shape[1] - 1, [], []
    for net in (induction.start(jax.random.key(induction.SEED)), training.model):
        logits, observed = induction.read(net, ids[:, :-1], {"map": Map(cells=t)})
        maps.append([observed[layer]["map"][0, head] for layer, head in (looks_back, copies)])
        chances.append(jax.nn.softmax(logits[0])[jnp.arange(t), ids[0, 1:]])
    return Emergence(
        training,
        looks_back,
        copies,
        (int(training.steps[change[0]]), int(training.steps[change[1]])),
        np.asarray(maps).swapaxes(0, 1),
        np.asarray(chances),
    )


def causal(t: int) -> Bool[np.ndarray, "t t"]:
    """Which keys each query may see: itself and those before it."""
    return np.tril(np.ones((t, t), bool))


def next_chances(reading: model.Reading) -> Float[np.ndarray, " v"]:
    """The probability of every word of VOCABULARY to follow the last token read."""
    return np.asarray(jax.nn.softmax(reading.logits[-1]))


def top_words(chances: Float[np.ndarray, " v"], count: int) -> list[str]:
    """The `count` most probable words, the most probable first."""
    return [VOCABULARY[i] for i in np.argsort(-chances, kind="stable")[:count]]


def chances_of(words: Sequence[str], chances: Float[np.ndarray, "*b v"]) -> np.ndarray:
    """The columns of `chances` that belong to `words`."""
    return chances[..., [VOCABULARY.index(word) for word in words]]


def expected(first: str) -> str:
    """The word that follows TOKENS in CORPUS when its first word is `first`."""
    start = (first, *TOKENS[1:])
    return next(s[len(start)] for s in CORPUS if s[: len(start)] == start)


def best_loss(corpus: Sequence[Sequence[str]]) -> float:
    """The entropy of the next token given all before it, in nats a token.

    It is not 0: after `Aero` come `dynamics` and `plane`, one sentence each.
    """
    follows: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for sentence in corpus:
        for i in range(1, len(sentence)):
            follows[tuple(sentence[:i])][sentence[i]] += 1
    nats = [-n * np.log(n / sum(c.values())) for c in follows.values() for n in c.values()]
    return float(sum(nats) / sum(sum(c.values()) for c in follows.values()))

"""An induction head written by hand, and what it looks at in a text of any length.

Nothing is trained: a query is a code of the characters read last, and a key is the code of the
characters before it, so a query finds what followed when the same characters were read before.
Source: Olsson et al. 2022, "In-context learning and induction heads".
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

import jaxattn as ja

CONTEXT, WIDTH = 16, 8  # the characters in a code, and the numbers for each
FADE = 0.85  # a character counts this much of the one after it
SHARP = 22.0  # the logit of a key after the same CONTEXT characters
SINK = 10.0  # the logit of the first character, for queries that find nothing
LENGTH = 32_768
LICENSE = Path(__file__).parents[1] / "LICENSE"
CLAUSE = (
    "How to apply the Apache License to your work. To apply the Apache License to your work, "
    "attach the following boilerplate notice,"
)


class Look(NamedTuple):
    """What the head looks at in a text of t characters, in a map of m x m cells.

    A cell is c queries by c keys, and the marginals have the queries or keys of each of the m rows
    or columns beside each other; NaN beyond the end of the text.

    weights: the share of its attention that a query in the row gives to the keys in the column.
    received: the mean weight of each key, over the queries that may see it.
    entropy: of each query's weights, in nats.
    found: whether the head's answer to each character is the next one; one less than the text.
    temporary: bytes of memory that the compiled program takes beside its inputs and results.
    """

    text: str
    weights: Float[np.ndarray, "m m"]
    received: Float[np.ndarray, "m c"]
    entropy: Float[np.ndarray, "m c"]
    found: Bool[np.ndarray, " t-1"]
    temporary: int


def licence() -> str:
    """The text of the licence on one line."""
    return " ".join(LICENSE.read_text(encoding="ascii").split())


def again(text: str, length: int) -> str:
    """`text` read over and over, with a space between, until there are `length` characters."""
    return ((text + " ") * (length // len(text) + 1))[:length]


def codes(text: str) -> tuple[Float[np.ndarray, "t d"], Float[np.ndarray, "t d"]]:
    """q and k of every character: the CONTEXT characters up to it, and those up to the one before.

    Each of them is WIDTH random numbers that say which character it is, in a place that says how
    far back it was read. q · k is the share of the CONTEXT that is the same, up to chance.
    """
    each = np.random.default_rng(0).normal(size=(128, WIDTH))
    each /= np.linalg.norm(each, axis=1, keepdims=True)
    size = FADE ** np.arange(CONTEXT)
    ids = np.frombuffer(text.encode("ascii"), np.uint8)
    padded = np.concatenate([np.zeros((CONTEXT, WIDTH)), each[ids]])
    read = [padded[CONTEXT - i :][: len(ids) + 1] for i in range(1, CONTEXT + 1)]
    code = np.stack(read, axis=1) * np.sqrt(size / size.sum())[:, None]
    code = code.reshape(len(ids) + 1, -1).astype(np.float32)
    return code[1:], code[:-1]


def nearer(logit: Array, at: Any) -> Array:
    """Weights fall with the square root of the distance; the first key has a logit of its own.

    Source: Chi et al. 2022, "KERPLE", the logarithmic kernel.
    """
    back = (at.q - at.k).astype(logit.dtype)
    return jnp.where(at.k == 0, SINK, logit - 0.5 * jnp.log1p(back))


def attend(
    q: Float[Array, "t d"], k: Float[Array, "s d"], v: Float[Array, "s e"], cells: int
) -> ja.Attended:
    """One causal head, and what is observed of its weights."""
    return ja.attend(
        q[:, None],
        k[:, None],
        v[:, None],
        mask=ja.Causal(),
        score=nearer,
        scale=SHARP,
        observe={
            "map": ja.observe.Map(cells),
            "received": ja.observe.Received(),
            "entropy": ja.observe.Entropy(),
        },
    )


@cache
def look(text: str, cells: int = 256) -> Look:
    """Reads `text` with the head, whose values say which character a key is."""
    q, k = codes(text)
    _, ids = np.unique(list(text), return_inverse=True)
    v = np.eye(ids.max() + 1, dtype=np.float32)[ids]
    program = jax.jit(attend, static_argnames="cells").lower(q, k, v, cells=cells).compile()
    out, _, seen = program(q, k, v)
    memory = program.memory_analysis()
    assert memory is not None
    weights = np.asarray(seen["map"][0])
    received = np.asarray(seen["received"].mass / seen["received"].queries)
    return Look(
        text=text,
        weights=weights,
        received=by_cell(received[:, 0], len(weights)),
        entropy=by_cell(np.asarray(seen["entropy"])[:, 0], len(weights)),
        found=np.asarray(out)[:-1, 0].argmax(axis=-1) == ids[1:],
        temporary=memory.temp_size_in_bytes,
    )


def by_cell(values: Float[np.ndarray, " t"], cells: int) -> Float[np.ndarray, "m c"]:
    """One row to each of the cells along an axis of a map; NaN beyond the end."""
    side = -(-len(values) // cells)
    return np.pad(values, (0, cells * side - len(values)), constant_values=np.nan).reshape(-1, side)

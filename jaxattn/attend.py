"""`attention` and `attend`."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, Attended
from jaxattn._observation import Observation
from jaxattn._problem import check
from jaxattn._solve import Scoring, solve
from jaxattn.backends.protocol import Backend
from jaxattn.backends.select import AUTO, Auto
from jaxattn.dropout import Dropout
from jaxattn.masks import EVERYTHING, Mask
from jaxattn.positions import Given
from jaxattn.sharded.typed import way_of
from jaxattn.sharded.whole import attend_whole


def attention(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    backend: Backend = AUTO,
) -> Float[Array, "*b t h e"]:
    """Softmax attention: every query mixes the values of the keys it may see.

    Query head i reads key/value head i // (h // n). Logits, softmax and sums are at least float32.
    NaN and Inf in a key or value reach no query that may not see it.

    Args:
      q, k, v: queries, keys and values, of one floating point dtype.
      mask: which keys each query may see.
      score: what is done to the scaled logits before the mask: `Bias`, `ALiBi`, `RelativeBias`,
        `SoftCap`, or a function (logit, at) -> logit of one pair, where `at.batch`, `at.head`,
        `at.q` and `at.k` say which; or a sequence of them, applied from left to right. Every array
        in it, also those that a function closes over, has a gradient.
      scale: of the products q kᵀ; 1/√d where none is given. May be traced, and has a gradient.
      sinks: a logit for each query head that joins the denominator of the softmax, and lse, only.
      positions: where the queries and keys are, for all that goes by order or distance:
        `Positions(q=..., k=...)`, each a start or a position for every token; or `END`, where the
        queries are the last of the keys. May be left out if t == s; both then start at 0.
      dropout: of the weights, after the softmax.
      backend: how to compute it. `AUTO` also reads the types of q, k and v: where tokens are
        sharded over an explicit axis of a mesh, `jaxattn.sharded` attends, by `AllToAll` where the
        query heads can be shared out over the axis, else by a `Ring`; over two axes, a `Product`.
    Returns:
      The mixed values, in q's dtype. A query that may see no key gets 0, and gives no gradient.
    Raises:
      ValueError: the axes disagree; a mask, score, sinks or positions do not fit; something goes by
        positions, which are not told, and t != s.
      TypeError: integer or mixed dtypes; something that is not a mask, a score or a backend.
    Source: Vaswani et al. 2017, eq. 1; grouped heads, Ainslie et al. 2023.
    """
    return attend(
        q,
        k,
        v,
        mask=mask,
        score=score,
        scale=scale,
        sinks=sinks,
        positions=positions,
        dropout=dropout,
        backend=backend,
    ).out


def attend(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
) -> Attended:
    """`attention`, and with it the log-sum-exp of every query's logits and sink, and observations.

    Takes and raises what `attention` does. The results are differentiable, to any order, in q, k,
    v, scale, sinks and every array in `score`; an observation where its mathematics is.

    Args:
      observe: what to see of the weights, by name, such as {"entropy": jaxattn.observe.Entropy()}.
        Several share the work. Observing changes neither out nor lse, nor how they are computed,
        and takes no memory that grows with t · s. Out and lse are the same to the bit, whatever is
        observed. But inside `jax.jit` XLA rounds out otherwise where nothing uses lse: `attention`
        there agrees with `attend` to one rounding of a sum.

    Under `jax.checkpoint` with a policy such as `save_only_these_names("attention_out",
    "attention_lse")` a `Blockwise` pass back does not compute the forward pass again; out is kept
    in the accumulator's dtype. `jax.linear_transpose` works for out, over v.

    Raises:
      TypeError: also, something in `observe` that is not an observation.
    """
    rule = mask, score, scale, sinks, dropout, positions
    arrays: Any = q, k, v
    if isinstance(backend, Auto) and (way := way_of(*arrays)) is not None:
        return attend_whole(way, arrays, rule, observe, backend)
    return solve(*check(q, k, v, *rule), observe, backend)

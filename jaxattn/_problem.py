"""All validation, once, at the door."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn._axes import INDEX, accumulator
from jaxattn._batched import fit
from jaxattn._content import as_array, is_real, show
from jaxattn._mask import BoundMask, check_mask
from jaxattn._score import BoundScore, check_scores
from jaxattn._value import Sizes, Value
from jaxattn._varying import vary, varying
from jaxattn.dropout import Drop, Dropout
from jaxattn.positions import BoundPositions, Frame, Unplaced, frame_of


@dataclass(frozen=True, eq=False, repr=False)
class Sinks(Value):
    """A logit for each query head that joins the denominator of the softmax only."""

    logits: Float[Array, "*#b h"]


class Rule(NamedTuple):
    """What makes weights of the products q kᵀ: scale, then scores in order, then mask, softmax with
    sinks, then dropout. All of it resolved. And where the tokens are, for observations."""

    scale: Float[Array, ""]
    score: tuple[BoundScore, ...]
    mask: BoundMask
    sinks: Sinks | None
    dropout: Drop | None
    positions: BoundPositions | Unplaced


class Whole(NamedTuple):
    """A sequence of t queries and s keys, of which q, k and v are a part, or all in some order.

    rows, keys: which of them these are.
    """

    t: int
    s: int
    rows: Int[Array, " held"]
    keys: Int[Array, " held"]

    def each(self, frame: Frame) -> Frame:
        """The frame with a position for each query and key that is held."""
        at = BoundPositions() if isinstance(frame.positions, Unplaced) else frame.positions
        if not at.in_order:
            return frame
        start = lambda x: jnp.asarray(x, INDEX)[..., None]
        each = start(at.q_start) + self.rows, start(at.k_start) + self.keys
        return frame._replace(positions=BoundPositions(0, 0, *each))


class Problem(NamedTuple):
    """One checked call of `attend`."""

    q: Float[Array, "*b t h d"]
    k: Float[Array, "*b s n d"]
    v: Float[Array, "*b s n e"]
    rule: Rule

    @property
    def sizes(self) -> Sizes:
        return _sizes(self.q, self.k)

    @property
    def kv_heads(self) -> int:
        return self.k.shape[-2]

    @property
    def is_empty(self) -> bool:
        """Whether there is no query to answer, or no key to answer with."""
        sizes = self.sizes
        return 0 in (*sizes.batch, sizes.t, sizes.s, sizes.h)


def check(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    score: Any,
    scale: Any,
    sinks: Any,
    dropout: Any,
    positions: Any,
    one_dtype: bool = True,
    whole: "Whole | None" = None,
) -> tuple[Problem, Frame]:
    """The problem that these arrays pose, and its frame.

    one_dtype: whether q, k and v have to share it. whole: of what q, k and v are a part, if any;
    the frame and all that is bound to it are those of the whole.

    Raises:
      TypeError: not floating point arrays of one dtype; not a mask, a score or a dropout.
      ValueError: axes that disagree; a mask, score or sinks that do not fit or are ambiguous.
    """
    q, k, v = _arrays(q, k, v, one_dtype=one_dtype)
    q, k, v = vary((q, k, v), varying(q, k, v, mask, score, scale, sinks, dropout, positions))
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim < 3:
            raise ValueError(
                f"{name} has axes [*b, position, head, feature], at least 3, got shape {x.shape}; "
                f"for a single head add its axis: {name}[:, None, :]"
            )
    _agree("batch axes", shapes, q=q.shape[:-3], k=k.shape[:-3], v=v.shape[:-3])
    _agree("features of q and k (d)", shapes, q=q.shape[-1], k=k.shape[-1])
    _agree("positions of k and v (s)", shapes, k=k.shape[-3], v=v.shape[-3])
    _agree("heads of k and v (n)", shapes, k=k.shape[-2], v=v.shape[-2])
    h, n = q.shape[-2], k.shape[-2]
    if h and (n == 0 or h % n):
        raise ValueError(
            f"query heads must be a multiple of key/value heads, got h={h} from q {q.shape} and "
            f"n={n} from k {k.shape}; repeat k and v, or change h"
        )
    sizes = _sizes(q, k)
    if whole is not None:
        sizes = sizes._replace(t=whole.t, s=whole.s, held=(sizes.t, sizes.s))
    frame = frame_of(positions, sizes)
    rule = Rule(
        _scale(scale, q),
        check_scores(score, frame, q.dtype),
        check_mask(mask).resolve(frame),
        _sinks(sinks, sizes, q.dtype),
        _dropout(dropout, frame if whole is None else whole.each(frame)),
        frame.positions,
    )
    return Problem(q, k, v, rule), frame


def _sizes(q: Any, k: Any) -> Sizes:
    return Sizes(q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3], varying(q))


def _arrays(*arrays: Any, one_dtype: bool) -> tuple[Any, ...]:
    arrays = tuple(as_array(x, name) for name, x in zip("qkv", arrays, strict=True))
    for name, x in zip("qkv", arrays, strict=True):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"q, k and v must be real floating point, got {name} of dtype {x.dtype}; "
                f"cast it: {name}.astype(jnp.float32)"
            )
        if jnp.finfo(x.dtype).bits < 16:
            raise TypeError(
                f"q, k and v are float16 or wider, got {name} of dtype {x.dtype}; cast it: "
                f"{name}.astype(jnp.bfloat16)"
            )
    dtypes = [str(x.dtype) for x in arrays]
    if one_dtype and len(set(dtypes)) > 1:
        raise TypeError(
            f"q, k and v must share one dtype, got {', '.join(dtypes)}; cast them to the dtype "
            f"that the result should have"
        )
    return arrays


def _agree(what: str, shapes: str, **sizes: Any) -> None:
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise ValueError(
            f"{what} must be the same, got {named} ({shapes}); the axes are q [*b t h d], "
            f"k [*b s n d], v [*b s n e]: reshape, transpose or broadcast to them"
        )


def _scale(scale: Any, q: Any) -> Array:
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[-1], 1))
    scale = as_array(scale, "scale")
    if not is_real(scale.dtype):
        raise TypeError(f"scale is a real number, got {show(scale)}; None is for 1/√d")
    scale = scale.astype(accumulator(q.dtype))
    if scale.ndim:
        raise ValueError(
            f"scale is one number for all heads, got shape {scale.shape}; to scale heads apart, "
            f"multiply q by [h, 1] first"
        )
    return scale


def _sinks(sinks: Any, sizes: Sizes, dtype: Any) -> Sinks | None:
    if sinks is None:
        return None
    sinks = as_array(sinks, "sinks")
    if sinks.shape != (sizes.h,) or not jnp.issubdtype(sinks.dtype, jnp.floating):
        raise ValueError(
            f"sinks are one logit for each query head, floating point [h] with h={sizes.h}, got "
            f"{show(sinks)}; for several sinks of a head pass the logsumexp of them"
        )
    return Sinks(fit(sinks.astype(accumulator(dtype)), "sinks", sizes, "h"))


def _dropout(dropout: Any, frame: Frame) -> Drop | None:
    if dropout is None:
        return None
    if not isinstance(dropout, Dropout):
        raise TypeError(
            f"dropout is a value, Dropout(rate, key), got {show(dropout)}; pass "
            f"Dropout(0.1, jax.random.key(0)), or None for no dropout"
        )
    return dropout.resolve(frame)

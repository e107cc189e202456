"""`attention_fn`: jaxattn as the attention function of Flax's own modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from flax import linen, nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, ArrayLike, Float, Real

from jaxattn._axes import AnyArray, AnyNumber
from jaxattn._content import as_array, hash_of, same
from jaxattn._mask import EVERYTHING, Mask, check_mask
from jaxattn._observation import Observation, by_name
from jaxattn._score import check_item, items_of
from jaxattn.attend import Scoring, attend
from jaxattn.backends.protocol import Backend
from jaxattn.backends.select import AUTO, check_backend
from jaxattn.dropout import Dropout, check_rate, is_no_rate
from jaxattn.masks import Causal, Dense
from jaxattn.observe import SUM, Map
from jaxattn.positions import Given, Positions
from jaxattn.scores import Bias

WEIGHTS = "attention_weights"  # as Flax names them


class Observed(nnx.Intermediate):
    """What was seen in an attention module: a tuple of dicts by name, one for each call."""


# Flax does not tell an attention function which module calls it, unless weights are to be sown.
_called: ContextVar[Any] = ContextVar("called", default=None)


@contextmanager
def calling(module: Any) -> Iterator[None]:
    """Under `watch`: what is observed now belongs to this module."""
    token = _called.set(module)
    try:
        yield
    finally:
        _called.reset(token)


@dataclass(frozen=True, eq=False)
class AttentionFn:
    """Made by `attention_fn`. Equal to another with the same settings."""

    mask: Mask
    score: Scoring | None
    sinks: Any
    scale: Any
    observe: Mapping[str, Observation] | None
    positions: Given
    backend: Backend

    def __hash__(self) -> int:
        return hash_of(_settings(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttentionFn) and same(_settings(self), _settings(other))

    def __call__(
        self,
        query: Float[AnyArray, "*b t h d"],
        key: Float[AnyArray, "*b s n d"],
        value: Float[AnyArray, "*b s n e"],
        bias: ArrayLike | None = None,
        mask: ArrayLike | Mask | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Array | None = None,
        dropout_rate: Real[AnyNumber, ""] = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        promote_dtype: Any = promote_dtype,
        is_causal: bool = False,
        force_fp32_for_softmax: bool = False,
    ) -> Float[Array, "*b t h e"]:
        """As Flax's `dot_product_attention`, whose arguments these are."""
        del precision, force_fp32_for_softmax  # never less than these ask for
        named = (("query", query), ("key", key), ("value", value))
        q, k, v = promote_dtype(tuple(as_array(x, name) for name, x in named), dtype=dtype)
        causal, positions = as_flax_counts(is_causal, self.positions)
        rule = self.mask & causal
        if mask is not None:
            rule &= as_mask(mask)
        score = items_of(self.score)
        if bias is not None:
            score += (Bias(as_array(bias, "bias")),)
        dropped = None
        check_rate(dropout_rate)
        if not deterministic and not is_no_rate(dropout_rate):
            if dropout_rng is None:
                raise ValueError(
                    "dropout needs random bits, got dropout_rng=None; pass a key of jax.random, or "
                    "deterministic=True for none"
                )
            dropped = Dropout(dropout_rate, dropout_rng, shared=broadcast_dropout)
        observe, show = self.look(module, q, k.shape[-3])
        options = self.options | {"score": score, "dropout": dropped, "observe": observe}
        got = attend(q, k, v, mask=rule, positions=positions, **options)
        show(got.observed)
        return got.out

    @property
    def options(self) -> dict[str, Any]:
        """Of `attend`, besides mask, score, positions and what to observe."""
        return {"sinks": self.sinks, "scale": self.scale, "backend": self.backend}

    def look(
        self, module: Any, q: Float[Array, "*b t h d"], keys: int
    ) -> tuple[Mapping[str, Observation] | None, Callable[[dict[str, Any]], None]]:
        """(what to observe, what to do with it once it is observed).

        module: into which weights or observations are to be sown, if any.
        keys: how many are attended to.
        """
        into = _called.get() if module is None else module
        if into is None:
            return None, lambda observed: None
        if self.observe is not None:
            return self.observe, lambda observed: _sow(into, Observed, "observed", observed)
        if module is None:
            return None, lambda observed: None

        def sow_weights(observed: dict[str, Any]) -> None:
            _sow(into, nnx.Intermediate, WEIGHTS, observed[WEIGHTS].astype(q.dtype))

        return {WEIGHTS: Map(max(q.shape[-3], keys), SUM)}, sow_weights


def attention_fn(
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    *,
    sinks: Float[AnyArray, " h"] | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    observe: Mapping[str, Observation] | None = None,
    positions: Given = None,
    backend: Backend = AUTO,
) -> AttentionFn:
    """What `attention_fn=` of `nnx.MultiHeadAttention` and `linen.MultiHeadDotProductAttention`
    takes: `jaxattn.attend`, in linear memory, with these options.

    It honours what the modules pass. Where it differs from Flax's own, by intention:
      A query that may see no key gets 0; there, the mean of all values.
      Dropout has the same rates but drops other pairs: those of `jaxattn.Dropout`, shared between
        heads and batch elements with `broadcast_dropout`.
      Products are in the inputs' own precision and the softmax at least in float32, whatever
        `precision` says; weights are not rounded to bfloat16 before they meet values.
    Linen's classes for einsum are not used. With Flax's own cache, whose slots are all keys, there
    is no place for options that depend on positions: `MultiHeadAttention` has a cache for those.

    Args:
      mask: hides pairs besides the mask that the module passes.
      score: changes logits; a bias that the module passes is added after it. Arrays in it, as in
        `mask` and `sinks`, are constants of the module: they have no gradient and are in no
        checkpoint. Learnt ones go into `score=` of a call of `MultiHeadAttention`.
      sinks, scale, positions, backend: as in `jaxattn.attend`.
      observe: what `sow_weights=True` shows, under the name "observed"; without it that shows all
        weights, as Flax does, in memory that grows with t · s.
    """
    check_mask(mask)
    by_name(observe)
    check_backend(backend)
    for item in items_of(score):
        check_item(item)
    return AttentionFn(mask, score, sinks, scale, observe, positions, backend)


def as_flax_counts(is_causal: bool, positions: Given) -> tuple[Mask, Given]:
    """(the mask, positions): for `is_causal` both count from 0, also where t != s."""
    if not is_causal:
        return EVERYTHING, positions
    return Causal(), Positions(0, 0) if positions is None else positions


def as_mask(mask: Any) -> Mask:
    """A mask of jaxattn's, or one of Flax's: an array that broadcasts to [*b h t s], not 0 where a
    query may see a key."""
    if isinstance(mask, Mask):
        return mask
    array = as_array(mask, "mask")
    return Dense(array if array.dtype == bool else array != 0)


def _settings(fn: AttentionFn) -> tuple[Any, ...]:
    return fn.mask, fn.score, fn.sinks, fn.scale, fn.observe, fn.positions, fn.backend


def _sow(module: Any, kind: Any, name: str, value: Any) -> None:
    """kind: of NNX variable; Linen has one collection for all."""
    module.sow("intermediates" if isinstance(module, linen.Module) else kind, name, value)

"""What a score has to do, and how a call's scores are put in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxattn._axes import accumulator
from jaxattn._content import show
from jaxattn._trace import Traced, trace
from jaxattn._value import Place, Shift, Value
from jaxattn.positions import Frame


class Score(Value):
    """A change of the scaled scores, before the mask, as it is given."""

    def resolve(self, frame: Frame, dtype: Any) -> "BoundScore":
        """This score with every default made explicit, for logits of `dtype`."""
        raise NotImplementedError(f"{type(self).__name__}.resolve")


class BoundScore(Score):
    """A score bound to a call, as backends ask it. One that needs no call for that may be given."""

    def resolve(self, frame: Frame, dtype: Any) -> "BoundScore":
        del frame, dtype
        return self

    def moved(self, by: Shift) -> "BoundScore":
        """As `Value.moved`, whatever indices `apply` asks for."""
        return MovedScore(Value.moved(self, by), *by)

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        """The logits of a tile, as the tile lies. Asked of its part."""
        raise NotImplementedError(f"{type(self).__name__}.apply")


@dataclass(frozen=True, eq=False, repr=False)
class MovedScore(BoundScore):
    """A score of which this is a part, so far from the first of the whole."""

    score: BoundScore
    q: int | Int[Array, "*#b"]
    k: int | Int[Array, "*#b"]
    head: int | Int[Array, "*#b"]
    batch: tuple[int | Int[Array, ""], ...]

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        by = Shift(self.q, self.k, self.head, self.batch)
        return self.score.apply(logits, place.moved(by))

    moved = Value.moved


@dataclass(frozen=True, eq=False, repr=False)
class Function(Score):
    """A user's function of one logit and its place."""

    function: Any

    def resolve(self, frame: Frame, dtype: Any) -> "BoundFunction":
        function: Callable[..., Any] = self.function
        logit = jax.ShapeDtypeStruct((), dtype)
        what = "a score function (logit, at) -> logit"

        def check(result: Any) -> None:
            if not jnp.issubdtype(result.dtype, jnp.floating):
                raise TypeError(
                    f"a score function returns a logit, a real floating point number, got "
                    f"{result.dtype} from {function!r}; to hide pairs use a mask: Where(function)"
                )

        return BoundFunction(trace(function, frame, logit, what=what, check=check))


@dataclass(frozen=True, eq=False, repr=False)
class BoundFunction(BoundScore):
    """A user's function that is traced."""

    function: Traced

    moved = Value.moved

    def apply(self, logits: Float[Array, "a b"], place: Place) -> Float[Array, "a b"]:
        return self.function.over(place, logits).astype(logits.dtype)


def check_scores(score: Any, frame: Frame, dtype: Any) -> tuple[BoundScore, ...]:
    """The items of `score` in order, resolved.

    Raises:
      TypeError: something that is neither a score nor a function.
    """
    return tuple(check_item(item).resolve(frame, accumulator(dtype)) for item in items_of(score))


def items_of(score: Any) -> tuple[Any, ...]:
    """The scores of a call: none, one or several."""
    if score is None:
        return ()
    return tuple(score) if isinstance(score, Sequence) else (score,)


def check_item(item: Any) -> Score:
    if isinstance(item, Score):
        return item
    if hasattr(item, "shape"):
        raise TypeError(
            f"a score is a value such as Bias(array) or SoftCap(30.0), or a function, got "
            f"{show(item)}; wrap the array: Bias(array), which is added to the logits"
        )
    if isinstance(item, type) or not callable(item):
        raise TypeError(
            f"a score is Bias(array), ALiBi(), RelativeBias(table), SoftCap(cap), a function "
            f"(logit, at) -> logit, or a sequence of them, got {item!r}"
        )
    return Function(item)

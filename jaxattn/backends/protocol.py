"""What a backend answers. Each is a frozen value, and belongs to the compiled program."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array

from jaxattn._mask import BoundMask
from jaxattn._observation import BoundObservation
from jaxattn._problem import Problem


class Unsupported(ValueError):
    """A backend was asked by name for what it cannot do."""


class Call(NamedTuple):
    """What is asked of a backend.

    from_lse: only observations, from an lse that is given.
    platform: as JAX names it: "cpu", "gpu", "tpu".
    """

    problem: Problem
    watched: tuple[BoundObservation, ...]
    from_lse: bool
    platform: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a call costs. Nothing, if there is no query or no key.

    heads, batch: query heads and batch elements taken at a time.
    q_block, k_block: the sides of a tile, in positions.
    visited, tiles: tiles that the mask needs, of all tiles of all heads. visited is None where it
      depends on arrays that are being traced.
    flops: of the products q kᵀ and p v in what is computed of the visited tiles, a multiply and an
      add counted as two; None as for visited.
    second_sweep: whether observations, if any were asked for, are made from lse after the forward
      fold, and not on the way. No other field depends on them.
    """

    heads: int = 0
    batch: int = 0
    q_block: int = 0
    k_block: int = 0
    visited: int | None = 0
    tiles: int = 0
    flops: int | None = 0
    second_sweep: bool = False


class Backend:
    """Base of backends: how attention is computed.

    A problem that it is given is not empty, and it has not refused it. DRAWBACK: why `AUTO` takes
    it after others that can do the same.
    """

    DRAWBACK: ClassVar[str] = ""

    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot do what is asked; None where it can."""
        raise NotImplementedError(f"{type(self).__name__}.refuses")

    def run(self, problem: Problem, watched: tuple[BoundObservation, ...]) -> tuple[Any, ...]:
        """(out [*b t h e], peak, log_total [*b t h], states of observations), without the sinks.

        In the accumulator's dtype; lse is peak + log_total.
        """
        raise NotImplementedError(f"{type(self).__name__}.run")

    def observe(
        self, problem: Problem, watched: tuple[BoundObservation, ...], lse: Array
    ) -> tuple[Any, ...]:
        """The states of observations, from the lse [*b t h] of the problem."""
        raise NotImplementedError(f"{type(self).__name__}.observe")

    def cost(
        self, problem: Problem, mask: BoundMask, watched: tuple[BoundObservation, ...]
    ) -> Cost:
        """What a call costs. mask: that of the problem, which has shapes only."""
        raise NotImplementedError(f"{type(self).__name__}.cost")

    def choose(self, call: Call) -> "Backend":
        """The backend to run: this one. One that was asked for by name is never replaced.

        Raises:
          Unsupported: it cannot do this; the message gives its reason.
        """
        reason = self.refuses(call)
        if reason is not None:
            raise Unsupported(f"{self!r} cannot do this: {reason}; AUTO chooses one that can")
        return self

"""What a backend answers. Each is a frozen value, and belongs to the compiled program."""

from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array

from jaxattn._mask import Mask
from jaxattn._observation import Observation
from jaxattn._problem import Problem


class Unsupported(ValueError):
    """A backend was asked by name for what it cannot do."""


class Call(NamedTuple):
    """What is asked of a backend.

    from_lse: only observations, from an lse that is given.
    platform: as JAX names it: "cpu", "gpu", "tpu".
    """

    problem: Problem
    watched: tuple[Observation, ...]
    from_lse: bool
    platform: str


class Cost(NamedTuple):
    """What a call costs; see `Explanation` for the fields."""

    heads: int
    batch: int
    q_block: int
    k_block: int
    visited: int | None
    tiles: int
    flops: int | None
    second_sweep: bool


class Backend:
    """Base of backends: how attention is computed.

    A problem that it is given is not empty, and it has not refused it. DRAWBACK: why `AUTO` takes
    it after others that can do the same.
    """

    DRAWBACK: ClassVar[str] = ""

    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot do what is asked; None where it can."""
        raise NotImplementedError(f"{type(self).__name__}.refuses")

    def run(self, problem: Problem, watched: tuple[Observation, ...]) -> tuple[Any, ...]:
        """(out [*b t h e], peak, log_total [*b t h], states of observations), without the sinks.

        In the accumulator's dtype; lse is peak + log_total.
        """
        raise NotImplementedError(f"{type(self).__name__}.run")

    def observe(
        self, problem: Problem, watched: tuple[Observation, ...], lse: Array
    ) -> tuple[Any, ...]:
        """The states of observations, from the lse [*b t h] of the problem."""
        raise NotImplementedError(f"{type(self).__name__}.observe")

    def cost(self, problem: Problem, mask: Mask, watched: tuple[Observation, ...]) -> Cost:
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

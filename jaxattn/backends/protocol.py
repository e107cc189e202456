"""What a backend answers. Each is a frozen value, and belongs to the compiled program."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

from jaxtyping import Array, Float

from jaxattn._mask import BoundMask
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._softmax import LogSumExp


class Unsupported(ValueError):
    """A backend was asked by name for what it cannot do."""


class Call(NamedTuple):
    """What is asked of a backend.

    from_lse: only observations, from an lse that is given.
    platform: that of the program: "cpu", "cuda", "rocm", "tpu" or "other"; None where it is not
      known yet, and only what holds on every platform can be said.
    order: how many derivatives are taken: 0 for results, 1 for tangents or gradients, and so on.
    """

    problem: Problem
    watched: Watch
    from_lse: bool = False
    platform: str | None = None
    order: int = 0


class Results(NamedTuple):
    """Of a problem without its sinks, in the accumulator's dtype. states: of the observations.

    lse = peak + log_total, kept apart because their sum, rounded, would spoil exp(logits - lse)
    where lse is large. The peak counts as a constant.
    """

    out: Float[Array, "*b t h e"]
    peak: Float[Array, "*b t h"]
    log_total: Float[Array, "*b t h"]
    states: tuple[Any, ...]

    @property
    def lse(self) -> LogSumExp:
        return LogSumExp(self.peak, self.log_total)


class Moves(NamedTuple):
    """The tangents of `Results`, or cotangents; None for a cotangent of zeros.

    states: None for arrays of integers.
    """

    out: Float[Array, "*b t h e"] | None
    log_total: Float[Array, "*b t h"] | None
    states: tuple[Any, ...]


Moving: TypeAlias = tuple[Problem, Watch]
"""A problem and observations with tangents in place of their arrays, and `Zero` where there are
none."""


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

    A problem that it is given is not empty, and it has not refused it. It is asked where a program
    is lowered, so `_lowering.platform` tells for what. DRAWBACK: why `AUTO` takes it after others
    that can do the same.
    """

    DRAWBACK: ClassVar[str] = ""
    FROM_LSE: ClassVar[bool] = True
    """Whether `tangent` and `observe` go by the lse that they are given, which may be that of more
    keys than the problem has: so the keys may be shared out over devices."""
    OVER_DEVICES: ClassVar[bool] = False
    """Whether it sends arrays from device to device."""

    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot do what is asked; None where it can."""
        raise NotImplementedError(f"{type(self).__name__}.refuses")

    def run(self, problem: Problem, watched: Watch) -> Results:
        """The results. Never differentiated: that is what `tangent` is for."""
        raise NotImplementedError(f"{type(self).__name__}.run")

    def observe(
        self, problem: Problem, watched: Watch, lse: Float[Array, "*b t h"], order: int = 0
    ) -> tuple[Any, ...]:
        """The states of observations, from the lse of the problem. order: how many derivatives JAX
        will take of them."""
        raise NotImplementedError(f"{type(self).__name__}.observe")

    def tangent(self, problem: Problem, watched: Watch, results: Results, moving: Moving) -> Moves:
        """The tangents of the results of any backend, in plain JAX, which differentiates it again
        and transposes it.

        A backend without a rule of its own takes that of `Blockwise()`.
        """
        raise NotImplementedError(f"{type(self).__name__}.tangent")

    def transpose(
        self,
        problem: Problem,
        watched: Watch,
        results: Results,
        moving: Moving,
        cotangents: Moves,
    ) -> Any:
        """The transpose of `tangent`: from the cotangents of its results those of `moving`, which
        has shapes in place of arrays, as such a tree. Never differentiated. NotImplemented if JAX
        shall make it.
        """
        del problem, watched, results, moving, cotangents
        return NotImplemented

    def cost(self, problem: Problem, mask: BoundMask, watched: Watch) -> Cost:
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

"""The choice of a backend."""

from dataclasses import dataclass
from typing import TypeAlias

from jaxattn._problem import Problem
from jaxattn.backends.blockwise import Blockwise
from jaxattn.backends.reference import Reference


@dataclass(frozen=True)
class Auto:
    """The fastest backend that can do what is asked, here."""

    def __repr__(self) -> str:
        return "AUTO"


AUTO = Auto()
Backend: TypeAlias = Reference | Blockwise | Auto


class Unsupported(ValueError):
    """A backend was asked by name for what it cannot do."""


def turned_down(
    backend: object, problem: Problem
) -> tuple[Reference | Blockwise, dict[Backend, str]]:
    """The backend to run, and why each of the others would not."""
    chosen = choose(backend, problem)
    others: dict[Backend, str] = {}
    for other in (Blockwise(), Reference()):
        if type(other) is not type(chosen):
            reason = other.refuses(problem)
            if reason is None and not isinstance(backend, Auto):
                reason = f"{chosen!r} was asked for"
            others[other] = reason or "holds the whole score matrix; for checking and for reading"
    return chosen, others


def choose(backend: object, problem: Problem) -> Reference | Blockwise:
    """The backend to run. One that was asked for by name is never replaced.

    Raises:
      Unsupported: the backend asked for cannot do this; the message gives its reason.
      TypeError: `backend` is not a backend.
    """
    asked = check_backend(backend)
    if isinstance(asked, Auto):
        return Reference() if Blockwise().refuses(problem) else Blockwise()
    reason = asked.refuses(problem)
    if reason is not None:
        raise Unsupported(f"{asked!r} cannot do this: {reason}; AUTO chooses one that can")
    return asked


def check_backend(backend: object) -> Backend:
    if not isinstance(backend, Reference | Blockwise | Auto):
        raise TypeError(
            f"a backend is a value: Reference(), Blockwise(q_block=..., k_block=...) or AUTO; "
            f"got {backend!r}"
        )
    return backend

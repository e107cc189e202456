"""The choice of a backend."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxattn.backends.blockwise.backend import Blockwise
from jaxattn.backends.hopper.backend import Hopper
from jaxattn.backends.protocol import Backend, Call, Unsupported
from jaxattn.backends.reference import Reference
from jaxattn.backends.splash.backend import Splash


@dataclass(frozen=True)
class Auto(Backend):
    """The first backend of `order` that can do what is asked."""

    order: tuple[Backend, ...] = (Hopper(), Splash(), Blockwise(), Reference())

    def __repr__(self) -> str:
        return "AUTO" if self == AUTO else f"Auto({', '.join(map(repr, self.order))})"

    def choose(self, call: Call) -> Backend:
        reasons = {}
        for backend in self.order:
            reasons[backend] = backend.refuses(call)
            if reasons[backend] is None:
                return backend
        told = "; ".join(f"{backend!r}: {reason}" for backend, reason in reasons.items())
        raise Unsupported(f"no backend can do this: {told}")


AUTO = Auto()


def turned_down(backend: Backend, chosen: Backend, call: Call) -> Mapping[Backend, str]:
    """Why each of the other backends would not run. backend: the one that was asked for."""
    others: dict[Backend, str] = {}
    for other in backend.order if isinstance(backend, Auto) else AUTO.order:
        if type(other) is type(chosen):
            continue
        reason = other.refuses(call)
        if reason is None and not isinstance(backend, Auto):
            reason = f"{chosen!r} was asked for"
        others[other] = reason or other.DRAWBACK or f"{chosen!r} comes first"
    return others


def check_backend(backend: object) -> Backend:
    """
    Raises:
      TypeError: `backend` is not a backend.
    """
    if not isinstance(backend, Backend):
        raise TypeError(
            f"a backend is a value: AUTO, Blockwise(q_block=..., k_block=...), Hopper(), Splash() "
            f"or Reference(); got {backend!r}"
        )
    return backend

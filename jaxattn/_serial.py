"""How `jax.export` writes the structures of the package's values down: as JSON."""

import json
from contextlib import suppress
from enum import Enum
from typing import Any, TypeVar

from jax import export

T = TypeVar("T")


def name_of(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def serial_tuple(cls: type[T]) -> type[T]:
    """A class decorator: a NamedTuple that exported functions may take and return."""
    return export.register_namedtuple_serialization(cls, serialized_name=name_of(cls))


def register_value(cls: Any) -> None:
    """The same for a value: a pytree whose structure is a tuple of (x,) or None."""
    with suppress(ValueError):  # a class that is defined again, as in a notebook
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name_of(cls),
            serialize_auxdata=write,
            deserialize_auxdata=read,
        )


def write(structure: tuple[Any, ...]) -> bytes:
    """
    Raises:
      TypeError: a function in it.
    """
    return json.dumps([None if x is None else [_write(x[0])] for x in structure]).encode()


def read(written: bytes | bytearray) -> tuple[Any, ...]:
    return tuple(None if x is None else (_read(x[0]),) for x in json.loads(bytes(written)))


def _write(x: Any) -> Any:
    if isinstance(x, Enum):
        return [type(x).__name__, x.name]
    if x is None or isinstance(x, int):
        return x
    raise TypeError(
        f"an exported function takes and returns values of numbers and arrays, got one with the "
        f"function {x!r} in it; make that value inside the function that is exported"
    )


def _read(x: Any) -> Any:
    if not isinstance(x, list):
        return x
    ours = (cls for cls in Enum.__subclasses__() if cls.__module__.startswith("jaxattn."))
    return {cls.__name__: cls for cls in ours}[x[0]][x[1]]

"""What a config.json says, asked for by the names that versions of transformers have used."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxattn.models.checkpoint import CheckpointError


class Config:
    """A config, with checks: what a model cannot do is an error before weights are read."""

    def __init__(self, stated: Mapping[str, Any]) -> None:
        self.stated = dict(stated)

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of the names that says something."""
        return next((x for name in names if (x := self.stated.get(name)) is not None), default)

    def size(self, *names: str, default: int | None = None) -> int:
        """A whole number above 0."""
        found = self.get(*names, default=default)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise CheckpointError(
                f"config.json needs {names[0]!r}, a whole number above 0, got {found!r}"
            )
        return found

    def number(self, *names: str, default: float | int | None = None) -> float:
        found = self.get(*names, default=default)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise CheckpointError(f"config.json needs {names[0]!r}, a number, got {found!r}")
        return float(found)

    def flag(self, *names: str, default: bool) -> bool:
        found = self.get(*names, default=default)
        if not isinstance(found, bool):
            raise CheckpointError(f"config.json has {names[0]!r} true or false, got {found!r}")
        return found

    def choice(self, *names: str, of: Mapping[str, Any], default: Any = None) -> Any:
        """What `of` has for the word that is stated."""
        found = self.get(*names, default=default)
        if not isinstance(found, str) or found not in of:
            raise CheckpointError(
                f"{names[0]!r} in config.json is one of {', '.join(of)}, got {found!r}; models "
                f"with another are not supported"
            )
        return of[found]

    def refuse(self, name: str, *allowed: Any) -> None:
        """An error if the option is set to anything but these; it may be absent."""
        found = self.stated.get(name)
        if found is not None and found not in allowed:
            only = " or ".join(map(repr, allowed)) or "none"
            raise CheckpointError(
                f"{name!r} in config.json is {found!r}, supported is {only}; such models are not "
                f"supported"
            )

    def layer_types(self, layers: int, of: Iterable[str], default: Callable[[int], str]) -> Any:
        """The kind of each layer: what `layer_types` says, or `default` of its index."""
        stated = self.get("layer_types", default=[default(i) for i in range(layers)])
        known = list(of)
        if not isinstance(stated, list) or len(stated) != layers or set(stated) - set(known):
            raise CheckpointError(
                f"'layer_types' in config.json has one of {', '.join(known)} for each of {layers} "
                f"layers, got {stated!r}"
            )
        return stated

    def check_heads(self, width: int, heads: int) -> None:
        if width % heads:
            raise CheckpointError(
                f"heads in config.json divide the width, got width {width} and {heads} heads"
            )

    @staticmethod
    def array(x: float) -> Any:
        return jnp.asarray(x, jnp.float32)

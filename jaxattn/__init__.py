"""Attention for JAX that you can see through."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxattn._public import *  # noqa: F403
    from jaxattn._public import __all__ as __all__

FUNCTIONS = ("attend", "explain", "merge")  # that have the name of the module they are in


class _Package(ModuleType):
    """Loads what is public, and JAX with it, when any of it is first asked for.

    So `jaxattn --help` starts at once: Python imports a package before any module of it.
    """

    def __getattr__(self, name: str) -> Any:
        missing = AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name.startswith("__") and name != "__all__":  # Python's own questions
            raise missing
        if name not in FUNCTIONS:
            try:  # a module is imported alone: another module may be asking
                return importlib.import_module(f"{self.__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{self.__name__}.{name}":
                    raise
        public = importlib.import_module(f"{self.__name__}._public")
        vars(self).update({x: getattr(public, x) for x in (*public.__all__, "__all__")})
        if name not in vars(self):
            raise missing
        return vars(self)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets every module that it imports.
        if not (isinstance(value, ModuleType) and name in FUNCTIONS):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self.__all__)


sys.modules[__name__].__class__ = _Package

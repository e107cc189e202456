"""Functions of the user's own in what JAX keeps: told apart, and not kept alive.

What `jax.jit` holds for a function, such as the structure of its arguments and arrays that were
closed over, it holds for as long as that function lives: for one of a package, for ever. So
structures refer to the user's functions weakly, and what is compiled with them is compiled as a
function of its own, which goes when they go.
"""

import weakref
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import BuiltinFunctionType, MethodType
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxattn._value import Fixed, Value, fields_of


class Source:
    """Which function it is. Equal to another of the same function while that lives.

    Functions are told apart by identity, bound methods by their object's. Only a callable that has
    an equality of its own, and a hash, such as a frozen dataclass, is kept: it is what it equals.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        bound = isinstance(function, MethodType)
        parts = (function.__func__, function.__self__) if bound else (function,)
        self.kept = function if _is_content(function) else None
        self.parts = () if self.kept is not None else tuple(map(_refer, parts))
        self._hash = hash(function) if self.kept is not None else hash(tuple(map(id, parts)))

    def __call__(self) -> Callable[..., Any] | None:
        """The function; None if it is gone."""
        if self.kept is not None:
            return self.kept
        parts = [part() for part in self.parts]
        if any(part is None for part in parts):
            return None
        return parts[0] if len(parts) == 1 else MethodType(*parts)

    def __repr__(self) -> str:
        function = self()
        gone = "<a function that is gone>"
        return gone if function is None else getattr(function, "__name__", repr(function))

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Source):
            return self is other
        if self.kept is not None or other.kept is not None:
            return type(self.kept) is type(other.kept) and bool(self.kept == other.kept)
        mine, its = ([part() for part in source.parts] for source in (self, other))
        return len(mine) == len(its) and all(
            a is b and a is not None for a, b in zip(mine, its, strict=True)
        )

    def __hash__(self) -> int:
        return self._hash


def _is_content(function: Any) -> bool:
    cls: Any = type(function)
    if issubclass(cls, MethodType | BuiltinFunctionType) or cls.__eq__ is object.__eq__:
        return False
    try:
        hash(function)
    except TypeError:
        return False
    return True


def _refer(x: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(x)
    except TypeError:  # such as an object with slots
        return lambda: x


class Function(Fixed):
    """A function as a part of a value, equal to the same function. The value keeps it alive."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.source, self._call = Source(call), call

    @property
    def in_structure(self) -> "Function":
        """This function, not kept alive."""
        weak = object.__new__(Function)
        weak.source, weak._call = self.source, None
        return weak

    @property
    def call(self) -> Callable[..., Any]:
        call = self._call or self.source()
        if call is None:
            raise ReferenceError(
                "a function of a value that came out of a transformation is gone; keep the value "
                "that went in, or make it anew"
            )
        return call

    def __repr__(self) -> str:
        return repr(self.source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and self.source == other.source

    def __hash__(self) -> int:
        return hash(self.source)


class Compiled:
    """`compute`, compiled. Its first argument is static, the others are values and arrays."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        self._compute, self._plain = compute, jax.jit(compute, static_argnums=0)
        self._with: dict[tuple[Source, ...], Any] = {}

    def __call__(self, static: Any, *args: Any) -> Any:
        return self.of(*args)(static, *args)

    def of(self, *args: Any) -> Any:
        """The compiled function for values with functions in them: one for each set of these."""
        sources = (part.source for part in _fixed(args) if hasattr(part, "source"))
        key = tuple(source for source in sources if source.parts)
        if not key:
            return self._plain
        if (made := self._with.get(key)) is None:
            fresh = wraps(self._compute)(partial(self._compute))
            made = self._with.setdefault(key, jax.jit(fresh, static_argnums=0))
            for part in (part for source in key for part in source.parts):
                if isinstance(part, weakref.ref) and (alive := part()) is not None:
                    weakref.finalize(alive, self._with.pop, key, None).atexit = False
        return made


def _fixed(x: Any) -> Iterator[Any]:
    """The parts of values that belong to their structure."""
    if isinstance(x, Fixed):
        yield x
    elif isinstance(x, Value):
        for field in fields_of(x):
            yield from _fixed(field)
    elif isinstance(x, tuple):
        for item in x:
            yield from _fixed(item)


_keep = Primitive("keep_functions")
_keep.multiple_results = True


def keep(functions_of: Any, results: Any) -> Any:
    """`results`, in a program that keeps alive the functions in the values `functions_of`.

    They are called where it is lowered, as is its transpose: after they were last seen.
    """
    parts = [part for part in _fixed(functions_of) if isinstance(part, Function)]
    if not parts:
        return results
    leaves, structure = jax.tree.flatten(results)
    calls = tuple(part.call for part in parts)
    return jax.tree.unflatten(structure, _keep.bind(*leaves, functions=calls))


def _keep_jvp(xs: Any, dxs: Any, *, functions: Any) -> tuple[Any, Any]:
    moved = [not isinstance(dx, ad.Zero) for dx in dxs]
    kept = iter(
        _keep.bind(*(dx for dx, it in zip(dxs, moved, strict=True) if it), functions=functions)
    )
    tangents = [next(kept) if it else dx for dx, it in zip(dxs, moved, strict=True)]
    return _keep.bind(*xs, functions=functions), tangents


_keep.def_impl(lambda *xs, functions: list(xs))
_keep.def_abstract_eval(lambda *xs, functions: list(xs))
mlir.register_lowering(_keep, lambda context, *xs, functions: xs)
ad.primitive_jvps[_keep] = _keep_jvp
ad.primitive_transposes[_keep] = lambda cts, *xs, functions: cts
batching.primitive_batchers[_keep] = lambda xs, dims, *, functions: (
    _keep.bind(*xs, functions=functions),
    dims,
)

"""Programs that are made where they are lowered, for the platform that they are lowered for.

While JAX traces a function it is not known where that will run: what is exported for a GPU is
traced on a host that may have none. So a call is one equation, of which only the shapes of its
results are known, until it is lowered; so are its derivatives, its transpose and what `jax.vmap`
makes of it. What they compute is traced then.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe
from jaxtyping import Array

from jaxattn._varying import NOWHERE, anywhere, vary, varying

PLATFORMS = "cpu", "cuda", "rocm", "tpu"
OTHER = "other"

Shapes: TypeAlias = tuple[jax.ShapeDtypeStruct, ...]


class Target(NamedTuple):
    """What a program is made for.

    platform: one of `PLATFORMS`, or `OTHER`.
    order: how many derivatives JAX will take of what is made.
    """

    platform: str
    order: int = 0


_platform: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str | None:
    """The platform for which a program is being made; None where that is not known."""
    return _platform.get()


class Devices(NamedTuple):
    """How a program is to devices.

    divided: whether the compiler divides it over several. part: whether it is that of each of
    several, as inside `jax.shard_map`. typed: whether JAX asks there of each array over which axes
    of the mesh it varies.
    """

    divided: bool = False
    part: bool = False
    typed: bool = False


ALONE = Devices()
_devices: ContextVar[Devices] = ContextVar("devices", default=ALONE)


def devices() -> Devices:
    """Those of the program that is being made."""
    return _devices.get()


@contextmanager
def lowered_for(platform: str, devices: Devices = ALONE) -> Iterator[None]:
    """What is traced inside is made for this platform and these devices."""
    before, others = _platform.set(platform), _devices.set(devices)
    try:
        yield
    finally:
        _platform.reset(before)
        _devices.reset(others)


def host_platform() -> str:
    """The platform on which arrays are by default."""
    name = jax.default_backend()
    if name == "gpu":
        name = "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"
    return name if name in PLATFORMS else OTHER


def lowered(compute: Any, *trees: Any, like: Any, linear: bool = False) -> Any:
    """compute(target, *trees), made where the program is lowered.

    Args:
      compute: takes a `Target` and trees of arrays; has equality and a hash. It may have a method
        `transpose(target, *trees, cotangents)`, which gets shapes in place of the arrays of the
        last tree, and gives their cotangents, in a tree like it; NotImplemented if JAX shall
        transpose it. The cotangents of the results are None where they are zeros. If it has
        `over_devices`, which is true, its devices send each other arrays.
      like: what has the shapes and dtypes of the result.
      linear: whether it is linear in the last tree.
    """
    leaves, structure = jax.tree.flatten(trees)
    shapes, result = jax.tree.flatten(like)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes)
    last = len(jax.tree.leaves(trees[-1])) if linear else 0
    given = Given(shapes, last, compute, structure, result)
    return jax.tree.unflatten(result, _bind(map(jnp.asarray, leaves), given))


@dataclass(frozen=True, repr=False)
class Equation:
    """What an equation computes.

    shapes: of its results.
    linear: in how many of its arguments, the last ones, it is linear: in all of these together.
    """

    shapes: Shapes
    linear: int

    @property
    def over_devices(self) -> bool:
        """Whether its devices send each other arrays."""
        return False

    def run(self, target: Target, *args: Array) -> Sequence[Array]:
        """The results."""
        raise NotImplementedError(f"{type(self).__name__}.run")

    def pull(
        self, target: Target, args: Sequence[Any], cotangents: Sequence[Array | None]
    ) -> Sequence[Array]:
        """The cotangents of the arguments that only their shapes stand for.

        cotangents: of the results; None for zeros.
        """
        asked, of = _asked(args), [i for i, x in enumerate(cotangents) if x is not None]
        zeros = [jnp.zeros(args[i].shape, args[i].dtype) for i in asked]

        def along(*some: Array) -> list[Array]:
            results = self.run(target, *replaced(args, asked, some))
            return [results[i] for i in of]

        pulled = lambda *cts: jax.vjp(along, *vary(zeros, varying(cts)))[1](list(cts))
        # Without the results of zeros, which `jax.vjp` makes on the way.
        known = [cotangents[i] for i in of]
        closed = jax.make_jaxpr(pulled)(*known)
        jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(asked), instantiate=True)
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*known)


@dataclass(frozen=True, repr=False)
class Given(Equation):
    """`compute`, of trees."""

    compute: Any
    structure: Any
    result: Any

    def __repr__(self) -> str:
        return repr(self.compute)

    @property
    def over_devices(self) -> bool:
        return getattr(self.compute, "over_devices", False)

    def run(self, target: Target, *args: Array) -> Sequence[Array]:
        trees = jax.tree.unflatten(self.structure, args)
        results = jax.tree.leaves(self.compute(target, *trees))
        made, said = ([(x.shape, str(x.dtype)) for x in xs] for xs in (results, self.shapes))
        if made != said:
            raise TypeError(f"{self.compute!r} gave {made}; what takes its results expects {said}")
        return results

    def pull(
        self, target: Target, args: Sequence[Any], cotangents: Sequence[Array | None]
    ) -> Sequence[Array]:
        whole = _asked(args) == list(range(len(args) - self.linear, len(args)))
        if whole and hasattr(self.compute, "transpose"):
            trees = jax.tree.unflatten(self.structure, args)
            of_results = jax.tree.unflatten(self.result, cotangents)
            pulled = self.compute.transpose(target, *trees, of_results)
            if pulled is not NotImplemented:
                return jax.tree.leaves(pulled)
        return super().pull(target, args, cotangents)


@dataclass(frozen=True, repr=False)
class Of(Equation):
    """Base of what is made of another equation."""

    equation: Equation

    @property
    def over_devices(self) -> bool:
        return self.equation.over_devices


@dataclass(frozen=True, repr=False)
class Moved(Of):
    """The tangents of the results that have any, as some arguments of `equation` move.

    Of its arguments, and then the tangents of those in the places `which`.
    """

    which: tuple[int, ...]

    def __repr__(self) -> str:
        return f"tangent of {self.equation!r}"

    def run(self, target: Target, *args: Array) -> Sequence[Array]:
        n = len(args) - self.linear
        inner = target._replace(order=target.order + 1)

        def along(*some: Array) -> list[Array]:
            return _real(self.equation.run(inner, *replaced(args[:n], self.which, some)))

        return jax.jvp(along, [args[i] for i in self.which], list(args[n:]))[1]


@dataclass(frozen=True, repr=False)
class Pulled(Of):
    """The cotangents of some arguments of `equation`, those in the places `which`.

    Of its other arguments, and then the cotangents of its results that have any: `moving`.
    """

    which: tuple[int, ...]
    moving: tuple[bool, ...]

    def __repr__(self) -> str:
        return f"transpose of {self.equation!r}"

    def run(self, target: Target, *args: Array) -> Sequence[Array]:
        n = len(args) - self.linear
        known, cotangents = list[Any](args[:n]), iter(args[n:])
        for place, shape in zip(self.which, self.shapes, strict=True):
            known.insert(place, shape)
        every = [next(cotangents) if moves else None for moves in self.moving]
        return self.equation.pull(target, known, every)

    def pull(
        self, target: Target, args: Sequence[Any], cotangents: Sequence[Array | None]
    ) -> Sequence[Array]:
        """By JAX, which differentiates the transpose for it."""
        return super().pull(target._replace(order=target.order + 1), args, cotangents)


@dataclass(frozen=True, repr=False)
class Mapped(Of):
    """`equation`, mapped over the first axis of its results and of the arguments with an axis 0."""

    axes: tuple[int | None, ...]

    def __repr__(self) -> str:
        return f"map of {self.equation!r}"

    def run(self, target: Target, *args: Array) -> Sequence[Array]:
        return jax.vmap(partial(self.equation.run, target), self.axes)(*args)

    def pull(
        self, target: Target, args: Sequence[Any], cotangents: Sequence[Array | None]
    ) -> Sequence[Array]:
        asked = _asked(args)
        known = [i for i in range(len(args)) if i not in asked]
        shapes = [jax.ShapeDtypeStruct(args[i].shape[1:], args[i].dtype) for i in asked]

        def one(known_args: list[Array], cotangents: list[Array | None]) -> Sequence[Array]:
            every = replaced(replaced(args, asked, shapes), known, known_args)
            return self.equation.pull(target, every, cotangents)

        axes = [self.axes[i] for i in known], 0
        return jax.vmap(one, axes)([args[i] for i in known], list(cotangents))


def _asked(args: Sequence[Any]) -> list[int]:
    return [i for i, x in enumerate(args) if isinstance(x, jax.ShapeDtypeStruct)]


def replaced(args: Sequence[Any], which: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """`args` with `others` in the places `which`."""
    every = dict(enumerate(args)) | dict(zip(which, others, strict=True))
    return [every[i] for i in range(len(args))]


def _real(results: Sequence[Any]) -> list[Any]:
    """Those that have a derivative."""
    return [x for x in results if jnp.issubdtype(x.dtype, jnp.inexact)]


_lowered = Primitive("lowered")
_lowered.multiple_results = True


def _bind(args: Any, equation: Equation, x64: bool | None = None) -> list[Array]:
    x64 = jax.config.jax_enable_x64 if x64 is None else x64  # pyright: ignore
    return _lowered.bind(*args, equation=equation, x64=x64)


_compiled = jax.jit(_bind, static_argnames=("equation", "x64"))


def _run(
    target: str, *args: Any, equation: Equation, x64: bool, devices: Devices = ALONE
) -> Sequence[Array]:
    same = jax.config.jax_enable_x64 == x64  # pyright: ignore[reportAttributeAccessIssue]
    with lowered_for(target, devices), nullcontext() if same else jax.enable_x64(x64):
        return equation.run(Target(target), *args)


def _impl(*args: Any, equation: Equation, x64: bool) -> Sequence[Array]:
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return _run(host_platform(), *args, equation=equation, x64=x64)
    return _compiled(args, equation=equation, x64=x64)


def _results(*avals: Any, equation: Equation, x64: bool) -> Sequence[Any]:
    axes = NOWHERE.union(*(x.mat.varying for x in avals))
    zeros = lambda: vary([jnp.zeros(x.shape, x.dtype) for x in equation.shapes], axes)
    return jax.make_jaxpr(zeros)().out_avals


def _jvp(primals: Any, tangents: Any, *, equation: Equation, x64: bool) -> tuple[Any, Any]:
    n = len(primals) - equation.linear
    bind = partial(_bind, x64=x64)
    results, moves = bind(primals, equation), []
    along = lambda dxs: [not isinstance(dx, ad.Zero) for dx in dxs]
    if any(along(tangents[n:])):
        moves.append(bind((*primals[:n], *map(ad.instantiate_zeros, tangents[n:])), equation))
    if which := tuple(i for i, moved in enumerate(along(tangents[:n])) if moved):
        shapes = tuple(_real(equation.shapes))
        moved = Moved(shapes, len(which), equation, which)
        moves.append(bind((*primals, *(tangents[i] for i in which)), moved))
    total = iter(jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *moves)) if moves else iter(())
    still = lambda x: ad.Zero(jax.typeof(x).to_tangent_aval())
    return results, [next(total, None) if _real([x]) else still(x) for x in results]


def _transpose(cotangents: Any, *args: Any, equation: Equation, x64: bool) -> list[Any]:
    which = tuple(i for i, x in enumerate(args) if ad.is_undefined_primal(x))
    shapes = tuple(jax.ShapeDtypeStruct(args[i].aval.shape, args[i].aval.dtype) for i in which)
    known = [x for x in args if not ad.is_undefined_primal(x)]
    moving = tuple(not isinstance(ct, ad.Zero) for ct in cotangents)
    if not any(moving):
        return [None] * len(args)
    moved = [ct for ct, moves in zip(cotangents, moving, strict=True) if moves]
    pulled = Pulled(shapes, len(moved), equation, which, moving)
    return replaced([None] * len(args), which, _bind((*known, *moved), pulled, x64))


def _batch(args: Any, dims: Any, *, equation: Equation, x64: bool) -> tuple[list[Array], list[int]]:
    n = len(args) - equation.linear
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    grow = lambda shape: jax.ShapeDtypeStruct((size, *shape.shape), shape.dtype)
    first = lambda i, x, d: x if d is None and i < n else batching.bdim_at_front(x, d, size)
    moved = [first(i, x, d) for i, (x, d) in enumerate(zip(args, dims, strict=True))]
    axes = tuple(None if d is None and i < n else 0 for i, d in enumerate(dims))
    shapes = tuple(map(grow, equation.shapes))
    mapped = Mapped(shapes, equation.linear, equation, axes)
    return _bind(moved, mapped, x64), [0] * len(shapes)


_lowered.def_impl(_impl)
_lowered.def_abstract_eval(_results)
ad.primitive_jvps[_lowered] = _jvp
ad.primitive_transposes[_lowered] = _transpose
batching.primitive_batchers[_lowered] = _batch


def _lower(target: str, context: Any, *args: Any, **params: Any) -> Any:
    typed = any(x.mat.varying for x in context.avals_in)
    devices = _devices_of(context.module_context.axis_context)._replace(typed=typed)
    if typed and not params["equation"].over_devices:
        # It is all of one device: then kernels, which tell nothing of axes of a mesh, can be in it.
        context = context.replace(avals_in=[*map(anywhere, context.avals_in)])
    return mlir.lower_fun(partial(_run, target, devices=devices))(context, *args, **params)


def _devices_of(axes: Any) -> Devices:
    """axes: how a module is put on devices: by their number, or by a mesh, of whose axes some are
    manual, as in `jax.shard_map`."""
    if not hasattr(axes, "mesh"):
        return Devices(divided=getattr(axes, "num_devices", 1) > 1)
    manual = axes.manual_axes | {*axes.mesh.manual_axes}
    divided = manual != {*axes.mesh.axis_names} if manual else axes.mesh.size > 1
    return Devices(divided, part=bool(manual) and axes.mesh.size > 1)


for name in PLATFORMS:
    mlir.register_lowering(_lowered, partial(_lower, name), platform=name)
mlir.register_lowering(_lowered, partial(_lower, OTHER))

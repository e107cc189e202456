"""What the kernels have in common: their programs, what each of its warpgroups does, the launch."""

# The names are those of jax 0.11.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportReturnType=false

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxattn._axes import INDEX
from jaxattn._problem import Rule
from jaxattn._value import Span, unflatten_index
from jaxattn.backends.hopper.place import Here, TilePlace
from jaxattn.backends.hopper.plan import WARPGROUPS, Tiles
from jaxattn.backends.hopper.warpgroups import Ring, ring_barriers, shared_tile

COMPUTING, LOADING = 240, 24  # registers of a thread


class Kernel:
    """One program for each block of queries, or of keys, of a head. Each of its computing
    warpgroups has half of the block; a third one loads what comes through a ring of shared memory.

    tiles: what comes. group: query heads of a key head. more: the arrays of the rule, as `operands`
    gives them. interpret: parameters of Pallas's interpreter, which stands in for a device, or
    None.
    """

    keys_first = False  # whether a program has keys, and queries come

    def __init__(
        self, tiles: Tiles, rule: Rule, group: int, more: list[Array], interpret: Any
    ) -> None:
        self.tiles, self.rule, self.group, self.more = tiles, rule, group, more
        self.plan, self.sizes, self.interpret = tiles.plan, tiles.sizes, interpret
        self.mine = tiles.plan.block_q // WARPGROUPS

    def scratch(self, shared: Callable[..., Any], d: int, e: int) -> list[Any]:
        """Shared memory and barriers of its own. shared(*shape): of half precision."""
        raise NotImplementedError(f"{type(self).__name__}.scratch")

    def compute(
        self, here: Here, arrays: Any, ring: Ring, more: Any, results: Any, scratch: Any
    ) -> None:
        """What a computing warpgroup does. arrays, results: those of one element of the batch."""
        raise NotImplementedError(f"{type(self).__name__}.compute")

    def ring_of(self, arrays: list[Any]) -> list[Any]:
        """Which one or two come through the ring."""
        return arrays[1:3]

    @property
    def times(self) -> int:
        """How often the tiles of a range come."""
        return 1

    def coming(self, here: Here, i: Any) -> tuple[Any, Any]:
        """(tile, head) of what comes as the i-th."""
        return here.tile(i), lax.div(here.head, INDEX(self.group))

    def place(self, here: Here, i: Any) -> TilePlace:
        """Where the i-th tile is."""
        size = self.tiles.size
        return TilePlace.of(here, here.head, here.mine, Span(here.tile(i) * size, size))

    def scale(self, here: Here, more: Any) -> Any:
        """That of the logits."""
        ref = more[-1]
        index = [0 if n == 1 else i for n, i in zip(ref.shape, here.mapped, strict=False)]
        return ref[(*index, *(0,) * (len(ref.shape) - len(index)))]

    def over(
        self,
        here: Here,
        step: Callable[[bool, Any, Any], Any],
        state: Any,
        splits: bool = True,
        start: int = 0,
    ) -> Any:
        """step(masked, i, state) for the tiles of a program, counted from its first one, from the
        start-th on.

        splits: whether what is allowed whole goes without a mask: that takes three loops, and more
        registers.
        """
        tiles, at = self.tiles, INDEX(start)
        if tiles.all_whole:
            return lax.fori_loop(at, here.count, partial(step, False), state)
        if not (tiles.any_whole and splits):
            return lax.fori_loop(at, here.count, partial(step, True), state)
        whole, end = here.whole - here.first, here.end - here.first
        if start:
            whole, end = jnp.maximum(whole, at), jnp.maximum(end, at)
        state = lax.fori_loop(at, whole, partial(step, True), state)
        state = lax.fori_loop(whole, end, partial(step, False), state)
        return lax.fori_loop(end, here.count, partial(step, True), state)

    def run(
        self, heads: int, arrays: list[Array], results: list[jax.ShapeDtypeStruct]
    ) -> list[Array]:
        """The results. The first axis of all arrays and results is that of the batch."""
        arrays = [*arrays, *self.tiles.arrays()]
        return self._in_vmap((), heads, len(arrays), results)(*arrays, *self.more)

    def _in_vmap(self, sizes: tuple[int, ...], heads: int, n: int, results: list[Any]) -> Any:
        """The kernel inside of `jax.vmap` over axes of these sizes, which are more of the batch."""

        @custom_vmap
        def launch(*args: Array) -> list[Array]:
            return self._launch(sizes, heads, n, results, args)

        @launch.def_vmap
        def mapped(
            size: int, is_mapped: list[bool], *args: Array
        ) -> tuple[list[Array], list[bool]]:
            wide = [x if own else x[None] for x, own in zip(args, is_mapped, strict=True)]
            inner = self._in_vmap((size, *sizes), heads, n, results)
            return inner(*wide), [True] * len(results)

        return launch

    def _launch(
        self, mapped: tuple[int, ...], heads: int, n: int, results: list[Any], args: Any
    ) -> list[Array]:
        rank, total = len(mapped), math.prod(self.sizes.batch)
        batches = math.prod(mapped) * total
        leads = [x.shape[: rank + 1] for x in args[:n]]
        flat = [x.reshape(-1, *x.shape[rank + 1 :]) for x in args[:n]]
        q, v = args[0], args[2]
        shared = partial(shared_tile, q.dtype)
        d, e, stages, size = q.shape[-1], v.shape[-1], self.plan.stages, self.tiles.size
        features = [x.shape[-1] for x in self.ring_of(list(args[:n]))]
        ring = [shared(stages, size, width) for width in features]
        ring += ring_barriers(stages, len(ring))
        found = plgpu.kernel(
            partial(self._body, (*mapped, total), leads, len(results)),
            out_type=[jax.ShapeDtypeStruct((batches, *x.shape[1:]), x.dtype) for x in results],
            scratch_types=[*ring, *self.scratch(shared, d, e)],
            grid=(heads, self.tiles.programs, batches),
            grid_names=("head", "program", "batch"),
            num_threads=WARPGROUPS + 1,
            thread_name="warpgroup",
            compiler_params=plgpu.CompilerParams(approx_math=True),
            **({} if self.interpret is None else {"interpret": self.interpret}),
        )(*flat, *args[n:])
        return [x.reshape(*mapped, total, *x.shape[1:]) for x in found]

    def _body(self, batches: Any, leads: list[Any], results: int, *refs: Any) -> None:
        n, most = len(leads), len(leads) + len(self.more)
        head, program, batch, warpgroup = (
            lax.axis_index(x) for x in ("head", "program", "batch", "warpgroup")
        )
        if self.tiles.longest_is_last:  # it starts first
            program = self.tiles.programs - 1 - program
        at = unflatten_index(batch, batches)
        arrays = [ref.at[_flat_index(at, lead)] for ref, lead in zip(refs, leads, strict=False)]
        numbers = arrays.pop().at[program] if self.tiles.is_listed else None
        its, start = arrays.pop().at[program], program * self.plan.block_q + warpgroup * self.mine
        here = Here(
            at[:-1],
            unflatten_index(at[-1], self.sizes.batch),
            head,
            warpgroup,
            Span(start, self.mine),
            *((its[i] for i in range(4)) if numbers is None else (INDEX(0), *[its[3]] * 3)),
            numbers,
        )
        more, made = refs[n:most], [ref.at[batch] for ref in refs[most : most + results]]
        rest = refs[most + results :]
        of_ring = 3 * len(self.ring_of(arrays))
        ring, scratch = Ring(self.tiles.size, self.plan.stages, *rest[:of_ring]), rest[of_ring:]
        if self.plan.schedule == "overlap":  # its loop begins after a first tile
            here = here.with_a_tile(self.tiles.across)

        @pl.when(warpgroup == WARPGROUPS)
        def load() -> None:
            plgpu.set_max_registers(LOADING, action="decrease")
            count = here.count * self.times
            ring.load(self.ring_of(arrays), count, partial(self.coming, here))
            ring.drain(count)

        @pl.when(warpgroup < WARPGROUPS)
        def compute() -> None:
            plgpu.set_max_registers(COMPUTING, action="increase")
            self.compute(here, arrays, ring, more, made, scratch)


def _flat_index(at: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """The place in a flat array of the element `at`, which axes of size 1 share."""
    place: Any = INDEX(0)
    for i, n in zip(at, shape, strict=True):
        place = place if n == 1 else place * n + i
    return place

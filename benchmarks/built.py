"""Computations that are ready to be timed, and how a function of JAX arrays becomes one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Built:
    """A computation that is ready to run."""

    run: Callable[[], Any]
    """Starts one computation and returns its results, perhaps before they are there."""
    wait: Callable[[Any], object]
    """Blocks until what `run` returned is there."""
    temp_bytes: Callable[[], int | None] = lambda: None
    """Peak bytes beyond inputs and results, where it can be known; may run the computation once."""
    compile_seconds: float | None = None
    """Tracing, lowering and compiling; None where nothing is compiled."""


def build(f: Callable[..., Any], *arrays: Any, donated: int | None = None) -> Built:
    """`f` of these arrays, or of pytrees of them, compiled for exactly their shapes.

    donated: which argument `f` updates in place, if any; it returns the new one and a result.
    """
    begin = time.perf_counter()
    compiled = jax.jit(f, donate_argnums=donated).lower(*arrays).compile()
    seconds = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    temp = None if memory is None else int(memory.temp_size_in_bytes)
    run = lambda: compiled(*arrays)
    if donated is not None:
        run = _in_turn(compiled, arrays, donated)
    return Built(run, jax.block_until_ready, lambda: temp, seconds)


def _in_turn(f: Callable[..., Any], arrays: tuple[Any, ...], donated: int) -> Callable[[], Any]:
    """Runs that each start with what the one before left, the first with a copy."""
    held = list(arrays)
    held[donated] = jax.tree.map(jnp.copy, arrays[donated])

    def run() -> Any:
        held[donated], out = f(*held)
        return out

    return run

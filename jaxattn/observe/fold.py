"""An observation of the user's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxattn._axes import AnyArray
from jaxattn._function import Function
from jaxattn._observation import HEAD, BoundObservation, Per, Seen
from jaxattn._value import Sizes


def Fold(
    start: Callable[[], Any],
    absorb: Callable[Concatenate[Seen, ...], Any],
    merge: Callable[[Any, Any], Any] | None = None,
    finish: Callable[[Any], Any] | None = None,
    per: Per = HEAD,
    arrays: Sequence[AnyArray] = (),
) -> BoundObservation:
    """Any reduction over the weights that can be made tile by tile.

    start: () -> state, the state of no pairs: numbers or arrays, or a tree of them.
    absorb: (seen, *arrays) -> state, of the pairs of one tile of one head, where `seen` has
      `weights`, `logits`, `scaled` and `allowed` [t s], `lse` and `live` [t], the positions `q` [t]
      and `k` [s], `batch` and `head`.
    merge: (state, state) -> state, of the pairs of both; their sum if not given. The order does not
      matter.
    finish: state -> result, of a whole state with the batch axes and h in it; the state itself if
      not given.
    per: HEAD: a state for each head, [*b h ...] in the end. QUERY or KEY: one for each query or
      key; what `absorb` returns has their axis first, `start` gives it for one of them, and the
      result is [*b t h ...] or [*b s h ...].
    arrays: what `absorb` takes beside the tile, one for all heads. They may be traced, and have
      gradients. Other arrays that a function closes over must not be traced.

    Outside `jit` each new function compiles anew.
    """
    for name, function in (("start", start), ("absorb", absorb)):
        if not callable(function):
            raise TypeError(f"{name} of a Fold is a function, got {function!r}")
    if not isinstance(per, Per):
        raise TypeError(f"a Fold is per HEAD, QUERY or KEY, got {per!r}")
    functions = start, absorb, _add if merge is None else merge, finish or _same
    begin, absorb_, merge_, end = map(Function, functions)
    return _Fold(begin, absorb_, merge_, end, per, tuple(map(jnp.asarray, arrays)))


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _same(state: Any) -> Any:
    return state


@dataclass(frozen=True, eq=False, repr=False)
class _Fold(BoundObservation):
    begins: Function
    absorbs: Function
    merges: Function
    finishes: Function
    of: Per
    arrays: tuple[Array, ...]

    def __repr__(self) -> str:
        return f"Fold({self.begins}, {self.absorbs}, {self.merges}, {self.finishes}, {self.of!r})"

    @property
    def per(self) -> Per:
        return self.of

    def start(self, sizes: Sizes, dtype: Any) -> Any:
        return jax.tree.map(jnp.asarray, self.begins.call())

    def absorb(self, seen: Seen) -> Any:
        return self.absorbs.call(seen, *self.arrays)

    def merge(self, a: Any, b: Any) -> Any:
        return self.merges.call(a, b)

    def finish(self, state: Any, live: Array) -> Any:
        return self.finishes.call(state)

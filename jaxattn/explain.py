"""`explain`: what `attend` would do with these arguments, and what it would cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxattn._content import as_array
from jaxattn._lowering import host_platform, lowered_for
from jaxattn._mask import Mask, check_mask
from jaxattn._observation import Observation, check_observations
from jaxattn._problem import check
from jaxattn._solve import Scoring, run
from jaxattn.backends.protocol import Backend, Call, Cost
from jaxattn.backends.select import AUTO, Auto, check_backend, turned_down
from jaxattn.dropout import Dropout
from jaxattn.masks import EVERYTHING
from jaxattn.positions import Given, frame_of
from jaxattn.sharded.typed import way_of
from jaxattn.sharded.ways import Way


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(Cost):
    """What a call of `attend` would do, and its `Cost`.

    backend: the one that would run. turned_down: why each of the others would not.
    way: how `jaxattn.sharded` attends, where the types of q, k and v ask for that, as
      `jaxattn.sharded.explain` tells; the rest is told of one device. Else None.
    temporary_bytes: memory beside arguments and results, with the observations, as the compiler
      plans it for the forward pass alone; None where it does not say.
    """

    backend: Backend
    turned_down: Mapping[Backend, str]
    way: Way | None
    temporary_bytes: int | None

    def __repr__(self) -> str:
        share = "unknown while tracing"
        if self.visited is not None and self.flops is not None:
            percent = 100 * self.visited / max(self.tiles, 1)
            share = f"{self.visited:,} of {self.tiles:,} visited ({percent:.0f} %)"
            share += f", {self.flops / 1e9:,.3f} GFLOP"
        memory = "unknown"
        if self.temporary_bytes is not None:
            memory = f"{self.temporary_bytes / 2**20:,.2f} MiB"
        lines = [
            *([f"shared out {self.way!r}; the rest is told of one device"] if self.way else ()),
            f"backend    {self.backend!r}",
            *(f"           not {other!r}: {why}" for other, why in self.turned_down.items()),
            f"tile       {self.q_block} queries × {self.k_block} keys, "
            f"{self.heads} heads and {self.batch} batch elements at a time",
            f"tiles      {share}",
            *(["observed   in a second sweep"] if self.second_sweep else ()),
            f"temporary  {memory} in the forward pass",
        ]
        return "\n".join(lines)


def explain(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Any = None,
    sinks: Any = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
) -> Explanation:
    """What `attend` would do with these arguments. Compiles the forward pass; runs nothing of it.

    q, k and v may be given as `jax.ShapeDtypeStruct`. Takes and raises what `attend` does.
    """
    rule = mask, score, scale, sinks, dropout, positions
    arrays = [
        x if isinstance(x, jax.ShapeDtypeStruct) else as_array(x, name)
        for name, x in (("q", q), ("k", k), ("v", v))
    ]
    way = way_of(*arrays) if isinstance(backend, Auto) else None
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    problem = jax.eval_shape(lambda q, k, v: check(q, k, v, *rule)[0], *arrays)
    frame = frame_of(positions, problem.sizes)
    watched = tuple(check_observations(observe, frame, problem.q.dtype).values())
    call = Call(problem, watched, platform=host_platform())
    chosen = check_backend(backend).choose(call)
    memory: Any = (
        run.of(problem, watched).lower(chosen, problem, watched).compile().memory_analysis()
    )
    cost = Cost()
    if not problem.is_empty:
        with lowered_for(host_platform()):
            cost = chosen.cost(problem, check_mask(mask).resolve(frame), watched)
    return Explanation(
        **vars(cost),
        backend=chosen,
        turned_down=turned_down(backend, chosen, call),
        way=way,
        temporary_bytes=None if memory is None else int(memory.temp_size_in_bytes),
    )

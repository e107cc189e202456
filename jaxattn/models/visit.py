"""`visit`: a model layer by layer, with all that goes into its attention, in one pass."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Integer

from jaxattn._axes import AnyArray
from jaxattn.attend import attend
from jaxattn.models.attention import Observe, Steps
from jaxattn.models.block import Layer
from jaxattn.models.model import Model


class Visit(NamedTuple):
    """One layer of a pass.

    steps: as `model.steps(ids, layer)` gives them. observed: of its attention, by name.
    hidden: after the layer; those of the last are after the last norm, as `model(ids).hidden`.
    """

    layer: int
    steps: Steps
    observed: dict[str, Any]
    hidden: Float[Array, "*b t m"]


def visit(
    model: Model,
    ids: Integer[AnyArray, "*b t"],
    *,
    padding: Bool[AnyArray, "*b t"] | None = None,
    positions: Integer[AnyArray, "*#b t"] | None = None,
    types: Integer[AnyArray, "*#b t"] | None = None,
    observe: Observe | None = None,
) -> Iterator[Visit]:
    """Yields every layer as it is computed. What is not kept is freed: keep little of each.

        for layer, steps, observed, _ in visit(model, ids, observe={"entropy": Entropy()}):
            print(layer, steps.q.shape, observed["entropy"].mean())

    Takes and raises what a call of the model does, the errors at once.
    """
    entered = model._enter(ids, padding, positions, types)
    return _visit(model, *entered, observe)


def _visit(model: Model, x: Array, turns: Any, padding: Any, observe: Any) -> Iterator[Visit]:
    for index, layer in enumerate(model.layers):
        x, steps, observed = _layer(layer, x, turns.get(layer.attention.rope), padding, observe)
        if index == len(model.layers) - 1:
            x = model._leave(x)
        yield Visit(index, steps, observed, x)


@jax.jit
def _layer(layer: Layer, x: Any, turn: Any, padding: Any, observe: Any) -> Any:
    attention, read = layer.attention, layer.read(x)
    q, k, v = attention.qkv(read, turn)
    options = attention.options(padding)
    attended, _, observed = attend(q, k, v, observe=observe, **options)
    options["score"] = attention.score
    out = attention.join(attended)
    return (
        layer.join(x, out),
        Steps(x, read, q, k, v, **options, attended=attended, out=out),
        observed,
    )

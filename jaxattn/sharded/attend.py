"""`attention` and `attend` of one sequence over many devices."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Real

from jaxattn._axes import AnyArray, AnyNumber, Attended
from jaxattn._content import as_array
from jaxattn._observation import Observation
from jaxattn._solve import Scoring
from jaxattn.backends.protocol import Backend
from jaxattn.backends.select import AUTO
from jaxattn.dropout import Dropout
from jaxattn.masks import EVERYTHING, Mask
from jaxattn.positions import Given
from jaxattn.sharded.local import attend_here
from jaxattn.sharded.ways import Axes, Way
from jaxattn.sharded.whole import attend_whole


def attention(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    way: Way,
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    backend: Backend = AUTO,
    spec: jax.P | None = None,
) -> Float[Array, "*b t h e"]:
    """`jaxattn.attention` to a sequence that is shared out over devices. As `attend`, out alone."""
    rule = {"mask": mask, "score": score, "scale": scale, "sinks": sinks, "positions": positions}
    return attend(q, k, v, way, **rule, dropout=dropout, backend=backend, spec=spec).out


def attend(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b s n d"],
    v: Float[AnyArray, "*b s n e"],
    way: Way,
    *,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    positions: Given = None,
    dropout: Dropout | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
    spec: jax.P | None = None,
) -> Attended:
    """`jaxattn.attend` to a sequence that is shared out over devices: the same results, of the same
    options, and the same derivatives of any order.

    Inside `jax.shard_map`, where the axes of `way` are bound, q, k and v are what a device has.
    Else they are whole arrays, and this makes the `shard_map`; the mesh is that of `jax.set_mesh`
    or of q. Other axes of the mesh may share out the batch and the heads.

    What counts queries or keys by number, such as `Lengths`, `Map`, `Rows` and `TopKeys`, counts
    those of the whole sequence. Positions are those in the sequence, whatever the order of `way`;
    so are the starts of `positions`. An array with an axis of queries holds those of the device, or
    all; one with an axis of keys and none of queries likewise; one with both, such as a `Bias`, has
    all keys. Arrays of all tokens are in the order in which they lie on the devices.

    Args:
      way: how the devices work together: `Ring`, `AllToAll` or `Product`.
      backend: what computes each part.
      spec: how whole arrays are sharded, of q [*b t h d]; by default as its type or its sharding
        says, else along the sequence alone.
      The rest as in `jaxattn.attend`.
    Returns:
      out, lse and what is observed; that of queries and keys sharded as they are, that of heads
      whole on every device of the way's axes.
    Raises:
      ValueError: also, the sequence or the heads cannot be shared out; no mesh, or no such axis.
    """
    q, k, v = (as_array(x, name) for name, x in (("q", q), ("k", k), ("v", v)))
    rule = mask, score, scale, sinks, dropout, positions
    bound = _is_bound(way)
    if bound:
        axes = Axes(way, jax.lax.axis_size)
        return attend_here(axes, (q, k, v), rule, observe, backend)
    return attend_whole(way, (q, k, v), rule, observe, backend, spec)


def _is_bound(way: Any) -> bool:
    """Whether this is inside a `jax.shard_map` over the axes of the way.

    Raises:
      ValueError: over some of them only.
    """
    names, bound = Axes(way, lambda _: 1).names, []
    for name in names:
        try:
            jax.lax.axis_size(name)
        except NameError:
            continue
        bound.append(name)
    if bound and len(bound) < len(names):
        raise ValueError(
            f"{way!r} needs all of its axes inside jax.shard_map, got {bound} of {list(names)}; "
            f"make them all manual there"
        )
    return bool(bound)

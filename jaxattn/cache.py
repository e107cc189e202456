"""A key/value cache for decoding: a value that is appended to and attended over.

    cache = jaxattn.cache.empty((b,), capacity=8192, kv_heads=8, features=64)
    attended, cache = jaxattn.cache.attend(q, k, v, cache)  # of the new tokens, one or many

Prefill, chunks and single steps are the same call with more or fewer tokens. The cost follows the
tokens that are held, not the capacity. Donate the cache to `jax.jit`, or carry it in a scan, and it
is updated in place.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer, Real

from jaxattn._axes import AnyArray, AnyInteger, AnyNumber, Attended, Index, count_to
from jaxattn._batched import as_indices, uncut
from jaxattn._content import as_array, as_int, is_whole, show
from jaxattn._lowering import Target, lowered
from jaxattn._mask import EVERYTHING, Mask
from jaxattn._observation import Observation
from jaxattn._problem import check
from jaxattn._solve import Scoring, solve
from jaxattn.backends.protocol import Backend
from jaxattn.backends.select import AUTO, check_backend
from jaxattn.masks import Causal, Lengths, Window
from jaxattn.positions import FARTHEST, BoundPositions
from jaxattn.sharded.decode import over_keys, whole_of


def _rebuilt(window: Any, arrays: Any) -> Any:
    return Cache(*arrays, *window)


@partial(
    jax.export.register_pytree_node_serialization,
    serialized_name="jaxattn.cache.Cache",
    serialize_auxdata=lambda window: json.dumps(list(window)).encode(),
    deserialize_auxdata=lambda window: tuple(json.loads(bytes(window))),
    from_children=_rebuilt,  # pyright: ignore[reportArgumentType] - of names of arguments
)
@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "length"], meta_fields=["window"])
@dataclass(frozen=True)
class Cache:
    """The keys and values of the tokens so far. Make one with `empty`.

    length: how many tokens each sequence has had.
    window: None, and token p is in slot p; or a ring for queries that see the last `window` tokens,
      themselves among them, and token p is in slot p mod s until another takes its place.
    """

    k: Float[Array, "*b s n d"]
    v: Float[Array, "*b s n e"]
    length: Int[Array, "*b"]
    window: int | None = None

    @property
    def capacity(self) -> int:
        return self.k.shape[-3]

    def fits(self, t: int) -> bool:
        """Whether t more tokens take the place of none that their queries see."""
        return self._fits(t, self.capacity)

    def _fits(self, t: int, capacity: int) -> bool:
        return self.window is None or t <= capacity - (self.window - 1)

    def keys_seen(self, t: int) -> int:
        """How many keys `attend` of t new tokens meets, empty slots among them."""
        return self.capacity if self.fits(t) else self.capacity + t

    def positions(self, t: int) -> Int[Array, "*b t"]:
        """The positions of the next t tokens, as rotary embeddings need them."""
        return self.length[..., None] + count_to(t)

    def slots(self) -> Int[Array, "*b s"]:
        """The position of the token in each slot; -1 for none."""
        return self._slots(Slots(self.capacity))

    def _slots(self, slots: "Slots") -> Int[Array, "*b s"]:
        slot, length = slots.first + count_to(self.capacity), self.length[..., None]
        if self.window is None:
            return jnp.where(slot < length, slot, -1)
        last = length - 1 - (length - 1 - slot) % slots.count
        return jnp.where((last >= 0) & (length > 0), last, -1)


class Slots(NamedTuple):
    """The slots of a cache: of all devices, and the first of this one."""

    count: int
    first: Index = 0

    @staticmethod
    def of(cache: Cache, axis: str | None) -> "Slots":
        if axis is None:
            return Slots(cache.capacity)
        me = jax.lax.axis_index(axis)
        return Slots(cache.capacity * jax.lax.axis_size(axis), me * cache.capacity)


def empty(
    batch: tuple[int, ...],
    capacity: int,
    kv_heads: int,
    features: int,
    value_features: int | None = None,
    dtype: Any = jnp.float32,
    window: int | None = None,
) -> Cache:
    """A cache of no tokens.

    Args:
      batch: its batch axes, () for none.
      capacity: how many tokens it holds. With a window of w, chunks of up to capacity - w + 1
        tokens are attended where they lie; longer ones take a copy.
      value_features: as many as `features` if not given.
      window: how many tokens a query sees, itself among them; None for all.
    Raises:
      ValueError: sizes below 1 or that are no whole numbers, or a window that does not fit.
      TypeError: batch is not a tuple; a dtype that is not floating.
    """
    if not isinstance(batch, tuple | list):
        raise TypeError(
            f"batch is the sizes of the batch axes, a tuple, got {batch!r}; pass (b,) for one axis "
            f"and () for none"
        )
    batch = tuple(_size("batch", size, 0) for size in batch)
    capacity, kv_heads = _size("capacity", capacity), _size("kv_heads", kv_heads)
    features = _size("features", features)
    width = features if value_features is None else _size("value_features", value_features)
    window = as_int(window)
    if window is not None and not (is_whole(window) and 1 <= window <= capacity):
        raise ValueError(
            f"a window is from 1 to the capacity of the ring, {capacity}, got {window!r}; make the "
            f"capacity at least the window, or the window None to see all tokens"
        )
    try:
        wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 16
    except TypeError:  # not the name of a dtype
        wide = False
    if not wide:
        raise TypeError(
            f"a cache holds floating point numbers, float16 or wider, got dtype={dtype!r}; pass "
            f"jnp.bfloat16, say"
        )
    shape = (*batch, capacity, kv_heads)
    k, v = jnp.zeros((*shape, features), dtype), jnp.zeros((*shape, width), dtype)
    return Cache(k, v, jnp.zeros(batch, jnp.int32), window)


def _size(name: str, size: Any, least: int = 1) -> int:
    size = as_int(size)
    if not is_whole(size) or size < least:
        raise ValueError(
            f"sizes of a cache are whole numbers, at least {least}, got {name}={size!r}; convert "
            f"it: int(...)"
        )
    return size


def append(
    cache: Cache,
    k: Float[AnyArray, "*b t n d"],
    v: Float[AnyArray, "*b t n e"],
    count: Integer[AnyInteger, "*#b"] | None = None,
    *,
    axis: str | None = None,
) -> Cache:
    """The cache with the keys and values of t more tokens.

    axis: of a mesh, inside `jax.shard_map`, over which slots are shared out; see `attend`.
    count: how many of the t are tokens, from the first on; the rest is padding and is not kept.
    Raises:
      ValueError: shapes that do not fit; a cache without a window that would hold more tokens than
        its capacity. While tracing that cannot be told: the tokens beyond it are not kept, the
        length counts them, and `attend` gives NaN for them.
    """
    k, v = as_array(k, "k"), as_array(v, "v")
    count = _check(cache, k, v, count)
    t, slots = k.shape[-3], Slots.of(cache, axis)
    at = cache.positions(t)
    index = count_to(t)
    keep = index < count[..., None]
    if cache.window is not None:
        keep &= index >= count[..., None] - slots.count  # of a chunk beyond the ring, the last
        at %= slots.count
    at = at - slots.first
    keep &= (at >= 0) & (at < cache.capacity)
    at = jnp.where(keep, at, cache.capacity + index)  # beyond the end: dropped
    return replace(
        cache, k=_put(cache.k, k, at), v=_put(cache.v, v, at), length=cache.length + count
    )


def attend(
    q: Float[AnyArray, "*b t h d"],
    k: Float[AnyArray, "*b t n d"],
    v: Float[AnyArray, "*b t n e"],
    cache: Cache,
    *,
    count: Integer[AnyInteger, "*#b"] | None = None,
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    scale: Real[AnyNumber, ""] | None = None,
    sinks: Float[AnyArray, " h"] | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
    axis: str | None = None,
) -> tuple[Attended, Cache]:
    """Appends t tokens and attends from them, causally, to all that the cache holds.

    Args:
      q, k, v: of the new tokens, at positions `cache.positions(t)`.
      count: as in `append`; the queries of padding see nothing and give 0.
      mask: what is hidden besides. What goes by positions, in it, in `score` and in `observe`,
        means what it does without a cache, also in a ring: `Window(9)`, `ALiBi()`, `Distance()`,
        `at.q` and `at.k` of a function. Arrays count the new tokens from 0, and keys by slots.
      score, scale, sinks, observe, backend: as in `jaxattn.attend`.
      axis: of a mesh, inside `jax.shard_map` over it: the cache has the device's slots, contiguous
        ones of those of all devices, and all else is the same on every device; so are the results,
        which `jaxattn.sharded.decode` merges. A device keeps the tokens whose slots it has. A ring
        takes no chunk that would need a copy.
    Returns:
      What `jaxattn.attend` returns, and the cache with the tokens. Beyond the capacity of a cache
      without a window out and lse are NaN.
    Raises:
      ValueError, TypeError: as `append` and `jaxattn.attend`.
    """
    q, k, v = (as_array(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
    _check(cache, k, v, count)
    if q.ndim < 3:
        raise ValueError(f"q has axes [*b t h d], at least 3, got shape {q.shape}; reshape it")
    t, before = q.shape[-3], cache.length
    if t != k.shape[-3]:
        raise ValueError(
            f"each new token has a query, a key and a value, got q {q.shape} and k {k.shape}; the "
            f"axes are q [*b t h d], k [*b t n d]"
        )
    after, every = append(cache, k, v, count, axis=axis), Slots.of(cache, axis)
    ragged = EVERYTHING if count is None else Lengths(q=count)
    keys, values, positions = after.k, after.v, BoundPositions(before, 0)
    if cache.window is not None:
        at, slots = cache.positions(t), after._slots(every)
        if not cache._fits(t, every.count):
            # The first queries need keys that the last tokens take the place of.
            if axis is not None:
                raise ValueError(
                    f"a ring of {every.count} slots over an axis takes chunks of up to "
                    f"{every.count - cache.window + 1} tokens, got {t}; append them in several"
                )
            join = lambda x, y: jnp.concatenate([x, y.astype(x.dtype)], axis=-3)
            keys, values = join(cache.k, k), join(cache.v, v)
            slots = jnp.concatenate([cache.slots(), at], axis=-1)
        slots = jnp.where(slots < 0, FARTHEST, slots)  # beyond every query
        positions = BoundPositions(0, 0, at, slots)
    seen = Causal() if cache.window is None else Window(cache.window - 1)
    # Tiles are read in the dtype of the logits, so a cache of another dtype is not converted whole.
    rule = seen & ragged & mask, score, scale, sinks, None, positions
    if axis is None:
        got = solve(*check(q, keys, values, *rule, one_dtype=False), observe, backend)
    else:
        whole = whole_of(axis, t, keys.shape[-3])
        checked = check(q, keys, values, *rule, one_dtype=False, whole=whole)
        got = over_keys(axis, *checked, observe, check_backend(backend))
    if cache.window is None:
        taken = (after.length - before)[..., None]
        lost = ((cache.positions(t) >= every.count) & (count_to(t) < taken))[..., None]
        out = jnp.where(lost[..., None], jnp.nan, got.out)
        got = got._replace(out=out, lse=jnp.where(lost, jnp.nan, got.lse))
    return got, after


def _check(cache: Cache, k: Any, v: Any, count: Any) -> Array:
    """How many of the tokens each sequence gets."""
    if not isinstance(cache, Cache):
        raise TypeError(
            f"the cache comes from empty(...), and from append and attend after that, got "
            f"{show(cache)}; the arguments are attend(q, k, v, cache) and append(cache, k, v)"
        )
    for name, new, old in (("k", k, cache.k), ("v", v, cache.v)):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            raise TypeError(f"{name} is floating point, got {show(new)}; cast it first")
        if new.shape[:-3] != old.shape[:-3] or new.shape[-2:] != old.shape[-2:]:
            raise ValueError(
                f"{name} of new tokens has the batch, heads and features of the cache's "
                f"{old.shape}, got {new.shape}; the axes are [*b t n d]: make the cache for these "
                f"with empty(...), or reshape"
            )
    if k.shape[-3] != v.shape[-3]:
        raise ValueError(
            f"each new token has a key and a value, got k {k.shape} and v {v.shape}; the axes are "
            f"[*b t n d]"
        )
    t, batch = k.shape[-3], cache.length.shape
    count = uncut(t if count is None else count, "count")
    lead = (1,) * (len(batch) - count.ndim) + count.shape
    if (
        not jnp.issubdtype(count.dtype, jnp.integer)
        or len(lead) > len(batch)
        or any(a not in (1, b) for a, b in zip(lead, batch, strict=True))
    ):
        raise ValueError(
            f"count is a number of tokens for each sequence, integers [*b] with *b={batch}, got "
            f"{show(count)}"
        )
    count = jnp.broadcast_to(as_indices(count, 0, t), batch)
    total = cache.length + count
    known = not isinstance(total, Tracer) and cache.window is None and math.prod(batch)
    if known and (most := int(total.max())) > cache.capacity:
        raise ValueError(
            f"a cache of capacity {cache.capacity} cannot hold {most} tokens; make it larger with "
            f"empty(capacity=...), or a ring with empty(window=...)"
        )
    return count


def _put(old: Array, new: Array, at: Int[Array, "*b t"]) -> Array:
    """`old` [*b s n d] with `new` [*b t n d] in the slots `at`; beyond the end it is dropped."""
    lead = math.prod(at.shape[:-1])
    flat, slots = old.reshape(lead, *old.shape[-3:]), at.reshape(lead, -1)
    new = new.reshape(lead, *new.shape[-3:]).astype(old.dtype)
    return lowered(_scatter, flat, new, slots, like=flat).reshape(old.shape)


def _scatter(target: Target, flat: Array, new: Array, slots: Array) -> Array:
    lead = count_to(flat.shape[0])[:, None]
    put = lambda x, new: x.at[lead, slots].set(new, mode="drop", unique_indices=True)
    if target.platform == "cpu" and flat.dtype == jnp.bfloat16 and not target.order:
        # XLA for CPUs has no scatter of bfloat16: it would convert the cache there and back.
        bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16)
        return jax.lax.bitcast_convert_type(put(bits(flat), bits(new)), flat.dtype)
    return put(flat, new)

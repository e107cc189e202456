"""`MultiHeadAttention`: Flax's projections around `jaxattn.attend`."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxattn import cache as kv
from jaxattn._axes import AnyArray, AnyInteger
from jaxattn._content import is_array
from jaxattn._mask import EVERYTHING, Mask
from jaxattn._score import items_of
from jaxattn._value import show as _show
from jaxattn.attend import Scoring, attend
from jaxattn.backends.protocol import Backend
from jaxattn.backends.select import AUTO
from jaxattn.dropout import Dropout, check_rate, is_no_rate
from jaxattn.nn.function import AttentionFn, as_flax_counts, as_mask, attention_fn
from jaxattn.positions import Given, Positions
from jaxattn.rope import Rope, apply_rope

INSTEAD = (
    "call decode(inputs, cache) with a cache as empty_cache() makes it, or use "
    "nnx.MultiHeadAttention with attention_fn=jaxattn.nn.attention_fn() for Flax's cache"
)


class MultiHeadAttention(nnx.MultiHeadAttention):
    """Multi-head attention: Flax's projections around `jaxattn.attend`.

    Parameters have the names and shapes of `nnx.MultiHeadAttention`, so its checkpoints load.
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        mask: Mask = EVERYTHING,
        score: Scoring | None = None,
        scale: float | None = None,
        rope: Rope | None = None,
        sinks: bool = False,
        sinks_metadata: Mapping[str, Any] = MappingProxyType({}),
        backend: Backend = AUTO,
        rngs: nnx.Rngs,
        **flax: Any,
    ) -> None:
        """
        Args:
          num_heads to in_kv_features: as in `nnx.MultiHeadAttention`.
          mask, score, scale, backend: as in `jaxattn.attend`, of every call. Arrays in them are
            constants; learnt ones go into the call.
          rope: turns queries and keys by their positions.
          sinks: whether each head has a learnt sink, which starts at 0. sinks_metadata: of that
            parameter, as Flax has `kernel_metadata`.
          flax: what else `nnx.MultiHeadAttention` takes: dtype, param_dtype, use_bias,
            normalize_qk, dropout_rate, deterministic, initializers; `precision` is that of the
            projections; sharding by `kernel_metadata` and its like, as
            {"out_sharding": (None, "m", None)} for heads over the axis m of a mesh.
        """
        if "attention_fn" in flax or flax.pop("decode", None):
            raise TypeError(f"MultiHeadAttention has its own attention and cache; {INSTEAD}")
        check_rate(flax.get("dropout_rate", 0.0))
        if not isinstance(rope, Rope | None):
            raise TypeError(f"rope is a Rope or None, got {rope!r}; pass Rope(rotary_dim)")
        if not isinstance(sinks, bool):
            raise TypeError(
                f"sinks is True or False, whether heads have learnt ones, got {_show(sinks)}; the "
                f"values of these are the module's sinks[...]"
            )
        own = attention_fn(mask, score, scale=scale, backend=backend)
        super().__init__(
            num_heads,
            in_features,
            qkv_features,
            out_features,
            num_kv_heads,
            in_kv_features,
            attention_fn=own,
            decode=False,
            rngs=rngs,
            **flax,
        )
        del self.decode  # Flax's flag; here a method
        self.rope = rope
        at_zero = lambda: nnx.Param(jnp.zeros(num_heads, self.param_dtype), **sinks_metadata)
        self.sinks = nnx.data(at_zero() if sinks else None)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs_q: Float[AnyArray, "*b t in"],
        inputs_k: Float[AnyArray, "*b s in_kv"] | None = None,
        inputs_v: Float[AnyArray, "*b s in_kv"] | None = None,
        *,
        mask: Mask | ArrayLike | None = None,
        score: Scoring | None = None,
        positions: Integer[AnyArray, "*#b #t"] | Given = None,
        length: Integer[AnyInteger, "*#b"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        sow_weights: bool = False,
        is_causal: bool = False,
        out_sharding: Any = None,
        qkv_sharding: Any = None,
    ) -> Float[Array, "*b t out"]:
        """The attended inputs.

        Args:
          inputs_q, inputs_k, inputs_v: keys come from the queries' inputs if not given, values from
            the keys'.
          mask: hides pairs besides the module's: a mask of jaxattn's, or an array as Flax has it.
          score: comes after the module's.
          positions: of the inputs, for `rope` and for what goes by positions in masks and scores;
            from 0 on if not given, which is faster. For keys from other inputs, as in
            `jaxattn.attend`.
          length: of the whole sequence, for scalings of `rope` that depend on it; t if not given.
          deterministic, rngs, sow_weights, is_causal, out_sharding, qkv_sharding: as in
            `nnx.MultiHeadAttention`.
        Raises:
          ValueError: inputs of the wrong width; rope with keys of their own; positions of the wrong
            kind for rope, or without the length that its scaling needs; Flax's decode mode.
        """
        if inputs_k is None and inputs_v is not None:
            raise ValueError("inputs_v needs inputs_k, got only inputs_v; pass both, or inputs_k")
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        crossed = inputs_k is not inputs_q or inputs_v is not inputs_q
        if crossed and self.rope is not None:
            raise ValueError(
                "rope is for self-attention, got inputs of their own for keys or values; attend "
                "without it"
            )
        of_inputs = is_array(positions)
        if positions is not None and (crossed if of_inputs else self.rope is not None):
            raise ValueError(
                f"positions are an array [*b t] for rope, and Positions(q=..., k=...) or END for "
                f"keys from other inputs, got {_show(positions)}; pass the other"
            )
        q, k, v = self._project(inputs_q, inputs_k, inputs_v, qkv_sharding)
        turns: Any = positions
        placed: Any = positions
        if of_inputs:
            each = jnp.broadcast_to(jnp.asarray(positions), q.shape[:-2])
            placed = Positions(each, each)
        else:
            t = q.shape[-3]
            turns, length = jnp.arange(t), t if length is None else length
        q, k = self._turn(q, k, turns, length)
        causal, placed = as_flax_counts(is_causal, placed)
        rule, options = self._rule(causal, mask, score)
        observe, show = self._own.look(self if sow_weights else None, q, k.shape[-3])
        options |= {"dropout": self._dropout(deterministic, rngs), "observe": observe}
        got = attend(q, k, v, mask=rule, positions=placed, **options)
        show(got.observed)
        return self.out(got.out, out_sharding=out_sharding)

    def decode(
        self,
        inputs: Float[AnyArray, "*b t in"],
        cache: kv.Cache,
        *,
        count: Integer[AnyInteger, "*#b"] | None = None,
        mask: Mask | ArrayLike | None = None,
        score: Scoring | None = None,
        length: Integer[AnyInteger, "*#b"] | None = None,
        sow_weights: bool = False,
    ) -> tuple[Float[Array, "*b t out"], kv.Cache]:
        """(the inputs, attended causally to themselves and the cache; the cache with them).

        The tokens come after those of the cache. There is no dropout.

        Args:
          cache: what came before, as `empty_cache` makes it. count: as in `jaxattn.cache.attend`.
          mask: see `jaxattn.cache.attend`. score, length, sow_weights: as in a call.
        Raises:
          ValueError: inputs of the wrong width; no length where the scaling of rope needs it.
          TypeError: the cache is none.
        """
        if not isinstance(cache, kv.Cache):
            raise TypeError(f"cache comes from empty_cache(), got {_show(cache)}")
        q, k, v = self._project(inputs, inputs, inputs, None)
        q, k = self._turn(q, k, cache.positions(q.shape[-3]), length)
        rule, options = self._rule(EVERYTHING, mask, score)
        keys = cache.keys_seen(q.shape[-3])
        observe, show = self._own.look(self if sow_weights else None, q, keys)
        got, cache = kv.attend(q, k, v, cache, count=count, mask=rule, observe=observe, **options)
        show(got.observed)
        return self.out(got.out), cache

    def _project(
        self, inputs_q: Any, inputs_k: Any, inputs_v: Any, sharding: Any
    ) -> tuple[Float[Array, "*b t h d"], Float[Array, "*b s n d"], Float[Array, "*b s n d"]]:
        if "decode" in vars(self):
            raise ValueError(
                f"MultiHeadAttention has a cache of its own, got Flax's decode mode; {INSTEAD}"
            )
        if wrong := [x for x in (inputs_q, inputs_k, inputs_v) if not is_array(x)]:
            raise TypeError(f"inputs are arrays [*b t in_features], got {wrong[0]!r}")
        widths = {"in_features": (inputs_q,), "in_kv_features": (inputs_k, inputs_v)}
        for name, inputs in widths.items():
            width = getattr(self, name)
            if wrong := [x.shape for x in inputs if x.shape[-1] != width]:
                raise ValueError(
                    f"inputs have {width} features ({name}), got {wrong[0]}; make the module with "
                    f"{name}={wrong[0][-1]}, or project them first"
                )
        q = self.query(jnp.asarray(inputs_q), out_sharding=sharding)
        k = self.key(jnp.asarray(inputs_k), out_sharding=sharding)
        v = self.value(jnp.asarray(inputs_v), out_sharding=sharding)
        if self.query_ln is not None and self.key_ln is not None:
            q, k = self.query_ln(q), self.key_ln(k)
        return promote_dtype((q, k, v), dtype=self.dtype)

    def _turn(self, q: Any, k: Any, positions: Any, length: Any) -> tuple[Any, Any]:
        """q and k with rotary embeddings, if the module has them."""
        if self.rope is None:
            return q, k
        return apply_rope(q, positions, self.rope, length), apply_rope(
            k, positions, self.rope, length
        )

    def _rule(self, causal: Mask, mask: Any, score: Any) -> tuple[Mask, dict[str, Any]]:
        """(mask, the other options) of `attend`: the module's own and then those of a call."""
        own = self._own
        rule = own.mask & causal
        rule = rule if mask is None else rule & as_mask(mask)
        return rule, own.options | {"score": items_of(own.score) + items_of(score)}

    @property
    def _own(self) -> AttentionFn:
        own: Any = self.attention_fn
        return own if self.sinks is None else replace(own, sinks=self.sinks[...])

    def empty_cache(
        self,
        batch: tuple[int, ...],
        capacity: int,
        dtype: Any = None,
        window: int | None = None,
    ) -> kv.Cache:
        """A cache of no tokens for this module, as `jaxattn.cache.empty`.

        dtype: that of the module if not given.
        """
        dtype = dtype or self.dtype or self.param_dtype
        return kv.empty(
            batch, capacity, self.num_kv_heads, self.head_dim, dtype=dtype, window=window
        )

    def init_cache(self, input_shape: Any, dtype: Any = jnp.float32) -> None:
        """Not of this module: raises ValueError."""
        raise ValueError(f"MultiHeadAttention has a cache of its own; {INSTEAD}")

    def _dropout(self, deterministic: bool | None, rngs: Any) -> Dropout | None:
        check_rate(self.dropout_rate)
        if is_no_rate(self.dropout_rate):
            return None
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic is None:
            raise ValueError(
                "a module with dropout has to be told whether to drop, got deterministic=None; "
                "pass it to the call or the module, or use model.train() and model.eval()"
            )
        if deterministic:
            return None
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError("dropout needs rngs, got none; pass rngs=nnx.Rngs(dropout=0)")
        key = (rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs)()
        return Dropout(self.dropout_rate, key, shared=self.broadcast_dropout)

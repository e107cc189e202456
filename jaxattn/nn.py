"""Attention in Flax models: a module, a function for Flax's own modules, and a way to watch them.

    nnx.MultiHeadAttention(..., attention_fn=jaxattn.nn.attention_fn())  # any existing model
    out, seen = jaxattn.nn.watch(model, observe={"entropy": Entropy()})(x)

Needs Flax: `pip install "jaxattn[flax]"`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache as memoize
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxattn import cache as kv
from jaxattn._axes import Attended
from jaxattn._mask import EVERYTHING, Mask, check_mask
from jaxattn._observation import Observation
from jaxattn._value import show
from jaxattn.attend import Scoring, attend
from jaxattn.backends.auto import AUTO, Backend
from jaxattn.dropout import Dropout
from jaxattn.masks import Causal, Dense
from jaxattn.observe import SUM, Map
from jaxattn.rope import Rope, apply_rope
from jaxattn.scores import Bias


class Observed(nnx.Intermediate):
    """What was seen in an attention module: a tuple of dicts by name, one for each call."""


@dataclass(frozen=True)
class AttentionFn:
    """Made by `attention_fn`. Equal to another with the same settings."""

    mask: Mask
    score: Scoring | None
    sinks: Any
    scale: Any
    observe: Mapping[str, Observation] | None
    backend: Backend

    def __hash__(self) -> int:
        """By what can be hashed; arrays and functions count as themselves."""
        return hash((type(self.mask), id(self.score), self.backend))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttentionFn) or self.backend != other.backend:
            return False
        settings = lambda x: (x.mask, x.score, x.sinks, x.scale, x.observe)
        return all(_same(a, b) for a, b in zip(settings(self), settings(other), strict=True))

    def __call__(
        self,
        query: Float[Array, "*b t h d"],
        key: Float[Array, "*b s n d"],
        value: Float[Array, "*b s n e"],
        bias: Array | None = None,
        mask: Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        promote_dtype: Any = None,
        is_causal: bool = False,
        force_fp32_for_softmax: bool = False,
    ) -> Float[Array, "*b t h e"]:
        """As Flax's `dot_product_attention`, whose arguments these are."""
        del precision, force_fp32_for_softmax  # never less than these ask for
        q, k, v = _promote(promote_dtype, dtype, query, key, value)
        rule = self.mask & (Causal(0) if is_causal else EVERYTHING)
        if mask is not None:
            rule &= as_mask(mask)
        score = _scores(self.score)
        if bias is not None:
            score += (Bias(jnp.asarray(bias)),)
        dropped = None
        if dropout_rate > 0 and not deterministic:
            if dropout_rng is None:
                raise ValueError(
                    "dropout needs random bits, got dropout_rng=None; pass a key of jax.random, or "
                    "deterministic=True for none"
                )
            dropped = Dropout(dropout_rate, dropout_rng, shared=broadcast_dropout)
        return self.run(q, k, v, rule, score, dropped, module)

    def run(
        self,
        q: Float[Array, "*b t h d"],
        k: Float[Array, "*b s n d"],
        v: Float[Array, "*b s n e"],
        mask: Mask,
        score: tuple[Any, ...],
        dropout: Dropout | None,
        module: Any,
        call: Callable[..., Any] = attend,
    ) -> Any:
        """`call` with these options, shown where someone looks; out, and what else `call` returns.

        module: into which weights or observations are to be sown, if any.
        """
        sown = _watched_module.get() if module is None else module
        observe = self.observe if sown is not None else None
        if module is not None and observe is None:
            observe = {WEIGHTS: Map(max(q.shape[-3], k.shape[-3]), SUM)}
        options: dict[str, Any] = {"sinks": self.sinks, "scale": self.scale}
        if dropout is not None:
            options["dropout"] = dropout
        got = call(
            q, k, v, mask=mask, score=score, observe=observe, backend=self.backend, **options
        )
        attended, rest = (got, ()) if isinstance(got, Attended) else (got[0], got[1:])
        if observe is not None:
            _sow(sown, attended.observed, q.dtype)
        return (attended.out, *rest) if rest else attended.out


def attention_fn(
    mask: Mask = EVERYTHING,
    score: Scoring | None = None,
    *,
    sinks: Float[Array, " h"] | None = None,
    scale: float | Float[Array, ""] | None = None,
    observe: Mapping[str, Observation] | None = None,
    backend: Backend = AUTO,
) -> AttentionFn:
    """What `attention_fn=` of `nnx.MultiHeadAttention` and `linen.MultiHeadDotProductAttention`
    takes: `jaxattn.attend`, in linear memory, with these options.

    It honours what the modules pass. Where it differs from Flax's own, by intention:
      A query that may see no key gets 0; there, the mean of all values.
      Dropout has the same rates but drops other pairs: those of `jaxattn.Dropout`, shared between
        heads and batch elements with `broadcast_dropout`.
      Products are in the inputs' own precision and the softmax at least in float32, whatever
        `precision` says; weights are not rounded to bfloat16 before they meet values.

    Args:
      mask: hides pairs besides the mask that the module passes.
      score: changes logits; a bias that the module passes is added after it.
      sinks, scale, backend: as in `jaxattn.attend`.
      observe: what `sow_weights=True` shows, under the name "observed"; without it that shows all
        weights, as Flax does, in memory that grows with t · s.
    """
    check_mask(mask)
    return AttentionFn(mask, score, sinks, scale, observe, backend)


WEIGHTS = "attention_weights"
_watched_module: ContextVar[Any] = ContextVar("watched_module", default=None)


def as_mask(mask: Any) -> Mask:
    """A mask of jaxattn's, or one of Flax's: an array that broadcasts to [*b h t s], not 0 where a
    query may see a key."""
    if isinstance(mask, Mask):
        return mask
    array = jnp.asarray(mask)
    return Dense(array if array.dtype == bool else array != 0)


def _scores(score: Scoring | None) -> tuple[Any, ...]:
    if score is None:
        return ()
    return tuple(score) if isinstance(score, Sequence) else (score,)


def _promote(promote: Any, dtype: Any, *arrays: Array) -> Any:
    promote = promote_dtype if promote is None else promote
    return promote(arrays, dtype=dtype)


def _same(a: Any, b: Any) -> bool:
    """Whether two settings are the same, with arrays the same only if they are one."""
    if a is b:
        return True
    (left, structure), (right, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return (
        structure == other
        and type(a) is type(b)
        and all(
            x is y or (isinstance(x, float) and x == y) for x, y in zip(left, right, strict=True)
        )
    )


def _sow(module: Any, observed: dict[str, Any], dtype: Any) -> None:
    weights = observed.get(WEIGHTS)
    if isinstance(module, linen.Module):
        name, value = (
            ("observed", observed) if weights is None else (WEIGHTS, weights.astype(dtype))
        )
        module.sow("intermediates", name, value)
    elif weights is not None:
        module.sow(nnx.Intermediate, WEIGHTS, weights.astype(dtype))
    else:
        module.sow(Observed, "observed", observed)


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
        backend: Backend = AUTO,
        rngs: nnx.Rngs,
        **flax: Any,
    ) -> None:
        """
        Args:
          num_heads to in_kv_features: as in `nnx.MultiHeadAttention`.
          mask, score, scale, backend: as in `jaxattn.attend`, of every call.
          rope: turns queries and keys by their positions.
          sinks: whether each head has a learnt sink, which starts at 0.
          flax: what else `nnx.MultiHeadAttention` takes: dtype, param_dtype, use_bias,
            normalize_qk, dropout_rate, deterministic, initializers, sharding by `kernel_metadata`.
        """
        if wrong := {"attention_fn", "decode"} & set(flax):
            raise TypeError(
                f"MultiHeadAttention has its own attention and cache, got {', '.join(wrong)}; pass "
                f"cache= in the call, or use nnx.MultiHeadAttention with jaxattn.nn.attention_fn()"
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
        self.rope = rope
        logits = jnp.zeros(num_heads, self.param_dtype)
        self.sinks = nnx.data(nnx.Param(logits) if sinks else None)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs_q: Float[Array, "*b t m"],
        inputs_k: Float[Array, "*b s m"] | None = None,
        inputs_v: Float[Array, "*b s m"] | None = None,
        *,
        mask: Mask | Array | None = None,
        score: Scoring | None = None,
        positions: Array | None = None,
        cache: kv.Cache | None = None,
        count: Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        sow_weights: bool = False,
        is_causal: bool = False,
        out_sharding: Any = None,
        qkv_sharding: Any = None,
    ) -> Any:
        """The attended inputs, [*b t m]; with a cache (they, and the cache with the new tokens).

        Args:
          inputs_q, inputs_k, inputs_v: keys come from the queries' inputs if not given, values from
            the keys'.
          mask: hides pairs besides the module's: a mask of jaxattn's, or an array as Flax has it.
          score: comes after the module's.
          positions: of the queries and keys, integers [*b t], for `rope`; from 0 on, or after the
            tokens of the cache, if not given.
          cache: what came before; attention is causal. count: as in `jaxattn.cache.attend`.
          deterministic, rngs, sow_weights, is_causal, out_sharding, qkv_sharding: as in
            `nnx.MultiHeadAttention`.
        Raises:
          ValueError: inputs of the wrong width; rope, a cache or positions with keys of their own;
            dropout with a cache.
        """
        if inputs_k is None and inputs_v is not None:
            raise ValueError("inputs_v needs inputs_k, got only inputs_v; pass both, or inputs_k")
        crossed = inputs_k is not None
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        if inputs_q.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs_q has {self.in_features} features (in_features), got {inputs_q.shape}"
            )
        if crossed and (self.rope is not None or cache is not None):
            raise ValueError(
                "rope and a cache are for self-attention, got inputs_k; attend without them"
            )
        q = self.query(inputs_q, out_sharding=qkv_sharding)
        k = self.key(inputs_k, out_sharding=qkv_sharding)
        v = self.value(inputs_v, out_sharding=qkv_sharding)
        if self.query_ln is not None and self.key_ln is not None:
            q, k = self.query_ln(q), self.key_ln(k)
        if self.rope is not None:
            t = q.shape[-3]
            if positions is None:
                positions = jnp.arange(t) if cache is None else cache.positions(t)
            length = t if cache is None else cache.length + t
            q, k = (apply_rope(x, positions, self.rope, length) for x in (q, k))

        own: Any = self.attention_fn
        if self.sinks is not None:
            own = replace(own, sinks=self.sinks[...])
        rule = own.mask & (Causal(0) if is_causal and cache is None else EVERYTHING)
        rule = rule if mask is None else rule & as_mask(mask)
        every = _scores(own.score) + _scores(score)
        dropout, module = self._dropout(deterministic, rngs), self if sow_weights else None
        if cache is None:
            x = own.run(q, k, v, rule, every, dropout, module)
            return self.out(x, out_sharding=out_sharding)
        if dropout is not None:
            raise ValueError("there is no dropout with a cache; pass deterministic=True")
        call = partial(kv.attend, cache=cache, count=count)
        x, cache = own.run(q, k, v, rule, every, None, module, call)
        return self.out(x, out_sharding=out_sharding), cache

    def empty_cache(
        self,
        batch: tuple[int, ...],
        capacity: int,
        dtype: Any = jnp.float32,
        window: int | None = None,
    ) -> kv.Cache:
        """A cache of no tokens for this module, as `jaxattn.cache.empty`."""
        return kv.empty(
            batch, capacity, self.num_kv_heads, self.head_dim, dtype=dtype, window=window
        )

    def _dropout(self, deterministic: bool | None, rngs: Any) -> Dropout | None:
        if self.dropout_rate == 0:
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


def watch(
    model: Any, observe: Mapping[str, Observation]
) -> Callable[..., tuple[Any, dict[Any, Any]]]:
    """`model`, or a method of it, that also returns what was observed in every attention module.

        out, seen = watch(model, {"entropy": Entropy()})(x)
        seen["layers"][0]["attention"]["entropy"]  # [*b t h]

    The model is an NNX model with Flax's `nnx.MultiHeadAttention` or ours, unchanged before and
    after. Flax's own attention is replaced by jaxattn's for the call: the output is the same to
    rounding, in linear memory. A module that is called several times has a tuple of what was seen.

    Raises:
      ValueError: there is no attention module in it, or one has an attention function of its own.
    """
    root = getattr(model, "__self__", model)
    if not isinstance(root, nnx.Module):
        raise TypeError(f"watch takes an NNX model or a method of one, got {show(model)}")

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[Any, Any]]:
        with _watching(root, observe):
            out, state = nnx.capture(model, Observed)(*args, **kwargs)
        return out, _plain(state)

    return run


@contextmanager
def _watching(root: nnx.Module, observe: Mapping[str, Observation]) -> Iterator[None]:
    """With every attention module of `root` shown to `_watched_module` while it is called."""
    found = [m for _, m in nnx.iter_modules(root) if isinstance(m, nnx.MultiHeadAttention)]
    if not found:
        raise ValueError(
            f"watch needs a model with nnx.MultiHeadAttention in it, got {type(root).__name__}, "
            f"which has none; call jaxattn.attend(observe=...) in its own attention"
        )
    before = [(m, m.attention_fn, type(m)) for m in found]
    try:
        for m, fn, cls in before:
            m.attention_fn = replace(_own(fn), observe=dict(observe))
            object.__setattr__(m, "__class__", _watched(cls))  # past what NNX keeps of attributes
        yield
    finally:
        for m, fn, cls in before:
            object.__setattr__(m, "__class__", cls)
            m.attention_fn = fn
            if hasattr(m, "__captures__"):
                del m.__captures__


def _own(fn: Any) -> AttentionFn:
    if isinstance(fn, AttentionFn):
        return fn
    if fn is nnx.dot_product_attention:
        return attention_fn()
    raise ValueError(
        f"watch replaces Flax's dot_product_attention, got a module with attention_fn={fn!r}; give "
        f"it attention_fn=jaxattn.nn.attention_fn(mask=..., score=...) that does the same"
    )


@memoize
def _watched(cls: Any) -> Any:
    """`cls`, telling which module is called; a class of its own, so that `nnx.jit` sees it."""

    class Watched(cls):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            token = _watched_module.set(self)
            try:
                return super().__call__(*args, **kwargs)
            finally:
                _watched_module.reset(token)

    Watched.__name__ = Watched.__qualname__ = f"Watched{cls.__name__}"
    return Watched


def _plain(state: Any) -> dict[Any, Any]:
    """Nested dicts by path; in place of a tuple of one call, what was seen in it."""
    found: dict[Any, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        here = found
        for key in path[:-2]:
            here = here.setdefault(key, {})
        calls = variable.get_value()
        if len(path) > 1:
            here[path[-2]] = calls[0] if len(calls) == 1 else calls
        else:  # the model is the module itself
            found = calls[0] if len(calls) == 1 else {"": calls}
    return found

"""Self-attention of a checkpoint: its projections, and `jaxattn.attend` between them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxattn import cache as kv
from jaxattn._mask import EVERYTHING, Mask
from jaxattn._observation import Observation
from jaxattn._serial import serial_tuple
from jaxattn.attend import attend
from jaxattn.masks import Causal, Segments, Window
from jaxattn.models.layers import Linear, RMSNorm
from jaxattn.rope import Rope, rotate
from jaxattn.scores import Score

Observe = Mapping[str, Observation]
Turn = tuple[Float[Array, "... t f"], Float[Array, "... t f"]]
"""The cosine and sine of every token's rotary angles."""


@serial_tuple
class Steps(NamedTuple):
    """What goes into one layer's attention, and what comes out. All heads.

    residual: the hidden states that enter the layer. x: those that its projections read.
    q, k, v: after biases, norms and rotary embeddings, as the scores are made of them.
    mask, score, scale, sinks: what `jaxattn.attend(q, k, v, ...)` took with them.
    attended: its out, before W_o. out: after W_o, as it joins the residual (perhaps after a norm).
    """

    residual: Float[Array, "*b t m"]
    x: Float[Array, "*b t m"]
    q: Float[Array, "*b t h d"]
    k: Float[Array, "*b t n d"]
    v: Float[Array, "*b t n e"]
    mask: Mask
    score: tuple[Score, ...]
    scale: Any
    sinks: Float[Array, " h"] | None
    attended: Float[Array, "*b t h e"]
    out: Float[Array, "*b t m"]


class HeadWeights(NamedTuple):
    """The projections of one head: q = x w_q + b_q and so on. A bias that is not there is None."""

    w_q: Float[Array, "m d"]
    w_k: Float[Array, "m d"]
    w_v: Float[Array, "m e"]
    w_o: Float[Array, "e m"]
    b_q: Float[Array, " d"] | None
    b_k: Float[Array, " d"] | None
    b_v: Float[Array, " e"] | None


class Separate(nnx.Module):
    """Queries, keys and values by projections of their own."""

    def __init__(self, query: Linear, key: Linear, value: Linear) -> None:
        self.query, self.key, self.value = query, key, value

    def __call__(self, x: Float[Array, "*b t m"]) -> tuple[Array, Array, Array]:
        return self.query(x), self.key(x), self.value(x)

    def parts(self) -> tuple[Any, ...]:
        """(matrix [m out], bias) of queries, keys and values."""
        return tuple((x.matrix, _value(x.bias)) for x in (self.query, self.key, self.value))


class Fused(nnx.Module):
    """All by one projection: first all queries, or (by_head) first all of the first head."""

    def __init__(self, linear: Linear, heads: int, by_head: bool = False) -> None:
        self.linear, self.heads, self.by_head = linear, heads, by_head

    def __call__(self, x: Float[Array, "*b t m"]) -> tuple[Array, Array, Array]:
        return self._split(self.linear(x))

    def parts(self) -> tuple[Any, ...]:
        bias = _value(self.linear.bias)
        biases = (None,) * 3 if bias is None else self._split(bias)
        return tuple(zip(self._split(self.linear.matrix), biases, strict=True))

    def _split(self, x: Float[Array, "*b hd"]) -> tuple[Array, Array, Array]:
        if not self.by_head:
            q, k, v = jnp.split(x, 3, axis=-1)
            return q, k, v
        x = x.reshape(*x.shape[:-1], self.heads, 3, -1)
        q, k, v = (x[..., i, :].reshape(*x.shape[:-3], -1) for i in range(3))
        return q, k, v


class Attention(nnx.Module):
    """Multi-head self-attention.

    causal, window: a query sees the tokens before it; the last `window` of them, itself included.
    rope: turns queries and keys. score: what is done to the logits. sinks: a logit for each head.
    """

    def __init__(
        self,
        project: Separate | Fused,
        out: Linear,
        *,
        heads: int,
        kv_heads: int | None = None,
        causal: bool,
        window: int | None = None,
        rope: Rope | None = None,
        query_norm: RMSNorm | None = None,
        key_norm: RMSNorm | None = None,
        score: tuple[Score, ...] = (),
        scale: float | Array | None = None,
        sinks: nnx.Param | None = None,
    ) -> None:
        self.project, self.out = project, out
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.causal, self.window, self.rope = causal, window, rope
        self.query_norm, self.key_norm = nnx.data(query_norm), nnx.data(key_norm)
        self.score, self.scale = nnx.static(score), scale
        self.sinks = nnx.data(sinks)

    @property
    def mask(self) -> Mask:
        if not self.causal:
            return EVERYTHING
        return Causal() if self.window is None else Window(self.window - 1)

    def __call__(
        self, x: Float[Array, "*b t m"], turn: Turn | None, valid: Any, observe: Observe | None
    ) -> tuple[Float[Array, "*b t m"], dict[str, Any]]:
        """valid: booleans [*b t], which tokens are no padding; None for all."""
        got = attend(*self.qkv(x, turn), observe=observe, **self.options(valid))
        return self.join(got.out), got.observed

    def decode(
        self,
        x: Float[Array, "*b t m"],
        turn: Turn | None,
        cache: kv.Cache,
        count: Int[Array, "*b"] | None,
        observe: Observe | None,
    ) -> tuple[Float[Array, "*b t m"], dict[str, Any], kv.Cache]:
        """`__call__` of the tokens after those of the cache. count: as in `jaxattn.cache`."""
        q, k, v = self.qkv(x, turn)
        options = self.options(None)
        if cache.window is not None or self.window is None or cache.capacity <= self.window:
            del options["mask"]  # the cache sees to it
        got, cache = kv.attend(q, k, v, cache, count=count, observe=observe, **options)
        return self.join(got.out), got.observed, cache

    def qkv(self, x: Float[Array, "*b t m"], turn: Turn | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values as scores and results are made of them, [*b t h d]."""
        q, k, v = self.project(x)
        q = q.reshape(*q.shape[:-1], self.heads, -1)
        k, v = (y.reshape(*y.shape[:-1], self.kv_heads, -1) for y in (k, v))
        q = q if self.query_norm is None else self.query_norm(q)
        k = k if self.key_norm is None else self.key_norm(k)
        if self.rope is not None and turn is not None:
            q, k = (rotate(y, *turn, self.rope.layout) for y in (q, k))
        return q, k, v

    def options(self, valid: Bool[Array, "*b t"] | None) -> dict[str, Any]:
        """What `jaxattn.attend` takes with q, k and v."""
        mask = self.mask
        if valid is not None:
            mask = mask & Segments(jnp.where(valid, 0, -1))
        sinks = _value(self.sinks)
        scale = self.scale
        return {"mask": mask, "score": self.score or None, "scale": scale, "sinks": sinks}

    def join(self, attended: Float[Array, "*b t h e"]) -> Float[Array, "*b t m"]:
        """The heads side by side, times W_o."""
        return self.out(attended.reshape(*attended.shape[:-2], -1))

    def steps(
        self, residual: Array, x: Float[Array, "*b t m"], turn: Turn | None, valid: Any
    ) -> Steps:
        q, k, v = self.qkv(x, turn)
        options = self.options(valid)
        attended = attend(q, k, v, **options).out
        options["score"] = self.score
        return Steps(residual, x, q, k, v, **options, attended=attended, out=self.join(attended))

    def head(self, index: int) -> HeadWeights:
        """The projections of one query head, and of the key and value head that it reads."""
        if not 0 <= index < self.heads:
            raise ValueError(f"a head is from 0 to {self.heads - 1}, got {index}")
        group = index // (self.heads // self.kv_heads)
        at = (index, self.heads), (group, self.kv_heads), (group, self.kv_heads)
        cut = lambda x, i, n: None if x is None else x.reshape(*x.shape[:-1], n, -1)[..., i, :]
        parts: Any = [
            (cut(w, *which), cut(b, *which))
            for (w, b), which in zip(self.project.parts(), at, strict=True)
        ]
        w_o = self.out.matrix
        w_o = w_o.reshape(self.heads, -1, w_o.shape[-1])[index]
        (w_q, b_q), (w_k, b_k), (w_v, b_v) = parts
        return HeadWeights(w_q, w_k, w_v, w_o, b_q, b_k, b_v)


def _value(param: nnx.Param | None) -> Any:
    return None if param is None else param[...]

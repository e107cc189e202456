"""How each JAX library is asked for a workload. What a library lacks is said, not made up for."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja
from benchmarks.chance import Pattern
from benchmarks.masks import Causal, Segments, Window
from benchmarks.options import (
    ALiBi,
    Bias,
    DenseMask,
    Dropout,
    Nothing,
    RelativeBias,
    Sinks,
    SoftCap,
)
from benchmarks.workloads import Dtype, Workload

Arrays: TypeAlias = Mapping[str, jax.Array]
Attention: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, Workload, Arrays], jax.Array]


def jaxattn(q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays) -> jax.Array:
    mask: ja.Mask = ja.EVERYTHING
    match work.mask:
        case Causal():
            mask = ja.Causal()
        case Window(left):
            mask = ja.Causal() & ja.Window(left=left)
        case Segments():
            mask = ja.Segments(extra["ids"])
    match work.option:
        case Bias():
            return ja.attention(q, k, v, mask=mask, score=ja.Bias(extra["bias"]))
        case DenseMask():
            return ja.attention(q, k, v, mask=mask & ja.Dense(extra["seen"]))
        case ALiBi():
            return ja.attention(q, k, v, mask=mask, score=ja.ALiBi(extra["slopes"]))
        case SoftCap(cap):
            return ja.attention(q, k, v, mask=mask, score=ja.SoftCap(cap))
        case RelativeBias(_, most):
            score = ja.RelativeBias(extra["table"], max_distance=most)
            return ja.attention(q, k, v, mask=mask, score=score)
        case Sinks():
            return ja.attention(q, k, v, mask=mask, sinks=extra["sinks"])
        case Dropout():
            return ja.attention(q, k, v, mask=mask, dropout=_dropout(work, extra))
    return ja.attention(q, k, v, mask=mask)


def jaxattn_kept(work: Workload, extra: Arrays, rows: int) -> Pattern:
    """The weights it keeps, read off with q = k = 0 and unit vectors as values."""
    group = work.heads // work.kv_heads
    first = _read_off(work, extra, work.batch, work.heads, rows)
    return Pattern(first, _read_off(work, extra, 1, group, work.queries)[0])


def _read_off(work: Workload, extra: Arrays, b: int, h: int, rows: int) -> np.ndarray:
    """[b h rows s]."""
    s = work.keys
    v = jnp.broadcast_to(jnp.eye(s)[None, :, None], (b, s, 1, s))
    q, k = jnp.zeros((b, rows, h, 1)), jnp.zeros((b, s, 1, 1))
    out = jax.jit(lambda q, k, v: ja.attention(q, k, v, dropout=_dropout(work, extra)))(q, k, v)
    return np.asarray(out > 0).swapaxes(1, 2)


def _dropout(work: Workload, extra: Arrays) -> ja.Dropout:
    return ja.Dropout(work.option.rate, jax.random.wrap_key_data(extra["key"]))


def jax_nn(q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays) -> jax.Array:
    return _as_jax_nn(jax.nn.dot_product_attention, q, k, v, work, extra)


def compat(q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays) -> jax.Array:
    from jaxattn import compat as nn

    return _as_jax_nn(nn.dot_product_attention, q, k, v, work, extra)


def _as_jax_nn(call: Any, q, k, v, work: Workload, extra: Arrays) -> jax.Array:
    given: dict[str, Any] = {}
    match work.mask:
        case Causal():
            given["is_causal"] = True
        case Window(left):
            given["local_window_size"] = (left, 0)
        case Segments():
            given["mask"] = _same_segment(extra)
    if (seen := extra.get("seen")) is not None:
        given["mask"] = seen
    if (bias := _bias(work, extra)) is not None:
        given["bias"] = bias.astype(q.dtype)
    return call(q, k, v, **given)


def _same_segment(extra: Arrays) -> jax.Array:
    ids = extra["ids"]
    return (ids[:, None] == ids[None, :])[None, None]


def _bias(work: Workload, extra: Arrays) -> jax.Array | None:
    """[1 h t s], made inside the program where it is not an input; None for none."""
    ahead_ts = jnp.arange(work.keys)[None, :] - jnp.arange(work.queries)[:, None]
    match work.option:
        case Bias():
            return extra["bias"]
        case ALiBi():
            return -extra["slopes"][None, :, None, None] * jnp.abs(ahead_ts)
        case RelativeBias():
            distances = np.arange(1 - work.queries, work.keys)
            of_distance = extra["table"][work.option.bucket(distances)]
            return jnp.moveaxis(of_distance[ahead_ts + work.queries - 1], -1, 0)[None]
    return None


def jax_nn_cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays
) -> jax.Array:
    call = jax.nn.dot_product_attention
    match work.mask:
        case Causal():
            return call(q, k, v, is_causal=True, implementation="cudnn")
        case Window(left):  # its window looks ahead unless is_causal is given too
            window = (left, 0)
            return call(q, k, v, is_causal=True, local_window_size=window, implementation="cudnn")
    return call(q, k, v, implementation="cudnn")


def flax_nnx(q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays) -> jax.Array:
    given: dict[str, Any] = {}
    match work.mask:
        case Causal():
            given["is_causal"] = True
        case Window(left):  # it has no window of its own: a boolean mask
            ahead_ts = jnp.arange(k.shape[1])[None, :] - jnp.arange(q.shape[1])[:, None]
            given["mask"] = ((-left <= ahead_ts) & (ahead_ts <= 0))[None, None]
        case Segments():
            given["mask"] = _same_segment(extra)
    match work.option:
        case Bias():
            given["bias"] = extra["bias"].astype(q.dtype)
        case DenseMask():
            given["mask"] = extra["seen"]
        case Dropout(rate):
            given |= {"dropout_rate": rate, "deterministic": False, "broadcast_dropout": False}
            given["dropout_rng"] = jax.random.wrap_key_data(extra["key"])
    return nnx.dot_product_attention(q, k, v, **given)


def jax_nn_limits(work: Workload) -> str | None:
    match work.option:
        case SoftCap() | Sinks() | Dropout():
            return f"jax.nn has no {_WORDS[type(work.option)]}"
    return None


def flax_limits(work: Workload) -> str | None:
    match work.option:
        case SoftCap() | Sinks():
            return f"Flax NNX has no {_WORDS[type(work.option)]}"
        case ALiBi() | RelativeBias():
            return "it would pass the bias on to jax.nn, which is timed"
    scores = work.batch * work.heads * work.queries * work.keys
    if jax.default_backend() == "cpu" and scores > 2**29:
        return "it calls jax.nn.dot_product_attention, which takes seconds here: timed once"
    return None


def cudnn_limits(work: Workload) -> str | None:
    if jax.default_backend() != "gpu":
        return "cuDNN needs an NVIDIA GPU"
    if work.dtype is Dtype.FLOAT32:
        return "cuDNN's attention is for 16-bit inputs"
    if not isinstance(work.option, Nothing) or isinstance(work.mask, Segments):
        return "options are measured with jax.nn's own implementation"
    return None


_WORDS = {SoftCap: "soft cap", Sinks: "sinks", Dropout: "dropout"}

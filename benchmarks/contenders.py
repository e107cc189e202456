"""Who is measured: jaxattn, `jax.nn.dot_product_attention`, Flax NNX's, and PyTorch's where it is.

Every contender gets what it would get at its best: inputs already on the device and in the layout
it prefers, one program compiled ahead of time for exactly these shapes, its own way to say
"causal", "window" and "grouped heads". A gradient returns the output as well as dq, dk and dv, so
that no compiler can leave the forward pass out.
"""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja
from benchmarks.masks import Causal, Full, Mask, Window
from benchmarks.workloads import Dtype, Inputs, Kind, Workload


@dataclass(frozen=True)
class Built:
    """A contender that is ready to run one workload."""

    run: Callable[[], Any]
    """Starts one computation and returns its results, perhaps before they are there."""
    wait: Callable[[Any], object]
    """Blocks until what `run` returned is there."""
    outputs: Callable[[Any], list[np.ndarray]]
    """What `run` returned as float32: out [b t h e], and for a gradient dq, dk, dv like q, k, v."""
    temp_bytes: Callable[[], int | None]
    """Peak bytes beyond inputs and results, where it can be known; may run the computation once."""
    needs_bytes: int
    """Bytes the computation takes in all, known or estimated before it is run."""
    compile_seconds: float | None = None
    """Tracing, lowering and compiling; None where nothing is compiled."""


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    def supports(self, work: Workload, /) -> str | None:
        """Why it cannot run `work`; None if it can."""
        ...

    def build(self, work: Workload, inputs: Inputs) -> Built: ...


Attention = Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array]


def _anything(work: Workload) -> str | None:
    return None


@dataclass(frozen=True)
class JaxContender:
    """A function of q, k, v and a mask, compiled by `jax.jit`."""

    name: str
    attention: Attention
    supports: Callable[[Workload], str | None] = _anything

    def build(self, work: Workload, inputs: Inputs) -> Built:
        dtype = jnp.dtype(work.dtype.numpy)
        wanted = [inputs.q, inputs.k, inputs.v]
        if work.kind is Kind.GRADIENT:
            wanted.append(inputs.cotangent)
        arrays = [jnp.asarray(x, dtype) for x in wanted]
        jax.block_until_ready(arrays)
        jax.clear_caches()  # else a peer's traces would shorten this one's compile time
        with _honest_float32(work):
            begin = time.perf_counter()
            compiled = jax.jit(self._program(work)).lower(*arrays).compile()
            seconds = time.perf_counter() - begin
        memory: Any = compiled.memory_analysis()
        temp = None if memory is None else int(memory.temp_size_in_bytes)
        return Built(
            run=lambda: compiled(*arrays),
            wait=jax.block_until_ready,
            outputs=lambda got: [np.asarray(x.astype(jnp.float32)) for x in got],
            temp_bytes=lambda: temp,
            needs_bytes=work.bytes + (temp or 0),
            compile_seconds=seconds,
        )

    def _program(self, work: Workload) -> Callable[..., tuple[jax.Array, ...]]:
        def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return self.attention(q, k, v, work.mask)

        def only_forward(q, k, v):
            return (forward(q, k, v),)

        def with_gradient(q, k, v, cotangent):
            out, pull_back = jax.vjp(forward, q, k, v)
            return (out, *pull_back(cotangent))

        return only_forward if work.kind is Kind.FORWARD else with_gradient


def _honest_float32(work: Workload) -> contextlib.AbstractContextManager[Any]:
    """float32 work is done in float32 by everyone: no TF32 on a GPU."""
    if work.dtype is Dtype.FLOAT32 and jax.default_backend() != "cpu":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def _jaxattn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    match mask:
        case Full():
            return ja.attention(q, k, v)
        case Causal():
            return ja.attention(q, k, v, mask=ja.Causal())
        case Window(left):
            return ja.attention(q, k, v, mask=ja.Causal() & ja.Window(left=left))


def _jax_nn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    return _jax_nn_by(None, q, k, v, mask)


def _jax_nn_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    return _jax_nn_by("cudnn", q, k, v, mask)


def _jax_nn_by(implementation: Any, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask):
    call = jax.nn.dot_product_attention
    match mask:
        case Full():
            return call(q, k, v, implementation=implementation)
        case Causal():
            return call(q, k, v, is_causal=True, implementation=implementation)
        case Window(left):
            # cuDNN's window looks ahead unless is_causal is given too.
            window = (left, 0)
            return call(
                q,
                k,
                v,
                is_causal=implementation == "cudnn",
                local_window_size=window,
                implementation=implementation,
            )


def _flax_nnx(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    match mask:
        case Full():
            return nnx.dot_product_attention(q, k, v)
        case Causal():
            return nnx.dot_product_attention(q, k, v, is_causal=True)
        case Window(left):  # it has no window of its own: a boolean mask
            ahead_ts = jnp.arange(k.shape[1])[None, :] - jnp.arange(q.shape[1])[:, None]
            seen = (-left <= ahead_ts) & (ahead_ts <= 0)
            return nnx.dot_product_attention(q, k, v, mask=seen[None, None])


def _cudnn_limits(work: Workload) -> str | None:
    if jax.default_backend() != "gpu":
        return "cuDNN needs an NVIDIA GPU"
    if work.dtype is Dtype.FLOAT32:
        return "cuDNN's attention is for 16-bit inputs"
    return None


def _flax_limits(work: Workload) -> str | None:
    scores = work.batch * work.heads * work.queries * work.keys
    if jax.default_backend() == "cpu" and scores > 2**29:
        return "it calls jax.nn.dot_product_attention, which takes seconds here: timed once"
    return None


JAXATTN = JaxContender("jaxattn", _jaxattn)
JAX_NN = JaxContender("jax.nn", _jax_nn)
FLAX_NNX = JaxContender("Flax NNX", _flax_nnx, _flax_limits)
JAX_NN_CUDNN = JaxContender("jax.nn cuDNN", _jax_nn_cudnn, _cudnn_limits)


def contenders() -> Sequence[Contender]:
    """Everyone who can be measured on this machine, jaxattn first."""
    everyone: list[Contender] = [JAXATTN, JAX_NN, FLAX_NNX]
    if jax.default_backend() == "gpu":
        everyone.append(JAX_NN_CUDNN)
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_sdpa import torch_contenders

        everyone.extend(torch_contenders())
    return tuple(everyone)

"""Who is measured: jaxattn, `jax.nn.dot_product_attention`, Flax NNX's, and PyTorch's where it is.

Every contender gets what it would get at its best: inputs already on the device and in the layout
it prefers, one program compiled ahead of time for exactly these shapes, its own way to say
"causal", "window" and "grouped heads". A gradient returns the output as well as dq, dk and dv, so
that no compiler can leave the forward pass out.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import calls
from benchmarks.built import Built, build
from benchmarks.chance import Pattern
from benchmarks.masks import Window
from benchmarks.options import Bias, DenseMask, Nothing
from benchmarks.workloads import Dtype, Inputs, Kind, Workload


@dataclass(frozen=True, kw_only=True)
class Entrant(Built):
    """A contender that is ready to run one workload."""

    outputs: Callable[[Any], list[np.ndarray]]
    """What `run` returned as float32: out [b t h e], and for a gradient dq, dk, dv like q, k, v."""
    needs_bytes: int
    """Bytes the computation takes in all, known or estimated before it is run."""
    read_off: Callable[[int], Pattern] | None = None
    """Which weights of how many first queries it keeps, where it drops some and can tell."""


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    def asked(self, work: Workload, /) -> Workload | None:
        """What it is to compute where `work` is measured; None where it does not take part."""
        ...

    def supports(self, work: Workload, /) -> str | None:
        """Why it cannot run `work`; None if it can."""
        ...

    def build(self, work: Workload, inputs: Inputs) -> Entrant: ...


def _anything(work: Workload) -> str | None:
    return None


def _itself(work: Workload) -> Workload | None:
    return work


@dataclass(frozen=True)
class JaxContender:
    """A function of q, k, v, the workload and the arrays of its option, compiled by `jax.jit`."""

    name: str
    attention: calls.Attention
    supports: Callable[[Workload], str | None] = _anything
    asked: Callable[[Workload], Workload | None] = _itself
    kept: Callable[[Workload, Mapping[str, jax.Array], int], Pattern] | None = None

    def build(self, work: Workload, inputs: Inputs) -> Entrant:
        dtype = jnp.dtype(work.dtype.numpy)
        wanted = [inputs.q, inputs.k, inputs.v]
        if work.kind is Kind.GRADIENT:
            wanted.append(inputs.cotangent)
        extra = {name: jnp.asarray(x) for name, x in inputs.extra.items()}
        arrays = extra, *(jnp.asarray(x, dtype) for x in wanted)
        jax.block_until_ready(arrays)
        jax.clear_caches()  # else a peer's traces would shorten this one's compile time
        with _honest_float32(work):
            built = build(self._program(work), *arrays)
        kept = self.kept
        return Entrant(
            **vars(built),
            outputs=lambda got: [np.asarray(x.astype(jnp.float32)) for x in got],
            needs_bytes=work.bytes + (built.temp_bytes() or 0),
            read_off=None if kept is None else lambda rows: kept(work, extra, rows),
        )

    def _program(self, work: Workload) -> Callable[..., tuple[jax.Array, ...]]:
        def only_forward(extra, q, k, v):
            return (self.attention(q, k, v, work, extra),)

        def with_gradient(extra, q, k, v, cotangent):
            forward = lambda q, k, v: self.attention(q, k, v, work, extra)
            out, pull_back = jax.vjp(forward, q, k, v)
            return (out, *pull_back(cotangent))

        return only_forward if work.kind is Kind.FORWARD else with_gradient


def _honest_float32(work: Workload) -> contextlib.AbstractContextManager[Any]:
    """float32 work is done in float32 by everyone: no TF32 on a GPU."""
    if work.dtype is Dtype.FLOAT32 and jax.default_backend() != "cpu":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def is_plain(work: Workload) -> bool:
    """Whether the workload has neither an option nor segments."""
    return work.plain == work


def _without_option(work: Workload) -> Workload | None:
    return None if is_plain(work) else work.plain


def _drop_in(work: Workload) -> Workload | None:
    """What jax.nn has too, where keeping up counts: few tokens, and the length of the ratios."""
    taken = isinstance(work.option, Nothing | Bias | DenseMask) and not isinstance(
        work.mask, Window
    )
    forward = work.kind is Kind.FORWARD and work.queries == work.keys and work.batch == 1
    return work if taken and forward and (work.queries <= 128 or work.queries == 2048) else None


JAXATTN = JaxContender("jaxattn", calls.jaxattn, kept=calls.jaxattn_kept)
PLAIN = JaxContender("jaxattn, plain", calls.jaxattn, asked=_without_option)
"""jaxattn without the option: what the option costs is a ratio of interleaved rounds too."""
COMPAT = JaxContender("jaxattn.compat", calls.compat, asked=_drop_in)
JAX_NN = JaxContender("jax.nn", calls.jax_nn, calls.jax_nn_limits)
FLAX_NNX = JaxContender("Flax NNX", calls.flax_nnx, calls.flax_limits)
JAX_NN_CUDNN = JaxContender("jax.nn cuDNN", calls.jax_nn_cudnn, calls.cudnn_limits)


def contenders(works: Sequence[Workload]) -> Sequence[Contender]:
    """Everyone who can be measured on this machine, jaxattn first.

    Those who are there for the sake of options only where some workload has one.
    """
    options = not all(map(is_plain, works))
    everyone: list[Contender] = [JAXATTN, PLAIN, COMPAT] if options else [JAXATTN]
    everyone += [JAX_NN, FLAX_NNX]
    if jax.default_backend() == "gpu":
        everyone.append(JAX_NN_CUDNN)
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_flex import torch_flex
        from benchmarks.torch_sdpa import torch_contenders

        everyone += torch_contenders()
        everyone += torch_flex() if options else ()
    return tuple(everyone)

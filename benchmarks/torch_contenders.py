"""PyTorch: its SDPA, its FlexAttention, and weights written out; imported only where it is there.

It is given its best case: [b, h, t, d] contiguous tensors made beforehand (JAX contenders read
[b, t, h, d]), masks and biases made beforehand, as many threads as there are cores, and on a GPU
the tensors already there. FlexAttention is compiled, forward alone on a CPU, where it has no
backward pass. Its compile time is `create_block_mask` and the first call, with PyTorch's
compilation caches off; the first one of a process also starts the compiler, about ten seconds of
it. A CPU needs a C++ compiler.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch._inductor.config  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch.nn.attention import flex_attention as flex  # pyright: ignore[reportMissingImports]

from benchmarks import machine
from benchmarks.contenders import Contender, missing
from benchmarks.options import CAUSAL, EVERY_PAIR, FLEX, SDPA
from benchmarks.timing import Built
from benchmarks.workloads import Inputs, Workload

torch.set_num_threads(machine.cores())


@cache
def device() -> str | None:
    """The torch name of the device JAX computes on; None if torch cannot reach it."""
    names = {"cpu": "cpu"} | ({"gpu": "cuda"} if torch.cuda.is_available() else {})
    return names.get(jax.default_backend())


def torch_contenders(options: bool) -> list[Contender]:
    """FlexAttention only where some workload has an option."""
    sdpa = Contender(SDPA, _sdpa, _sdpa_limits)
    compiled = Contender(FLEX, _flex, _flex_limits, _flex_asked)
    return [sdpa, *([compiled] if options else [])] if device() else []


def _wait(got: Any) -> None:
    """On a CPU results are there already."""
    if device() == "cuda":
        torch.cuda.synchronize()


def _tensor(x: np.ndarray, dtype: np.dtype, where: str | None = None) -> Any:
    """[b, h, t, d], contiguous."""
    there = torch.from_numpy(np.array(x)).to(where or device(), getattr(torch, dtype.name))
    return there.transpose(1, 2).contiguous()


def _built(
    attention: Callable[..., Any], work: Workload, inputs: Inputs, given: Any, needs_bytes: int
) -> Built:
    """A function of q, k and v, and of what else it is `given`."""
    *qkv, cotangent = (
        _tensor(x, work.dtype) for x in (inputs.q, inputs.k, inputs.v, inputs.cotangent)
    )
    qkv = [x.requires_grad_(work.gradient) for x in qkv]

    def run() -> list[Any]:
        out = attention(*qkv, **given)
        return [out, *(torch.autograd.grad(out, qkv, cotangent) if work.gradient else ())]

    def temp_bytes() -> int | None:
        """On a GPU, the allocator's peak beyond what was there before and the results."""
        if device() != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, results = torch.cuda.memory_allocated(), run()
        torch.cuda.synchronize()
        return max(0, torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in results))

    outputs = lambda got: [x.detach().transpose(1, 2).float().cpu().numpy() for x in got]
    return Built(run, _wait, temp_bytes, outputs=outputs, needs_bytes=needs_bytes)


def _sdpa_limits(work: Workload) -> str | None:
    size = 4 * work.heads * work.queries * work.keys / 2**30
    if work.option.added is not None and size > 1:
        return f"its mask of {work.heads} heads would take {size:.0f} GiB: timed at 4096 tokens"
    return missing(SDPA, work)


def _sdpa(work: Workload, inputs: Inputs) -> Built:
    """`torch.nn.functional.scaled_dot_product_attention`, eager."""
    given: dict[str, Any] = {"enable_gqa": work.kv_heads != work.heads}
    given |= {"is_causal": work.mask == CAUSAL, "dropout_p": work.option.rate}
    torch.manual_seed(0)
    # Dropout is no fused kernel: scores, weights, what is kept, and what is made of them.
    needs_bytes = 2 * work.bytes + (16 * work.scores if work.option.rate else 0)
    seen = inputs.extra.get("seen")
    if work.mask not in (EVERY_PAIR, CAUSAL):
        seen = work.mask.allowed(work.queries, work.keys)
    elif work.option.added is not None:
        ahead_ts = np.arange(work.keys) - np.arange(work.queries)[:, None]
        seen = np.ascontiguousarray(work.option.added(inputs.extra, ahead_ts))[None]
    if seen is not None:
        given["attn_mask"] = torch.from_numpy(seen).to(device())
        needs_bytes += seen.nbytes + 4 * seen.size  # and its copy as numbers to add
    return _built(F.scaled_dot_product_attention, work, inputs, given, needs_bytes)


def _flex_asked(work: Workload) -> Workload | None:
    """Where there is an option, from 64 tokens on, and at 4096 tokens without one."""
    option = work != work.plain and work.queries >= 64
    return work if option or work.queries == work.keys == 4096 else None


def _flex_limits(work: Workload) -> str | None:
    if work.gradient and device() == "cpu":
        return "FlexAttention has no backward pass on a CPU"
    if work.mask.left is not None:
        return "measured with full and causal masks and segments"
    return missing(FLEX, work)


def _flex(work: Workload, inputs: Inputs) -> Built:
    """`torch.compile(flex_attention)`."""
    extra: Any = {name: torch.from_numpy(x).to(device()) for name, x in inputs.extra.items()}
    seen = (lambda b, h, i, j: j <= i) if work.mask.causal else None
    if "seen" in extra:
        seen = lambda b, h, i, j: extra["seen"][0, 0, i, j]
    if "ids" in extra:
        seen = lambda b, h, i, j: extra["ids"][i] == extra["ids"][j]
    given: dict[str, Any] = {"enable_gqa": work.kv_heads != work.heads}
    given["score_mod"] = work.option.flex and work.option.flex(extra, work.queries)
    with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
        warnings.simplefilter("ignore")  # that the caches are off, and what torch itself deprecates
        torch.compiler.reset()
        compiled = torch.compile(flex.flex_attention, dynamic=False)
        built = _built(compiled, work, inputs, given, 2 * work.bytes)
        begin = time.perf_counter()
        if seen is not None:
            sizes = work.queries, work.keys
            given["block_mask"] = flex.create_block_mask(seen, None, None, *sizes, device=device())
        built.result()
        return replace(built, compile_seconds=time.perf_counter() - begin)


def product(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> Built | None:
    """Of two matrices; None if torch cannot reach the device."""
    if device() is None:
        return None
    x, y = (torch.from_numpy(m).to(device(), getattr(torch, dtype.name)) for m in (a, b))
    return Built(lambda: x @ y, _wait)


def eager(shown: Callable[..., dict[str, Any]], causal: bool, *arrays: Any) -> Built:
    """Weights softmax(q kᵀ / √d) of [b, t, h, d] float32, what is `shown` of them, and out."""
    q, k, v = (_tensor(x, np.dtype(np.float32), "cpu") for x in arrays)
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1) if causal else None

    def run() -> dict[str, Any]:
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if hidden is not None:
            logits.masked_fill_(hidden, -torch.inf)
        weights = logits.softmax(-1)
        more = {"max": logits.amax((0, 2, 3)), "out": (weights @ v).swapaxes(1, 2)}
        return shown(weights, torch.special.entr) | more

    return Built(run, _wait)

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
from functools import partial
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch._inductor.config  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch.nn.attention import flex_attention as flex  # pyright: ignore[reportMissingImports]

from benchmarks import machine
from benchmarks.contenders import Contender, is_plain, missing
from benchmarks.options import CAUSAL, EVERY_PAIR, FLEX, SDPA
from benchmarks.timing import Built
from benchmarks.workloads import Inputs, Workload


def torch_device() -> str | None:
    """The torch name of the device JAX computes on; None if torch cannot reach it."""
    if jax.default_backend() == "gpu":
        return "cuda" if torch.cuda.is_available() else None
    return "cpu" if jax.default_backend() == "cpu" else None


def torch_contenders(options: bool) -> list[Contender]:
    """FlexAttention only where some workload has an option."""
    device = torch_device()
    if device is None:
        return []
    sdpa = Contender(SDPA, partial(_sdpa, device), _sdpa_limits)
    compiled = Contender(FLEX, partial(_flex, device), partial(_flex_limits, device), _flex_asked)
    return [sdpa, compiled] if options else [sdpa]


def _wait(device: str, got: Any) -> None:
    """On a CPU results are there already."""
    if device == "cuda":
        torch.cuda.synchronize()


def _tensor(x: np.ndarray, dtype: np.dtype, device: str, needs_gradient: bool = False) -> Any:
    """[b, h, t, d], contiguous."""
    there = torch.from_numpy(np.array(x)).to(device, getattr(torch, dtype.name))
    return there.transpose(1, 2).contiguous().requires_grad_(needs_gradient)


def _outputs(got: list[Any]) -> list[np.ndarray]:
    """As [b, t, h, e] in float32."""
    return [x.detach().transpose(1, 2).float().cpu().numpy() for x in got]


def _sdpa_limits(work: Workload) -> str | None:
    scores = work.heads * work.queries * work.keys
    if work.option.added is not None and scores > 2**28:
        size = f"{4 * scores / 2**30:.0f} GiB"
        return f"its mask of {work.heads} heads would take {size}: timed at 4096 tokens"
    return missing(SDPA, work)


def _sdpa(device: str, work: Workload, inputs: Inputs) -> Built:
    """`torch.nn.functional.scaled_dot_product_attention`, eager."""
    torch.set_num_threads(machine.cores())
    tensor = lambda x: _tensor(x, work.dtype, device, work.gradient)
    q, k, v = map(tensor, (inputs.q, inputs.k, inputs.v))
    cotangent = _tensor(inputs.cotangent, work.dtype, device) if work.gradient else None
    given: dict[str, Any] = {"enable_gqa": work.kv_heads != work.heads}
    given["is_causal"] = work.mask == CAUSAL
    needs_bytes = 2 * work.bytes
    if (mask := _attn_mask(work, inputs)) is not None:
        given["attn_mask"] = torch.from_numpy(mask).to(device)
        needs_bytes += mask.nbytes + 4 * mask.size  # and its copy as numbers to add
    if work.option.rate:
        given["dropout_p"] = work.option.rate
        torch.manual_seed(0)
        # Not a fused kernel: scores, weights, what is kept, and what is made of them.
        needs_bytes += 16 * work.scores

    def run() -> list[Any]:
        if cotangent is None:
            with torch.no_grad():
                return [F.scaled_dot_product_attention(q, k, v, **given)]
        out = F.scaled_dot_product_attention(q, k, v, **given)
        return [out, *torch.autograd.grad(out, (q, k, v), cotangent)]

    wait, temp_bytes = partial(_wait, device), partial(_temp_bytes, device, run)
    return Built(run, wait, temp_bytes, outputs=_outputs, needs_bytes=needs_bytes)


def _attn_mask(work: Workload, inputs: Inputs) -> np.ndarray | None:
    """What `attn_mask` is: booleans, or numbers to add; None for none."""
    t, s = work.queries, work.keys
    if work.mask not in (EVERY_PAIR, CAUSAL):
        return work.mask.allowed(t, s)
    if work.option.added is None:
        return inputs.extra.get("seen")
    ahead_ts = np.arange(s) - np.arange(t)[:, None]
    return np.ascontiguousarray(work.option.added(inputs.extra, ahead_ts))[None]


def _temp_bytes(device: str, run: Callable[[], list[Any]]) -> int | None:
    """On a GPU, the allocator's peak beyond what was there before and the results."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run()
    torch.cuda.synchronize()
    kept = sum(x.numel() * x.element_size() for x in results)
    return max(0, torch.cuda.max_memory_allocated() - before - kept)


def _flex_asked(work: Workload) -> Workload | None:
    """Where there is an option, from 64 tokens on, and at 4096 tokens without one."""
    option = not is_plain(work) and work.queries >= 64
    return work if option or work.queries == work.keys == 4096 else None


def _flex_limits(device: str, work: Workload) -> str | None:
    if work.gradient and device == "cpu":
        return "FlexAttention has no backward pass on a CPU"
    if work.mask.left is not None:
        return "measured with full and causal masks and segments"
    return missing(FLEX, work)


def _flex(device: str, work: Workload, inputs: Inputs) -> Built:
    """`torch.compile(flex_attention)`."""
    torch.set_num_threads(machine.cores())
    q, k, v = (_tensor(x, work.dtype, device) for x in (inputs.q, inputs.k, inputs.v))
    extra = {name: torch.from_numpy(x).to(device) for name, x in inputs.extra.items()}
    score = None if work.option.flex is None else work.option.flex(extra, work.queries)
    given = {"score_mod": score, "enable_gqa": work.kv_heads != work.heads}

    def run() -> list[Any]:
        with torch.no_grad():
            return [compiled(q, k, v, **given)]

    with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
        warnings.simplefilter("ignore")  # that the caches are off, and what torch itself deprecates
        torch.compiler.reset()
        begin = time.perf_counter()
        compiled: Any = torch.compile(flex.flex_attention, dynamic=False)
        if (seen := _mask_mod(work, extra)) is not None:
            sizes = work.queries, work.keys
            given["block_mask"] = flex.create_block_mask(seen, None, None, *sizes, device=device)
        run()
    seconds, needs = time.perf_counter() - begin, 2 * work.bytes
    wait = partial(_wait, device)
    return Built(run, wait, compile_seconds=seconds, outputs=_outputs, needs_bytes=needs)


def _mask_mod(work: Workload, extra: Any) -> Any:
    """FlexAttention's function of one pair that stands for the mask; None for none."""
    if "seen" in extra:
        return lambda b, h, i, j: extra["seen"][0, 0, i, j]
    if "ids" in extra:
        return lambda b, h, i, j: extra["ids"][i] == extra["ids"][j]
    return (lambda b, h, i, j: j <= i) if work.mask.causal else None


def product(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> Built | None:
    """Of two matrices; None if torch cannot reach the device."""
    device = torch_device()
    if device is None:
        return None
    torch.set_num_threads(machine.cores())
    x, y = (torch.from_numpy(m).to(device, getattr(torch, dtype.name)) for m in (a, b))
    return Built(lambda: x @ y, partial(_wait, device))


def eager(cells: int, causal: bool, *arrays: Any) -> Built:
    """What is observed of softmax(q kᵀ / √d), and out, of [b, t, h, d] float32, as written out."""
    torch.set_num_threads(machine.cores())
    q, k, v = (_tensor(x, np.dtype(np.float32), "cpu") for x in arrays)
    t = q.shape[2]
    down = max(t // cells, 1)
    hidden = torch.ones(t, t, dtype=torch.bool).triu(1) if causal else None

    def run() -> dict[str, Any]:
        with torch.no_grad():
            logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if hidden is not None:
                logits.masked_fill_(hidden, -torch.inf)
            weights = logits.softmax(-1)
            summed = weights.unflatten(3, (-1, down)).sum(4).unflatten(2, (-1, down)).sum(3)
            return {
                "map": summed / down,
                "received": weights.sum(2).transpose(1, 2),
                "entropy": torch.special.entr(weights).sum(3).transpose(1, 2),
                "max": logits.amax((0, 2, 3)),
                "out": (weights @ v).transpose(1, 2),
            }

    return Built(run, partial(_wait, "cpu"))

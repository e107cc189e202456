"""PyTorch's `scaled_dot_product_attention`; imported only where torch is installed.

It is given its best case: [b, h, t, d] contiguous tensors made beforehand (JAX contenders read
[b, t, h, d]), masks and biases made beforehand and passed as `attn_mask`, as many threads as there
are cores, and on a GPU the tensors already there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from benchmarks.contenders import Entrant
from benchmarks.machine import cores
from benchmarks.masks import Causal, Segments, Window, allowed_ts
from benchmarks.options import Added, DenseMask, Head, Sinks, SoftCap
from benchmarks.workloads import Dtype, Inputs, Kind, Workload


def torch_device() -> str | None:
    """The torch name of the device JAX computes on; None if torch cannot reach it."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda"
    return None


def torch_dtype(dtype: Dtype) -> Any:
    return torch.bfloat16 if dtype is Dtype.BFLOAT16 else torch.float32


def waiter(device: str) -> Callable[[Any], object]:
    """What blocks until results are there; on a CPU they are there already."""
    return (lambda got: torch.cuda.synchronize()) if device == "cuda" else (lambda got: None)


def use_all_cores() -> None:
    """As many threads as XLA's CPU client has."""
    torch.set_num_threads(cores())


def torch_contenders() -> tuple["TorchSDPA", ...]:
    device = torch_device()
    return () if device is None else (TorchSDPA(device),)


@dataclass(frozen=True)
class TorchSDPA:
    """`torch.nn.functional.scaled_dot_product_attention`, eager."""

    device: str
    name: str = "torch SDPA"

    def asked(self, work: Workload) -> Workload | None:
        return work

    def supports(self, work: Workload) -> str | None:
        match work.option:
            case SoftCap():
                return "torch SDPA has no soft cap"
            case Sinks():
                return "torch SDPA has no sinks"
        if isinstance(work.option, Added) and work.heads * work.queries * work.keys > 2**28:
            size = 4 * work.heads * work.queries * work.keys / 2**30
            return f"its mask of {work.heads} heads would take {size:.0f} GiB: timed at 4096 tokens"
        return None

    def build(self, work: Workload, inputs: Inputs) -> Entrant:
        use_all_cores()
        gradient = work.kind is Kind.GRADIENT
        on = self.device
        q, k, v = (tensor(x, work, on, gradient) for x in (inputs.q, inputs.k, inputs.v))
        cotangent = tensor(inputs.cotangent, work, on) if gradient else None
        options: dict[str, Any] = {"enable_gqa": work.kv_heads != work.heads}
        mask_bytes = 0
        if isinstance(work.mask, Causal):
            options["is_causal"] = True
        if (mask := _mask(work, inputs)) is not None:
            options["attn_mask"] = torch.from_numpy(mask).to(on)
            mask_bytes = mask.nbytes + 4 * mask.size  # and its copy as numbers to add
        if work.option.rate:
            options["dropout_p"] = work.option.rate
            torch.manual_seed(0)
            # Not a fused kernel: scores, weights, what is kept, and what is made of them.
            mask_bytes += 16 * work.batch * work.heads * work.queries * work.keys

        def run() -> list[Any]:
            if cotangent is None:
                with torch.no_grad():
                    return [F.scaled_dot_product_attention(q, k, v, **options)]
            out = F.scaled_dot_product_attention(q, k, v, **options)
            return [out, *torch.autograd.grad(out, (q, k, v), cotangent)]

        return Entrant(
            run=run,
            wait=waiter(self.device),
            outputs=outputs,
            temp_bytes=lambda: self._temp_bytes(run),
            needs_bytes=2 * work.bytes + mask_bytes,
        )

    def _temp_bytes(self, run: Callable[[], list[Any]]) -> int | None:
        """On a GPU, the allocator's peak beyond what was there before and the results."""
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = run()
        torch.cuda.synchronize()
        kept = sum(x.numel() * x.element_size() for x in results)
        return max(0, torch.cuda.max_memory_allocated() - before - kept)


def tensor(x: np.ndarray, work: Workload, device: str, needs_gradient: bool = False) -> Any:
    """[b, h, t, d], contiguous."""
    there = torch.from_numpy(x).to(device, torch_dtype(work.dtype))
    return there.transpose(1, 2).contiguous().requires_grad_(needs_gradient)


def outputs(got: list[Any]) -> list[np.ndarray]:
    """As [b, t, h, e] in float32."""
    return [x.detach().transpose(1, 2).float().cpu().numpy() for x in got]


def _mask(work: Workload, inputs: Inputs) -> np.ndarray | None:
    """What `attn_mask` is: booleans, or numbers to add; None for none."""
    if isinstance(work.mask, Window | Segments):
        return allowed_ts(work.mask, work.queries, work.keys)
    option = work.option
    if isinstance(option, DenseMask):
        return inputs.extra["seen"]
    if isinstance(option, Added):
        rows = np.arange(work.queries)
        of = lambda h: option.added(Head(inputs.extra, h, rows), work.keys)
        return np.stack([of(h) for h in range(work.heads)])[None]
    return None

"""PyTorch's `scaled_dot_product_attention`; imported only where torch is installed.

It is given its best case: [b, h, t, d] contiguous tensors made beforehand (JAX contenders read
[b, t, h, d]), a window's boolean mask made beforehand, as many threads as there are cores, and on
a GPU the tensors already there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from benchmarks.contenders import Built
from benchmarks.machine import cores
from benchmarks.masks import Causal, Full, Window, allowed_ts
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

    def supports(self, work: Workload) -> str | None:
        return None

    def build(self, work: Workload, inputs: Inputs) -> Built:
        use_all_cores()
        gradient = work.kind is Kind.GRADIENT
        q, k, v = (self._tensor(x, work, gradient) for x in (inputs.q, inputs.k, inputs.v))
        cotangent = self._tensor(inputs.cotangent, work, False) if gradient else None
        options: dict[str, Any] = {"enable_gqa": work.kv_heads != work.heads}
        mask_bytes = 0
        match work.mask:
            case Full():
                pass
            case Causal():
                options["is_causal"] = True
            case Window():
                seen = allowed_ts(work.mask, work.queries, work.keys)
                options["attn_mask"] = torch.from_numpy(seen).to(self.device)
                mask_bytes = seen.size * (1 + 4)  # and its copy as numbers to add

        def run() -> list[Any]:
            if cotangent is None:
                with torch.no_grad():
                    return [F.scaled_dot_product_attention(q, k, v, **options)]
            out = F.scaled_dot_product_attention(q, k, v, **options)
            return [out, *torch.autograd.grad(out, (q, k, v), cotangent)]

        return Built(
            run=run,
            wait=waiter(self.device),
            outputs=_outputs,
            temp_bytes=lambda: self._temp_bytes(run),
            needs_bytes=2 * work.bytes + mask_bytes,
        )

    def _tensor(self, x: np.ndarray, work: Workload, needs_gradient: bool) -> Any:
        there = torch.from_numpy(x).to(self.device, torch_dtype(work.dtype))
        return there.transpose(1, 2).contiguous().requires_grad_(needs_gradient)

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


def _outputs(got: list[Any]) -> list[np.ndarray]:
    return [x.detach().transpose(1, 2).float().cpu().numpy() for x in got]

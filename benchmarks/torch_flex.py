"""PyTorch's FlexAttention, compiled; imported only where torch is installed.

Forward alone on a CPU, where it has no backward pass. Its tensors, and the block mask that says
what to skip, are made beforehand. Compile time is `create_block_mask` and the first call, with
PyTorch's compilation caches off; the first one of a process also starts the compiler, about ten
seconds of it. A CPU needs a C++ compiler.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch._inductor.config  # pyright: ignore[reportMissingImports]
from torch.nn.attention import flex_attention as flex  # pyright: ignore[reportMissingImports]

from benchmarks.contenders import Entrant
from benchmarks.masks import Causal, Full, Segments
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
from benchmarks.torch_sdpa import outputs, tensor, torch_device, use_all_cores, waiter
from benchmarks.workloads import Inputs, Kind, Workload


def torch_flex() -> tuple["TorchFlex", ...]:
    device = torch_device()
    return () if device is None else (TorchFlex(device),)


@dataclass(frozen=True)
class TorchFlex:
    """`torch.compile(flex_attention)`."""

    device: str
    name: str = "torch Flex"

    def asked(self, work: Workload) -> Workload | None:
        """Where there is an option, from 64 tokens on, and at 4096 tokens without one."""
        option = work.plain != work and work.queries >= 64
        return work if option or work.queries == work.keys == 4096 else None

    def supports(self, work: Workload) -> str | None:
        if work.kind is Kind.GRADIENT and self.device == "cpu":
            return "FlexAttention has no backward pass on a CPU"
        match work.option:
            case Sinks():
                return "FlexAttention has no sinks"
            case Dropout():
                return "FlexAttention has no dropout"
        if not isinstance(work.mask, Full | Causal | Segments):
            return "measured with full and causal masks and segments"
        return None

    def build(self, work: Workload, inputs: Inputs) -> Entrant:
        use_all_cores()
        q, k, v = (tensor(x, work, self.device) for x in (inputs.q, inputs.k, inputs.v))
        extra = {name: torch.from_numpy(x).to(self.device) for name, x in inputs.extra.items()}
        score, seen = _score(work, extra), _seen(work, extra)
        torch.compiler.reset()
        begin = time.perf_counter()
        block = None
        if seen is not None:
            sizes = work.queries, work.keys
            block = flex.create_block_mask(seen, None, None, *sizes, device=self.device)
        compiled: Any = torch.compile(flex.flex_attention, dynamic=False)
        grouped = work.kv_heads != work.heads

        def run() -> list[Any]:
            with torch.no_grad():
                return [compiled(q, k, v, score_mod=score, block_mask=block, enable_gqa=grouped)]

        with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
            warnings.simplefilter("ignore")  # that the caches are off
            run()
        seconds = time.perf_counter() - begin
        return Entrant(
            run=run,
            wait=waiter(self.device),
            outputs=outputs,
            needs_bytes=2 * work.bytes,
            compile_seconds=seconds,
        )


def _score(work: Workload, extra: Any) -> Any:
    """The function of one logit that stands for the option; None for none."""
    match work.option:
        case Bias():
            bias = extra["bias"]
            return lambda x, b, h, i, j: x + bias[0, h, i, j]
        case ALiBi():
            slopes = extra["slopes"]
            return lambda x, b, h, i, j: x - slopes[h] * (i - j).abs()
        case RelativeBias():
            table, last = extra["table"], work.queries - 1
            distances = torch.arange(-last, work.keys).numpy()
            bucket = torch.from_numpy(work.option.bucket(distances)).to(table.device)
            return lambda x, b, h, i, j: x + table[bucket[j - i + last], h]
        case SoftCap(cap):
            return lambda x, b, h, i, j: cap * torch.tanh(x / cap)
    assert isinstance(work.option, Nothing | DenseMask), f"no score_mod for {work.option}"
    return None


def _seen(work: Workload, extra: Any) -> Any:
    """The function of one pair that stands for the mask; None for none."""
    if isinstance(work.option, DenseMask):
        seen = extra["seen"]
        return lambda b, h, i, j: seen[0, 0, i, j]
    match work.mask:
        case Causal():
            return lambda b, h, i, j: j <= i
        case Segments():
            ids = extra["ids"]
            return lambda b, h, i, j: ids[i] == ids[j]
    return None

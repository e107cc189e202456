"""The weights and what follows from them in eager PyTorch; imported only where torch is there."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import observing
from benchmarks.built import Built
from benchmarks.torch_sdpa import use_all_cores, waiter


def build(causal: bool, *arrays: Any) -> Built:
    """softmax(q kᵀ / √d) v as it is written out, with [b, h, t, d] tensors made beforehand."""
    use_all_cores()
    q, k, v = (torch.from_numpy(np.array(x)).transpose(1, 2).contiguous() for x in arrays)
    t = q.shape[2]
    hidden = torch.ones(t, t, dtype=torch.bool).triu(1) if causal else None

    def run() -> dict[str, Any]:
        with torch.no_grad():
            logits = q @ k.transpose(-1, -2) / observing.FEATURES**0.5
            if hidden is not None:
                logits.masked_fill_(hidden, -torch.inf)
            weights = logits.softmax(-1)
            down = max(t // observing.CELLS, 1)
            cells = weights.unflatten(3, (-1, down)).sum(4).unflatten(2, (-1, down)).sum(3)
            return {
                "map": cells / down,
                "received": weights.sum(2).transpose(1, 2),
                "entropy": torch.special.entr(weights).sum(3).transpose(1, 2),
                "max": logits.amax((0, 2, 3)),
                "out": (weights @ v).transpose(1, 2),
            }

    return Built(run, waiter("cpu"))

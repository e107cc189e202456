"""What the machine can do: a large square matrix product, by XLA and by torch.

It is measured again after every workload, so that a share of it compares like with like even if
the machine's speed drifts in the course of a run.
"""

import importlib.util
from collections.abc import Mapping
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.built import Built, build
from benchmarks.timing import Budget, measure
from benchmarks.workloads import Dtype


def matrix_size() -> int:
    """Rows of the square matrices: large enough for the machine's full speed."""
    return 3072 if jax.default_backend() == "cpu" else 8192


class MatrixProduct:
    """Repeatedly timed products of two n x n matrices of one dtype."""

    def __init__(self, dtype: Dtype, size: int, pipelined: bool) -> None:
        self.dtype, self.size = dtype, size
        self._budget = Budget(0, 1, 1, sample_seconds=0.02, pipelined=pipelined)
        a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
        self._products = {"XLA": _by_xla(a, b, dtype)}
        if importlib.util.find_spec("torch") is not None and (torch := _by_torch(a, b, dtype)):
            self._products["torch"] = torch
        for product in self._products.values():
            product.wait(product.run())
        self._samples: dict[str, list[float]] = {name: [] for name in self._products}

    def measure(self) -> None:
        """Adds one sample of each product."""
        for name, samples in measure(self._products, self._budget).items():
            self._samples[name].extend(samples.seconds)

    def facts(self) -> dict[str, object]:
        """What a results file says: the samples, and the peak in GFLOP/s."""
        return {
            "size": self.size,
            "samples_s": {k: [float(f"{x:.4g}") for x in v] for k, v in self._samples.items()},
            "gflops": peak_gflops(self._samples, self.size),
        }


def peak_gflops(samples: Mapping[str, list[float]], size: int) -> float | None:
    """The faster of the products, each by its median."""
    speeds = [2 * size**3 / median(x) / 1e9 for x in samples.values() if x]
    return max(speeds, default=None)


def _by_xla(a: np.ndarray, b: np.ndarray, dtype: Dtype) -> Built:
    x, y = (jnp.asarray(m, jnp.dtype(dtype.numpy)) for m in (a, b))
    precision = jax.lax.Precision.HIGHEST if dtype is Dtype.FLOAT32 else None
    return build(lambda x, y: jnp.matmul(x, y, precision=precision), x, y)


def _by_torch(a: np.ndarray, b: np.ndarray, dtype: Dtype) -> Built | None:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.torch_sdpa import torch_device, torch_dtype, use_all_cores, waiter

    device = torch_device()
    if device is None:
        return None
    use_all_cores()
    x, y = (torch.from_numpy(m).to(device, torch_dtype(dtype)) for m in (a, b))
    return Built(lambda: x @ y, waiter(device))

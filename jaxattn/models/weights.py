"""The weights of a checkpoint, handed out by name and shape, and read when all of them fit."""

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxattn.models.checkpoint import FLOATING, CheckpointError, Tensor

READERS = 4  # files are read, and memory is given, by several threads at a time


class Weights:
    """What a model is made of: `take` gives parameters without numbers, `read` then fills them.

        weights.under("h.0.attn.").take("c_attn.weight", 768, 2304)

    A parameter has the file's own layout: nothing is transposed, joined or split on loading.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: Any = None) -> None:
        self.dtype = None if dtype is None else jnp.dtype(dtype)
        if self.dtype is not None and self.dtype not in [jnp.dtype(x) for x in FLOATING.values()]:
            raise ValueError(
                f"a model's dtype is float32, bfloat16, float16, or None for the file's, got "
                f"{dtype!r}"
            )
        self._tensors = dict(tensors)
        self._prefix = ""
        self._taken: dict[str, nnx.Param] = {}

    def under(self, prefix: str) -> "Weights":
        """The weights whose names begin with this; what is taken there is taken here."""
        inner = object.__new__(Weights)
        inner.dtype, inner._tensors, inner._taken = self.dtype, self._tensors, self._taken
        inner._prefix = self._prefix + prefix
        return inner

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def rename(self, change: Callable[[str], str]) -> None:
        """Tensors of older files, under the names of today."""
        self._tensors = {change(name): x for name, x in self._tensors.items()}

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(self._prefix + prefix) for name in self._tensors)

    def take(self, name: str, *shape: int) -> nnx.Param:
        """A parameter of this name and shape.

        Raises:
          CheckpointError: there is none, or its shape or dtype is another.
        """
        name = self._prefix + name
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"the model needs the tensor {name!r} {list(shape)}, which the file lacks; it has "
                f"{_some(self._tensors)}"
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file} has {name!r} of shape {list(tensor.shape)}, the config asks for "
                f"{list(shape)}; the two are of different models"
            )
        if tensor.dtype not in FLOATING:
            raise CheckpointError(
                f"{tensor.file} has {name!r} as {tensor.dtype}, weights are {', '.join(FLOATING)}; "
                f"save the model in one of these (quantised weights are not read)"
            )
        dtype = self.dtype or FLOATING[tensor.dtype]
        self._taken[name] = nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
        return self._taken[name]

    def read(self, extras: Iterable[str] = ()) -> None:
        """Fills all parameters that were taken.

        extras: regular expressions of names that files may have besides.
        Raises:
          CheckpointError: tensors are left over; dtypes differ, and none was asked for. Before
            anything is read.
        """
        left = [
            name
            for name in self._tensors.keys() - self._taken.keys()
            if not any(re.fullmatch(extra, name) for extra in extras)
        ]
        if left:
            raise CheckpointError(
                f"{self._tensors[min(left)].file} has tensors that the model does not use: "
                f"{_some(left)}; they may change what it computes"
            )
        dtypes = {self._tensors[name].dtype: name for name in self._taken}
        if self.dtype is None and len(dtypes) > 1:
            told = ", ".join(f"{name!r} {dtype}" for dtype, name in dtypes.items())
            raise CheckpointError(
                f"weights of one model have one dtype, got {told}; pass dtype=jnp.float32, say"
            )

        def fill(name: str) -> None:
            param = self._taken[name]
            array = jax.device_put(self._tensors[name].read())
            param.set_value(array.astype(param.dtype))

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fill, self._taken))


def _some(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more

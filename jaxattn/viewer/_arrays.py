"""Arrays of any library, of one sequence, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


def plain(x: Any) -> Any:
    """An array of NumPy or JAX as it is; a tensor of torch as one of NumPy."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return x if hasattr(x, "shape") else np.asarray(x)


def layered(x: Any, name: str, axes: int) -> list[Any]:
    """One array of `axes` axes for each layer.

    Raises:
      ValueError: there is no layer, or the axes are others, or a batch of more than one.
    """
    if isinstance(x, Sequence):
        parts = [plain(each) for each in x]
    else:
        x = plain(x)
        parts = [x] if x.ndim == axes else list(x)
    if not parts:
        raise ValueError(f"{name} has at least one layer, got none")
    parts = [_single(each, name, axes) for each in parts]
    shapes = [each.shape for each in parts]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name} has the same shape in every layer, got {shapes}")
    if 0 in shapes[0]:
        raise ValueError(f"{name} has at least one entry along each axis, got shape {shapes[0]}")
    return parts


def _single(x: Any, name: str, axes: int) -> Any:
    if x.ndim == axes + 1 and x.shape[0] == 1:
        x = x[0]
    if x.ndim != axes:
        what = {2: "[t m]", 3: "[h t s]" if name == "weights" else "[t h d]"}[axes]
        raise ValueError(
            f"{name} of a layer is {what}, of one sequence, got shape {x.shape}; of a batch pass "
            f"one sequence: [layer[0] for layer in {name}]"
        )
    return x


NAMES = ("map", "pairs", "entropy", "received", "top", "looks", "largest", "lse")


def unbatched(seen: Mapping[str, Any], t: int, s: int) -> dict[str, Any]:
    """The observations of one layer in NumPy, without a batch axis.

    Raises:
      ValueError: one is missing, or is of another length, or of a batch.
    """
    missing = [name for name in NAMES if name not in seen]
    if missing:
        raise ValueError(
            f"a page needs the observations of wanted(tokens), got none named "
            f"{', '.join(missing)}; pass observe=wanted(tokens)"
        )
    entropy, mass = (np.asarray(x) for x in (seen["entropy"], seen["received"].mass))
    if entropy.ndim == 3 and entropy.shape[0] == 1:
        pick = lambda name, x: x if name == "largest" else jax.tree.map(lambda a: a[0], x)
        return unbatched({name: pick(name, x) for name, x in seen.items()}, t, s)
    if entropy.ndim != 2:
        raise ValueError(
            f"a page shows one sequence, got observations with batch axes {entropy.shape[:-2]}; "
            f"pass those of one: jax.tree.map(lambda x: x[0], observed)"
        )
    if (len(entropy), len(mass)) != (t, s):
        raise ValueError(
            f"tokens and keys are those that were observed, got {t} and {s} of them and "
            f"observations of {len(entropy)} queries and {len(mass)} keys"
        )
    return jax.tree.map(np.asarray, dict(seen))

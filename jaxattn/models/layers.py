"""The parts of a layer besides attention, with weights in the layouts that files have."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn._axes import accumulator, dot
from jaxattn.models.weights import Weights

Activation = Callable[[Array], Array]

_gelu: Activation = partial(jax.nn.gelu, approximate=False)
_gelu_tanh: Activation = partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""By the names that configs have. "gelu" is the exact one, by erf."""


class Linear(nnx.Module):
    """x Wᵀ + b with a weight [out in], as torch's; x W + b with one [in out], as GPT-2's Conv1D."""

    def __init__(self, weight: nnx.Param, bias: nnx.Param | None, inputs_first: bool) -> None:
        self.weight = weight
        self.bias = nnx.data(bias)
        self.inputs_first = inputs_first

    @classmethod
    def take(cls, weights: Weights, inputs: int, outputs: int, bias: bool = True) -> "Linear":
        """torch's, under `weights`."""
        weight = weights.take("weight", outputs, inputs)
        return cls(weight, weights.take("bias", outputs) if bias else None, False)

    @classmethod
    def take_conv1d(cls, weights: Weights, inputs: int, outputs: int) -> "Linear":
        return cls(weights.take("weight", inputs, outputs), weights.take("bias", outputs), True)

    @property
    def matrix(self) -> Float[Array, "in out"]:
        """The weight as x is multiplied by it."""
        weight = self.weight[...]
        return weight if self.inputs_first else weight.T

    def __call__(self, x: Float[Array, "*b in"]) -> Float[Array, "*b out"]:
        y = dot(x, self.matrix)
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / √(variance + eps) · weight + bias, in at least float32 (Ba et al. 2016)."""

    def __init__(self, weight: nnx.Param, bias: nnx.Param | None, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self.bias = nnx.data(bias)

    @classmethod
    def take(cls, weights: Weights, width: int, eps: float) -> "LayerNorm":
        return cls(weights.take("weight", width), weights.take("bias", width), eps)

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        wide = x.astype(accumulator(x.dtype))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * self.weight[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / √(mean x² + eps) · weight, in at least float32 (Zhang and Sennrich 2019).

    above_one: the file has weight - 1, as Gemma's.
    """

    def __init__(self, weight: nnx.Param, eps: float, above_one: bool = False) -> None:
        self.weight, self.eps, self.above_one = weight, eps, above_one

    @classmethod
    def take(cls, weights: Weights, width: int, eps: float, above_one: bool = False) -> "RMSNorm":
        return cls(weights.take("weight", width), eps, above_one)

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        wide = x.astype(accumulator(x.dtype))
        scale = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.eps)
        weight = self.weight[...].astype(wide.dtype) + (1 if self.above_one else 0)
        return (wide * scale * weight).astype(x.dtype)


Norm = LayerNorm | RMSNorm


class MLP(nnx.Module):
    """down(activation(up x))."""

    def __init__(self, up: Linear, down: Linear, activation: Activation) -> None:
        self.up, self.down, self.activation = up, down, activation

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nnx.Module):
    """down(activation(gate x) · up x) (Shazeer 2020)."""

    def __init__(self, gate: Linear, up: Linear, down: Linear, activation: Activation) -> None:
        self.gate, self.up, self.down, self.activation = gate, up, down, activation

    def __call__(self, x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Embeddings(nnx.Module):
    """Of words, and of positions and token types where a model has them; then scaled or normalised.

    offset: the row of position 0. scale: of the words' vectors.
    """

    def __init__(
        self,
        word: nnx.Param,
        *,
        position: nnx.Param | None = None,
        offset: int = 0,
        token_type: nnx.Param | None = None,
        norm: Norm | None = None,
        scale: float | None = None,
    ) -> None:
        self.word, self.offset, self.scale = word, offset, scale
        self.position, self.token_type = nnx.data(position), nnx.data(token_type)
        self.norm = nnx.data(norm)

    @property
    def most_positions(self) -> int | None:
        """How many tokens a sequence may have."""
        return None if self.position is None else self.position.shape[0] - self.offset

    def __call__(
        self, ids: Int[Array, "*b t"], positions: Int[Array, "*#b t"], types: Any
    ) -> Float[Array, "*b t m"]:
        x = _rows(self.word, ids)
        if self.scale is not None:
            x *= jnp.asarray(self.scale, x.dtype)  # rounded to it, as the published code does
        if self.token_type is not None:
            x += _rows(self.token_type, types)
        if self.position is not None:
            x += _rows(self.position, positions + self.offset)
        return x if self.norm is None else self.norm(x)


def _rows(table: nnx.Param, at: Array) -> Array:
    return jnp.take(table[...], at, axis=0, mode="clip")


class Head(nnx.Module):
    """Hidden states to logits of the vocabulary.

    transform, norm: before the last projection, as in masked-language heads.
    weight: [vocabulary m]; None for that of the words' embedding. cap: cap · tanh(logits / cap).
    """

    def __init__(
        self,
        weight: nnx.Param | None = None,
        *,
        bias: nnx.Param | None = None,
        transform: Linear | None = None,
        activation: Activation | None = None,
        norm: Norm | None = None,
        cap: float | None = None,
    ) -> None:
        self.weight, self.bias = nnx.data(weight), nnx.data(bias)
        self.transform, self.norm = nnx.data(transform), nnx.data(norm)
        self.activation, self.cap = activation, cap

    @classmethod
    def of_language_model(
        cls, weights: Weights, vocabulary: int, width: int, *, tied: bool, **options: Any
    ) -> "Head | None":
        """`lm_head`, or the words' embedding if tied; None if a file has the bare model."""
        if tied:
            return cls(**options)
        if "lm_head.weight" not in weights:
            return None
        return cls(weights.take("lm_head.weight", vocabulary, width), **options)

    def __call__(
        self, hidden: Float[Array, "*b m"], words: Float[Array, "v m"]
    ) -> Float[Array, "*b v"]:
        x = hidden if self.transform is None else self.transform(hidden)
        x = x if self.activation is None else self.activation(x)
        x = x if self.norm is None else self.norm(x)
        weight = words if self.weight is None else self.weight[...]
        logits = dot(x, weight.T)
        logits = logits if self.bias is None else logits + self.bias[...]
        return logits if self.cap is None else self.cap * jnp.tanh(logits / self.cap)

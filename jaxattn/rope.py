"""Rotary position embeddings: queries and keys turned by angles that grow with their position.

What a query and a key have in common then depends on the distance between them alone.

    rope = Rope(rotary_dim=128, theta=500000.0, scaling=Llama3())
    q, k = apply_rope(q, positions, rope), apply_rope(k, positions, rope)

Of the features of a head the first r are rotated, in f = r/2 pairs, each with a frequency.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxattn import _rope_config
from jaxattn._axes import AnyArray, accumulator
from jaxattn._batched import are_indices, check_numbers, fit, uncut
from jaxattn._content import as_array, as_int, show
from jaxattn._rope_angles import angles_of
from jaxattn._rope_scaling import (
    NTK,
    DynamicNTK,
    Frequencies,
    Length,
    Linear,
    Llama3,
    LongRoPE,
    Scaling,
    YaRN,
    check_positive,
)
from jaxattn._value import Sizes

__all__ = [
    "HALF",
    "INTERLEAVED",
    "NTK",
    "DynamicNTK",
    "Layout",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Rope",
    "Scaling",
    "YaRN",
    "apply_rope",
    "rotate",
]


class Layout(Enum):
    """Which two features turn together, of r that are rotated.

    HALF: i and i + r/2, as in GPT-NeoX, and in Llama as transformers has it.
    INTERLEAVED: 2i and 2i + 1, as in the paper, in GPT-J, and in Llama as Meta has it.
    """

    HALF = "half"
    INTERLEAVED = "interleaved"

    def __repr__(self) -> str:
        return self.name


HALF, INTERLEAVED = Layout.HALF, Layout.INTERLEAVED


@jax.tree_util.register_static
@dataclass(frozen=True)
class Rope:
    """A rotary position embedding. All of it belongs to the compiled program.

    It has a hash, and is a pytree without leaves: it may be a static argument of `jit` or an
    ordinary one.

    rotary_dim: how many features of a head are rotated, the first ones; even.
    theta: the longest wavelength is about 2π·theta positions; above 1.
    layout: which features turn together, HALF or INTERLEAVED.
    scaling: one of `Linear`, `NTK`, `DynamicNTK`, `YaRN`, `Llama3` and `LongRoPE`, or None.
    Source: Su et al. 2021, "RoFormer", section 3.2.2; a part of the features, Black et al. 2022,
      "GPT-NeoX-20B".
    """

    rotary_dim: int
    theta: float = 10000.0
    layout: Layout = HALF
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        for name in ("rotary_dim", "theta"):
            object.__setattr__(self, name, as_int(getattr(self, name)))
        r = self.rotary_dim
        if not isinstance(r, Integral) or r < 2 or r % 2:
            raise ValueError(
                f"features are rotated in pairs: rotary_dim is an even number, at least 2, got "
                f"{show(r)}; round it to an even one, or leave one feature out"
            )
        check_positive(self, "theta")
        if self.theta <= 1:
            raise ValueError(
                f"theta is above 1, for wavelengths that grow, got {self.theta!r}; the usual one "
                f"is 10000"
            )
        if not isinstance(self.layout, Layout):
            raise TypeError(f"the layout is HALF or INTERLEAVED, got {self.layout!r}; pass either")
        if not isinstance(self.scaling, Scaling | None):
            raise TypeError(
                f"the scaling is a value such as Linear(factor=4.0), or None, got "
                f"{self.scaling!r}; for a mapping use Rope.from_config(config)"
            )
        self.frequencies(1)  # or an error

    @classmethod
    def from_config(cls, config: Mapping[str, Any], layout: Layout = HALF) -> "Rope":
        """As the config of a model in Hugging Face's transformers states it.

        Read are rope_parameters or rope_scaling (with rope_type default, linear, dynamic, yarn,
        llama3 or longrope), rope_theta (10000 if there is none), head_dim or the two sizes that
        give it, partial_rotary_factor, and the older names of GPT-J and GPT-NeoX.

        Args:
          config: what `json.load` makes of config.json.
          layout: no config states it. Weights made for transformers are HALF, but for GPT-J,
            CodeGen, Cohere, GLM, DeepSeek and a few others.
        Raises:
          ValueError: the type is unknown; a key is missing, or there is one that the type does not
            read, which may mean something; kinds of layers have embeddings of their own.
          TypeError: no mapping.
        """
        rotary_dim, theta, scaling = _rope_config.read(config)
        return cls(rotary_dim, theta, layout, scaling)

    @property
    def amplitude(self) -> float:
        """What rotated features are multiplied by: the attention factor of `YaRN` and `LongRoPE`.

        Logits have its square.
        """
        return 1.0 if self.scaling is None else self.scaling.amplitude

    def frequencies(self, length: Length = None) -> Frequencies:
        """Radians per position of each pair of features: the "inverse frequencies" of much code.

        Args:
          length: how many tokens a sequence has, those in a cache included: a number, or integers
            [*b]. Read by `DynamicNTK` and `LongRoPE` alone, which need it.
        Returns:
          [f] as NumPy float64, or [*b f] in the default float dtype of jax where the length
          is an array.
        Raises:
          ValueError: there is no length, and the scaling needs one.
        """
        plain = self.theta ** (-np.arange(0, self.rotary_dim, 2) / self.rotary_dim)
        if self.scaling is None:
            return plain
        if length is None and self.scaling.NEEDS_LENGTH:
            raise ValueError(
                f"the frequencies of {type(self.scaling).__name__} depend on the length of the "
                f"sequence, got none; pass length=, the same for queries and keys"
            )
        length = int(length) if isinstance(length, Integral) else length
        return self.scaling.frequencies(plain, self.theta, length)

    def cos_sin(
        self, positions: Integer[AnyArray, "*#b t"], length: Length = None, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "... t f"], Float[Array, "... t f"]]:
        """Cosine and sine of the angles, times the amplitude: what `rotate` takes.

        They may be computed once for all layers, and for queries and keys.

        Args:
          positions: as in `apply_rope`, with their last axis.
          length: as in `frequencies`; integers broadcast to *b.
          dtype: of the features to rotate.
        Returns:
          cos and sin, in float32, or in float64 for float64.
        """
        positions = _check_positions(positions)
        dtype = accumulator(dtype)
        frequencies = self.frequencies(length)
        if frequencies.ndim > 1:
            frequencies = frequencies[..., None, :]
        if dtype == jnp.float64:
            angles = positions.astype(dtype)[..., None] * frequencies
        else:
            angles = angles_of(positions, frequencies)
        amplitude = float(self.amplitude)
        return jnp.cos(angles) * amplitude, jnp.sin(angles) * amplitude


def apply_rope(
    x: Float[AnyArray, "*b t h d"],
    positions: Integer[AnyArray, "*#b #t"],
    rope: Rope,
    length: Length = None,
) -> Float[Array, "*b t h d"]:
    """Turns the features of every head by the angles of its token's position.

    The error of an angle is below 1e-6 at any position if frequencies are known while tracing. If
    they come from a traced length they have float32's rounding, the same at every position: the
    result then still depends on distances alone.

    Args:
      x: queries or keys, before they enter a cache or attention.
      positions: of the tokens, integers that broadcast to [*b t], from -2³¹ to 2³¹ - 1.
      rope: the embedding.
      length: how many tokens the sequence has, those in a cache included: a number, or integers
        that broadcast to [*b]. Needed by `DynamicNTK` and `LongRoPE`, and read by no other.
    Returns:
      x rotated, in its dtype, computed in at least float32. Features from rotary_dim on are x's.
    Raises:
      ValueError: the shapes disagree, or a length is needed.
      TypeError: x is not floating, positions or length are not integers, or rope is no `Rope`.
    Source: Su et al. 2021, "RoFormer", eq. 34.
    """
    x = as_array(x, "x")
    if not isinstance(rope, Rope):
        raise TypeError(f"rope is a Rope, got {show(rope)}; pass Rope(rotary_dim), after positions")
    _check_features(x, rope.rotary_dim)
    sizes = Sizes(x.shape[:-3], h=x.shape[-2], t=x.shape[-3], s=0)
    positions = fit(_check_positions(positions), "positions", sizes, "t")
    if isinstance(length, bool):
        raise TypeError(f"length is a number of tokens, got {length!r}; pass an integer")
    length = int(length) if isinstance(length, Integral) else length
    length = check_numbers(length, "length", sizes)
    return _rotate(x, *rope.cos_sin(positions, length, x.dtype), rope.layout)


def rotate(
    x: Float[AnyArray, "*b t h d"],
    cos: Float[AnyArray, "*#b #t f"],
    sin: Float[AnyArray, "*#b #t f"],
    layout: Layout = HALF,
) -> Float[Array, "*b t h d"]:
    """`apply_rope` for a cosine and sine that are at hand, from `Rope.cos_sin`.

    Args:
      x: queries or keys.
      cos, sin: of each position and pair of features; they broadcast to [*b t f].
      layout: of the `Rope` that they come from.
    Returns:
      x with its first r features rotated, in its dtype.
    Raises:
      ValueError: the shapes disagree.
      TypeError: x is not floating.
    """
    x, cos, sin = as_array(x, "x"), as_array(cos, "cos"), as_array(sin, "sin")
    _check_features(x, 2 * cos.shape[-1] if cos.ndim else 0)
    full = (*x.shape[:-2], cos.shape[-1] if cos.ndim else 0)
    extra = len(full) - cos.ndim
    if (
        cos.shape != sin.shape
        or extra < 0
        or any(a not in (1, b) for a, b in zip(cos.shape, full[extra:], strict=True))
    ):
        raise ValueError(
            f"cos and sin have one shape, which broadcasts to [*b t f] = {list(full)}, got "
            f"{cos.shape} and {sin.shape}; they have no axis of heads"
        )
    return _rotate(x, cos, sin, layout)


def _rotate(x: Array, cos: Array, sin: Array, layout: Layout) -> Array:
    """Every feature times cos, and its partner times ±sin: forward and backward in one pass."""
    r = 2 * cos.shape[-1]
    cos, sin = cos[..., None, :], sin[..., None, :]
    turning = x[..., :r].astype(accumulator(x.dtype))
    if layout is HALF:
        first, second = jnp.split(turning, 2, -1)
        partner = jnp.concatenate([second, first], -1)
        cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
        turned = turning * cos + partner * sin
    else:
        pairs = turning.reshape(*turning.shape[:-1], r // 2, 2)
        sin = jnp.stack([-sin, sin], -1)
        turned = (pairs * cos[..., None] + pairs[..., ::-1] * sin).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x.dtype), x[..., r:]], -1)


def _check_features(x: Array, r: int) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x holds floating-point numbers, got {show(x)}; cast it first")
    if x.ndim < 3:
        raise ValueError(
            f"x has axes [*b t h d], at least 3, got shape {x.shape}; for one head pass "
            f"x[:, None, :]"
        )
    if r > x.shape[-1]:
        raise ValueError(
            f"rotary_dim is at most the size of a head, got {r} and d={x.shape[-1]} from x "
            f"{x.shape}; x has axes [*b t h d]"
        )


def _check_positions(positions: Any) -> Array:
    positions = uncut(positions, "positions")
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(
            f"positions are integers, got {show(positions)}; for the scaling of positions pass "
            f"Linear(factor) to the Rope, else cast them"
        )
    if isinstance(positions, np.ndarray) and not are_indices(positions):
        raise ValueError(
            f"positions are below 2**31, got {positions.min()} to {positions.max()}; subtract a "
            f"number from all of them: what rope shows depends on distances only"
        )
    return jnp.asarray(positions)

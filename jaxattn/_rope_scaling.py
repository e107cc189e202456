"""Scalings of rotary frequencies, by which a model reads more tokens than it was trained on."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxattn._axes import AnyInteger
from jaxattn._content import show

Length: TypeAlias = Integer[AnyInteger, "*#b"] | None
Frequencies: TypeAlias = Float[np.ndarray, " f"] | Float[Array, "*#b f"]


class Scaling:
    """Base of scalings. For one of your own, write a frozen dataclass of plain numbers.

    NEEDS_LENGTH: whether the frequencies depend on the length of the sequence.
    """

    NEEDS_LENGTH: ClassVar[bool] = False

    @property
    def amplitude(self) -> float:
        """What rotated features are multiplied by, in queries and in keys."""
        return 1.0

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        """The scaled frequencies, given theta^(-i/f), i = 0..f-1, in radians per position.

        length: an int or integers [*b], and None only where it is not needed.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation: every frequency divided by `factor`.

    Source: Chen et al. 2023, arxiv.org/abs/2306.15595.
    """

    factor: float

    def __post_init__(self) -> None:
        check_positive(self, "factor")

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        return plain / self.factor


@dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware, fixed: theta · factor^(r/(r-2)) in place of theta, for r rotated features.

    The highest frequency stays, the lowest is divided by `factor`.

    Source: Peng et al. 2023, arxiv.org/abs/2309.00071, definition 1.
    """

    factor: float

    def __post_init__(self) -> None:
        check_positive(self, "factor")

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        return plain * self.factor ** -_depth(plain)


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """`NTK` with a factor that grows with the sequence: 1 until it exceeds the original length.

    Then it is factor · length / original_max_position_embeddings - (factor - 1). Queries and keys
    take the same length, so that of keys in a cache has to be the one of the queries to come: keep
    keys unrotated, or choose the length beforehand.

    factor: 1 is the paper's; models have their own.
    original_max_position_embeddings: in positions.
    Source: Peng et al. 2023, "YaRN", section 3.3; with a factor, the code of transformers.
    """

    NEEDS_LENGTH: ClassVar[bool] = True

    factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        check_positive(self, "factor", "original_max_position_embeddings")

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        if isinstance(length, int):
            return plain * self._grown(length) ** -_depth(plain)
        return plain * jnp.power(self._grown(_real(length)), -_depth(plain))

    def _grown(self, length: Any) -> Any:
        most = max if isinstance(length, int) else jnp.maximum
        beyond = most(length / self.original_max_position_embeddings - 1, 0)
        return 1 + self.factor * beyond


@dataclass(frozen=True)
class YaRN(Scaling):
    """Frequencies that turn often stay, those that turn seldom are divided by `factor`.

    In between the share is linear in the index of the frequency, as in the code published with the
    paper (and in the models that use it); in the paper it is linear in the number of turns.

    factor: how many times longer than the original the sequences may be.
    original_max_position_embeddings: in positions.
    beta_fast, beta_slow: in turns within the original length: where the share begins and ends.
    attention_factor: the amplitude. If it is None, a(1), or a(mscale) / a(mscale_all_dim) where
      both are given and not 0, with a(m) = 0.1 · m · ln(factor) + 1. A model with mscale_all_dim
      may change the scale of its logits too; that is not done here.
    truncate: whether the two ends are rounded to whole indices, outwards.
    Source: Peng et al. 2023, "YaRN", definitions 2 and 3, and the code published with it; mscale,
      DeepSeek-AI 2024, "DeepSeek-V2", and the code published with it.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
        if self.attention_factor is not None:
            check_positive(self, "attention_factor")
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"YaRN needs beta_fast above beta_slow, got beta_fast={self.beta_fast!r} and "
                f"beta_slow={self.beta_slow!r}; the defaults are 32 and 1"
            )

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._amplitude(self.mscale) / self._amplitude(self.mscale_all_dim)
        return self._amplitude(1.0)

    def _amplitude(self, weight: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        f = len(plain)

        def index(turns: float) -> float:
            """Of the frequency that makes so many turns within the original length."""
            wavelength = self.original_max_position_embeddings / turns
            return f * math.log(wavelength / (2 * math.pi)) / math.log(theta)

        first, last = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * f - 1)  # 2f - 1 as published: beyond the last
        if first == last:
            last += 1e-3
        divided = np.clip((np.arange(f) - first) / (last - first), 0, 1)
        return _mixed(plain, plain / self.factor, divided)


@dataclass(frozen=True)
class Llama3(Scaling):
    """Frequencies that turn often stay, those that turn seldom are divided by `factor`.

    In between the share is linear in the number of turns. The defaults are Llama 3.1's; Llama 3.2
    has factor 32.

    original_max_position_embeddings: in positions.
    low_freq_factor, high_freq_factor: in turns within the original length: divided below the
      first, left above the second.
    Source: the code published with Llama 3.1, github.com/meta-llama/llama-models, apply_scaling.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        check_positive(self, "factor", "low_freq_factor", "original_max_position_embeddings")
        check_positive(self, "high_freq_factor")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"Llama3 needs high_freq_factor above low_freq_factor, got "
                f"high_freq_factor={self.high_freq_factor!r} and "
                f"low_freq_factor={self.low_freq_factor!r}; the defaults are 4 and 1"
            )

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        left = np.clip((turns - low) / (high - low), 0, 1)
        return _mixed(plain / self.factor, plain, left)


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """Each frequency divided by a factor of its own, found by search.

    Queries and keys take the same length, as with `DynamicNTK`.

    factor: how many times longer than the original the sequences may be.
    short_factor, long_factor: one number for each frequency, for sequences up to the original
      length and for longer ones.
    original_max_position_embeddings: in positions.
    attention_factor: the amplitude. If it is None, √(1 + ln(factor) / ln(original length)), for
      short sequences too.
    Source: Ding et al. 2024, "LongRoPE", and the code published with it; two sets of factors,
      Abdin et al. 2024, "Phi-3 Technical Report", and the code published with it.
    """

    NEEDS_LENGTH: ClassVar[bool] = True

    factor: float
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            numbers = np.asarray(getattr(self, name), float)
            if numbers.ndim != 1 or not (numbers > 0).all():
                raise ValueError(
                    f"LongRoPE.{name} holds one number above 0 for each frequency, got "
                    f"{getattr(self, name)!r}; pass a tuple of them"
                )
            object.__setattr__(self, name, tuple(numbers.tolist()))  # for the hash
        check_positive(self, "factor", "original_max_position_embeddings")
        if self.attention_factor is not None:
            check_positive(self, "attention_factor")

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        growth = math.log(max(self.factor, 1)) / math.log(self.original_max_position_embeddings)
        return math.sqrt(1 + growth)

    def frequencies(
        self, plain: Float[np.ndarray, " f"], theta: float, length: Length
    ) -> Frequencies:
        short, long = np.array(self.short_factor), np.array(self.long_factor)
        if not len(short) == len(long) == len(plain):
            raise ValueError(
                f"LongRoPE needs one factor for each frequency, half of rotary_dim, "
                f"{len(plain)} of them, got {len(short)} in short_factor and {len(long)} in "
                f"long_factor; change rotary_dim or the factors"
            )
        most = self.original_max_position_embeddings
        if isinstance(length, int):
            return plain / (long if length > most else short)
        return jnp.where(jnp.asarray(length)[..., None] > most, plain / long, plain / short)


def _depth(plain: Float[np.ndarray, " f"]) -> Float[np.ndarray, " f"]:
    """From 0 at the highest frequency to 1 at the lowest."""
    return np.linspace(0, 1, len(plain))


def _mixed(a: Any, b: Any, share: Any) -> Any:
    return (1 - share) * a + share * b


def _real(length: Any) -> Any:
    return jnp.asarray(length, jnp.result_type(float))[..., None]


def check_positive(value: Any, *names: str) -> None:
    for name in names:
        x = getattr(value, name)
        if isinstance(x, bool) or not isinstance(x, Real) or not 0 < float(x) < math.inf:
            raise ValueError(
                f"{type(value).__name__}.{name} is a plain number above 0, got {show(x)}; it "
                f"belongs to the compiled program, so that a traced one cannot be taken"
            )

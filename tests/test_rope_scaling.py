"""Scalings of rotary frequencies, against the published formulas in float64."""

# pyright: reportArgumentType=false

import math
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from oracle import rope as oracle

from jaxattn.rope import (
    HALF,
    NTK,
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    Rope,
    Scaling,
    YaRN,
    apply_rope,
)

SHORT, LONG = (1.0, 1.25, 1.5, 2.0, 2.5), (1.0, 2.0, 4.0, 8.0, 16.0)

# name: rotary_dim, theta, the scaling, and the frequencies for sequences of 100 and of 9000 tokens.
FORMULAS = {
    "none": (10, 1e4, None, lambda _: oracle.plain(10, 1e4)),
    "linear": (10, 1e4, Linear(4.0), lambda _: oracle.linear(10, 1e4, 4.0)),
    "ntk": (10, 1e4, NTK(8), lambda _: oracle.ntk(10, 1e4, 8)),
    "dynamic": (
        128,
        1e4,
        DynamicNTK(2.0, 2048),
        lambda length: oracle.dynamic(128, 1e4, 2.0, 2048, length),
    ),
    "yarn": (128, 1e4, YaRN(16.0, 4096), lambda _: oracle.yarn(128, 1e4, 16.0, 4096)),
    "yarn-not-truncated": (
        64,
        150000,
        YaRN(32.0, 4096, 16.0, 2.0, truncate=False),
        lambda _: oracle.yarn(64, 150000, 32.0, 4096, 16.0, 2.0, False),
    ),
    "yarn-beyond-the-last": (
        64,
        1e4,
        YaRN(4.0, 131072),
        lambda _: oracle.yarn(64, 1e4, 4.0, 131072),
    ),
    "yarn-few-features": (6, 1e4, YaRN(4.0, 64), lambda _: oracle.yarn(6, 1e4, 4.0, 64)),
    "llama3": (128, 5e5, Llama3(), lambda _: oracle.llama3(128, 5e5, 8.0, 1.0, 4.0, 8192)),
    "llama3.2": (64, 5e5, Llama3(32), lambda _: oracle.llama3(64, 5e5, 32, 1.0, 4.0, 8192)),
    "longrope": (
        10,
        1e4,
        LongRoPE(32.0, SHORT, LONG, 4096),
        lambda length: oracle.longrope(10, 1e4, SHORT, LONG, 4096, length),
    ),
}


@pytest.mark.parametrize("length", [100, 9000])
@pytest.mark.parametrize("name", FORMULAS)
def test_frequencies_are_those_of_the_formula(name, length):
    r, theta, scaling, want = FORMULAS[name]
    got = Rope(r, theta, HALF, scaling).frequencies(length)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want(length), rtol=1e-13)


def test_ends_of_ntk():
    """The highest frequency stays and the lowest is divided by the factor."""
    plain, scaled = Rope(128).frequencies(), Rope(128, scaling=NTK(8.0)).frequencies()
    np.testing.assert_allclose((plain / scaled)[[0, -1]], [1, 8], rtol=1e-13)
    assert (np.diff(plain / scaled) > 0).all()
    assert Rope(2, scaling=NTK(8.0)).frequencies() == 1


def test_amplitudes():
    """As published: 0.1 ln(factor) + 1; DeepSeek-V2's; √(1 + ln(factor)/ln(original))."""
    amplitude = lambda scaling: Rope(10, scaling=scaling).amplitude
    assert amplitude(Llama3()) == amplitude(None) == 1
    assert amplitude(YaRN(0.5, 4096)) == amplitude(LongRoPE(0.5, SHORT, LONG, 4096)) == 1
    assert math.isclose(amplitude(YaRN(16.0, 4096)), 0.1 * math.log(16) + 1)
    v2 = YaRN(40.0, 4096, mscale=0.707, mscale_all_dim=0.5)
    assert math.isclose(amplitude(v2), (0.0707 * math.log(40) + 1) / (0.05 * math.log(40) + 1))
    assert amplitude(YaRN(16.0, 4096, attention_factor=1.5)) == 1.5
    assert math.isclose(amplitude(LongRoPE(32.0, SHORT, LONG, 4096)), math.sqrt(1 + 5 / 12))
    assert amplitude(LongRoPE(32.0, SHORT, LONG, 4096, 1.5)) == 1.5


@dataclass(frozen=True)
class Constant(Scaling):
    """One of a user's own."""

    value: float
    amplitude: float = 2.0  # pyright: ignore[reportIncompatibleMethodOverride]

    def frequencies(self, plain, theta, length):
        return np.full_like(plain, self.value)


@pytest.mark.parametrize("turns", [0.25, 1.25, -0.75])
def test_a_scaling_of_ones_own(turns):
    rope = Rope(2, scaling=Constant(2 * math.pi * turns))
    x = np.array([[[3.0, 4.0]]], np.float32)
    got = jax.jit(apply_rope, static_argnums=2)(x, 1, rope)
    np.testing.assert_allclose(got, [[[-8.0, 6.0]]], atol=1e-6)

"""Rotary embeddings in NumPy float64: complex numbers, multiplied. Imports no jax and no jaxattn.

A pair of features is the number first + i·second. At position p it is multiplied by
amplitude · exp(i · p · frequency), and so is a tangent; a cotangent by the conjugate.
"""

import math

import numpy as np
from numpy import ndarray


def rotate(x: ndarray, positions, frequencies, interleaved=False, amplitude=1.0, back=False):
    """x [*b t h d] in float64; the frequencies [f] or [*b 1 f]. back: the cotangent of x."""
    angle = np.asarray(positions, np.float64)[..., None] * frequencies
    turn = amplitude * np.exp((-1j if back else 1j) * angle)[..., None, :]
    f = turn.shape[-1]
    first = slice(0, 2 * f, 2) if interleaved else slice(0, f)
    second = slice(1, 2 * f, 2) if interleaved else slice(f, 2 * f)
    out = np.asarray(x, np.float64).copy()
    pairs = (out[..., first] + 1j * out[..., second]) * turn
    out[..., first], out[..., second] = pairs.real, pairs.imag
    return out


def plain(r, theta=10000.0):
    return np.array([theta ** (-2 * i / r) for i in range(r // 2)])


def linear(r, theta, factor):
    """A position p is at p / factor."""
    return plain(r, theta) / factor


def ntk(r, theta, factor):
    """A larger base: Peng et al. 2023, eq. 16."""
    return plain(r, theta * factor ** (r / (r - 2)))


def dynamic(r, theta, factor, original, length):
    length = max(length, original)
    return ntk(r, theta, factor * length / original - (factor - 1))


def yarn(r, theta, factor, original, fast=32.0, slow=1.0, truncate=True):
    """Index by index: which has turned how often within the original length, and the ramp."""

    def index_of(turns):
        """Where original · theta^(-2i/r) = 2π · turns."""
        return r * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))

    begin, end = index_of(fast), index_of(slow)
    if truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, r - 1)
    frequencies = []
    for i, one in enumerate(plain(r, theta)):
        kept = 1 - min(max((i - begin) / (end - begin), 0), 1)
        frequencies.append(one / factor * (1 - kept) + one * kept)
    return np.array(frequencies)


def llama3(r, theta, factor, low, high, original):
    """Three cases by wavelength."""
    frequencies = []
    for one in plain(r, theta):
        wavelength = 2 * math.pi / one
        if wavelength < original / high:
            frequencies.append(one)
        elif wavelength > original / low:
            frequencies.append(one / factor)
        else:
            kept = (original / wavelength - low) / (high - low)
            frequencies.append((1 - kept) * one / factor + kept * one)
    return np.array(frequencies)


def longrope(r, theta, short, long, original, length):
    return plain(r, theta) / np.array(long if length > original else short)

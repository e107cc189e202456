"""How numbers are written into the page.

Maps are one byte a cell, on a logarithmic scale: `quantise`. Statistics and top keys are float32,
to the bit. All are compressed with zlib and written in base64.
"""

import base64
import zlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

DECADES = 5.0
FLOOR = 10.0**-DECADES
HIDDEN, NAN, LOWEST, HIGHEST = 0, 1, 2, 255
STEPS = HIGHEST - LOWEST


def quantise(
    weights: Float[np.ndarray, "*n"], hidden: Bool[np.ndarray, "*n"]
) -> UInt8[np.ndarray, "*n"]:
    """Weights from 0 to 1 as bytes: 255 is 1, and each step below is 4.7 % less, to 1e-5.

    2 is all that is not above 1e-5. 1 is NaN, and 0 what is hidden.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.round((np.log10(np.clip(weights, FLOOR, 1)) / DECADES + 1) * STEPS) + LOWEST
    codes = np.where(np.isnan(weights), NAN, np.nan_to_num(steps))
    return np.where(hidden, HIDDEN, codes).astype(np.uint8)


def restore(codes: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """What the page takes a byte for. NaN for what is hidden too; 0 for what is at the floor."""
    shown = 10.0 ** (DECADES * ((codes.astype(float) - LOWEST) / STEPS - 1))
    return np.where(codes < LOWEST, np.nan, np.where(codes == LOWEST, 0, shown))


def pack(array: Any) -> dict[str, Any]:
    """An array as the page reads it: its kind, its shape, and its bytes in base64.

    Of numbers of several bytes all first bytes come first, then all second ones, which zlib
    compresses better.
    """
    array = np.ascontiguousarray(array)
    kinds = {"f": "f4", "u": "u1" if array.dtype.itemsize == 1 else "u4", "i": "i4", "b": "u1"}
    kind = kinds[array.dtype.kind]
    plain = array.astype(f"<{kind}")
    planes = plain.reshape(-1).view(np.uint8).reshape(-1, plain.dtype.itemsize).T
    packed = zlib.compress(planes.tobytes(), 9 if plain.nbytes < 1 << 20 else 6)
    return {"kind": kind, "shape": list(array.shape), "data": base64.b64encode(packed).decode()}

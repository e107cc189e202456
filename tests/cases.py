"""The problems that tests run: shapes, a dtype, and a mask both as the package's and as booleans.

Axes that must not be confused have different lengths, and the tiled cases are longer than
`TILED`'s blocks and no multiple of them, so that tiles are ragged, skipped and clamped.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import oracle
from catalogue import MASKS, SQUARE, TALL, WIDE
from numpy import ndarray
from rules import Build, Masks, Shape, both, causal, dense, everything, packed, window

import jaxattn as ja

DTYPES = (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)
TILED = ja.Blockwise(q_block=16, k_block=32)
BACKENDS = (ja.Reference(), ja.Blockwise(), TILED)


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    build: Build
    dtype: Any = np.float32
    scale: float | None = None

    def __str__(self) -> str:
        return self.name if self.dtype == np.float32 else f"{self.name}-{self.dtype.__name__}"

    def to(self, dtype: Any) -> "Case":
        return replace(self, dtype=dtype)

    def precision(self) -> AbstractContextManager:
        """Where float64 exists if the case needs it, and does not if it does not."""
        return jax.enable_x64(self.dtype == np.float64)

    def draw(self, what: str, *shapes: tuple[int, ...]) -> tuple[ndarray, ...]:
        """Normal numbers rounded to the dtype; the same for the same case, `what` and shapes."""
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {what}".encode()))
        return tuple(rng.standard_normal(shape).astype(self.dtype) for shape in shapes)

    def inputs(self) -> tuple[ndarray, ...]:
        return self.draw("inputs", self.shape.q, self.shape.k, self.shape.v)

    def tangents(self) -> tuple[ndarray, ...]:
        return self.draw("tangents", self.shape.q, self.shape.k, self.shape.v)

    def cotangents(self) -> tuple[ndarray, ndarray]:
        out, lse = self.draw("cotangents", self.shape.out, self.shape.out[:-1])
        return out, lse.astype(oracle.accumulator(self.dtype))

    @property
    def asked(self) -> tuple[Any, Any]:
        """(mask, positions), as the package is given them."""
        return self.masks().mask, self.shape.positions

    def masks(self) -> Masks:
        return self.build(self.shape, np.random.default_rng(zlib.crc32(self.name.encode())))


SMALL = Shape((2,), 11, 13, 6, 3, 5, 7)
POINT = SMALL._replace(t=1, s=1)
MANY = Shape((11,), 257, 257, 4, 2, 3, 5)
LONG = Shape((), 577, 577, 8, 4, 11, 7)
LONGER = Shape((), 1031, 1031, 4, 1, 11, 7)

# Every mask of the catalogue, and shapes.
CASES = (
    *(Case(name, *rule) for name, rule in MASKS.items()),
    Case("small", SMALL, everything),
    Case("everything-tall-scaled", TALL, everything, scale=0.37),
    Case("one-query", WIDE._replace(t=1), everything),
    Case("one-pair", POINT, everything),
    Case("unbatched", SMALL._replace(batch=()).at(ja.END), causal()),
    Case("rank-2-batch", WIDE._replace(batch=(2, 3)).at(ja.END), causal()),
    Case("one-head-each", SQUARE._replace(h=3), causal()),
    Case("one-shared-head", SQUARE._replace(h=5, n=1), causal()),
    Case("sorted", LONG.at(np.arange(577) // 2, np.arange(577) - 9), window(60, 5)),
    Case("many-batches", MANY, everything),
    Case("many-batches-dense", MANY, dense("b1ts")),
    Case("long", LONG, everything),
    Case("long-causal", LONG, causal()),
    Case("longer-window", LONGER, window(100)),
    Case("longer-causal-segments", LONGER, both(causal(), packed)),
    Case("longer-wide", LONGER._replace(t=577).at(ja.END), causal()),
)
BY_NAME = {case.name: case for case in CASES}


def named(*names: str) -> tuple[Case, ...]:
    return tuple(BY_NAME[name] for name in names)

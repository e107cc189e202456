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
from numpy import ndarray
from rules import (
    Build,
    Masks,
    Shape,
    both,
    causal,
    dense,
    either,
    everything,
    inverse,
    lengths,
    looked_up,
    packed,
    prefix,
    ring,
    scattered,
    shuffled,
    strided,
    window,
)

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
SQUARE = Shape((2,), 67, 67, 6, 3, 5, 7)
WIDE = Shape((2,), 67, 101, 6, 3, 5, 7)
TALL = Shape((2,), 101, 67, 6, 3, 5, 7)
ONE = Shape((2,), 1, 101, 6, 3, 5, 7)
POINT = Shape((2,), 1, 1, 6, 3, 5, 7)
MANY = Shape((11,), 257, 257, 4, 2, 3, 5)
LONG = Shape((), 577, 577, 8, 4, 11, 7)
LONGER = Shape((), 1031, 1031, 4, 1, 11, 7)
STARTS = np.array([3, -20], np.int32)
WIDE_0, TALL_0, ONE_0 = (shape.at(0) for shape in (WIDE, TALL, ONE))
WIDE_END, TALL_END, ONE_END = (shape.at(ja.END) for shape in (WIDE, TALL, ONE))

CASES = (
    Case("small", SMALL, everything),
    Case("everything", WIDE, everything),
    Case("everything-tall-scaled", TALL, everything, scale=0.37),
    Case("one-query", ONE, everything),
    Case("one-pair", POINT, everything),
    Case("unbatched", SMALL._replace(batch=()).at(ja.END), causal()),
    Case("rank-2-batch", WIDE._replace(batch=(2, 3)).at(ja.END), causal()),
    Case("one-head-each", SQUARE._replace(h=3), causal()),
    Case("one-shared-head", SQUARE._replace(h=5, n=1), causal()),
    Case("causal", SQUARE, causal()),
    Case("causal-top-left-wide", WIDE_0, causal()),
    Case("causal-top-left-tall", TALL_0, causal()),
    Case("causal-end-wide", WIDE_END, causal()),
    Case("causal-end-tall", TALL_END, causal()),
    Case("causal-ahead", SQUARE, causal(5)),
    Case("causal-behind", SQUARE, causal(-40)),
    Case("causal-beyond", SQUARE, causal(-67)),
    Case("causal-array", WIDE.at(STARTS), causal()),
    Case("causal-decode", ONE_END, causal()),
    Case("causal-decode-first", ONE_0, causal()),
    Case("window", SQUARE, window(17)),
    Case("window-both-sides", SQUARE, window(3, 5)),
    Case("window-self", SQUARE, window(0, 0)),
    Case("window-wider", SQUARE, window(200, 200)),
    Case("window-unbounded-left", SQUARE, window(None, 4)),
    Case("window-unbounded-right", SQUARE, window(4, None)),
    Case("window-unbounded", SQUARE, window(None, None)),
    Case("window-end-wide", WIDE_END, window(9, 2)),
    Case("window-end-tall", TALL_END, window(9, 2)),
    Case("window-top-left-tall", TALL_0, window(9, 2)),
    Case("window-array", WIDE.at(STARTS[:, None], 1), window(9, 2, 1)),
    Case("window-decode", ONE_END, window(40)),
    Case("lengths-keys", WIDE, lengths(k=np.array([70, 5], np.int32))),
    Case("lengths-both", WIDE, lengths(np.array([67, 30], np.int32), np.array([0, 64], np.int32))),
    Case("lengths-ints", WIDE, lengths(50, 33)),
    Case("lengths-beyond", WIDE, lengths(500, 500)),
    Case("segments", SQUARE, packed),
    Case("segments-scattered", WIDE, scattered),
    Case("dense-ts", WIDE, dense("ts")),
    Case("dense-b1ts", WIDE, dense("b1ts")),
    Case("dense-1hts", WIDE, dense("1hts")),
    Case("dense-bhts", WIDE, dense("bhts")),
    Case("dense-keys", WIDE, dense("b11s")),
    Case("dense-queries", WIDE, dense("t1")),
    Case("dense-sparse", WIDE, dense("b1ts", share=0.01)),
    Case("causal-window", SQUARE, both(causal(), window(20, 20))),
    Case("causal-end-window-end", WIDE_END, both(causal(), window(20, 20))),
    Case("causal-segments", SQUARE, both(causal(), packed)),
    Case("causal-lengths", WIDE_END, both(causal(), lengths(k=np.array([90, 40], np.int32)))),
    Case("causal-dense", SQUARE, both(causal(), dense("1hts"))),
    Case("window-segments-lengths", SQUARE, both(window(11, 4), packed, lengths(60, 50))),
    Case("two-windows", SQUARE, both(window(30, 10), window(10, 30))),
    Case("everything-and", SQUARE, both(everything, causal())),
    Case("prefix", WIDE_END, prefix(20)),
    Case("prefix-array", WIDE.at(3), prefix(np.array([40, 0], np.int32))),
    Case("ring-buffer", ring(WIDE), window(40)),
    Case("shuffled", shuffled(WIDE), causal()),
    Case("shuffled-window", shuffled(WIDE), both(window(30, 9), inverse(window(3)))),
    Case("shuffled-prefix", shuffled(WIDE), prefix(np.array([4, 0], np.int32))),
    Case("shuffled-strided", shuffled(WIDE), strided()),
    Case("sorted", LONG.at(np.arange(577) // 2, np.arange(577) - 9), window(60, 5)),
    Case("strided", WIDE_0, strided()),
    Case("looked-up", WIDE_0, looked_up),
    Case("not-causal", WIDE_END, inverse(causal())),
    Case("window-or-sinks", WIDE_END, either(window(11), lengths(k=3))),
    Case("segments-or-not-window", SQUARE, either(packed, inverse(window(30, 20)))),
    Case("causal-and-either", SQUARE, both(causal(), either(packed, dense("1hts", 0.05)))),
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

"""A whole call of `attend` with everything that it takes, checked against the oracle."""

# pyright: reportArgumentType=false, reportCallIssue=false

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import scored
from rules import Build, Shape, everything
from tolerance import assert_close, eps, peak

import jaxattn as ja


@dataclass(frozen=True)
class Asked:
    """sinks: the number they are drawn around; None for none. rate: of dropout."""

    shape: Shape
    mask: Build = everything
    score: scored.Build = scored.nothing
    sinks: float | None = None
    rate: float = 0.0
    dtype: Any = np.float32
    seed: int = 0
    k_factor: float = field(default=1.0, kw_only=True)

    def check(self, backend) -> None:
        """out, lse and every gradient are within budget of the truth."""
        with jax.enable_x64(np.dtype(self.dtype) == np.float64):
            self._check(backend)

    def _check(self, backend) -> None:
        rng, dtype = np.random.default_rng(self.seed), self.dtype
        wide = oracle.accumulator(dtype)
        shapes = self.shape.q, self.shape.k, self.shape.v, self.shape.out
        q, k, v, cot_out = (rng.standard_normal(x).astype(dtype) for x in shapes)
        k = (k * np.asarray(self.k_factor, k.dtype)).astype(dtype)
        cot_lse = rng.standard_normal(self.shape.out[:-1]).astype(wide)
        mask, allowed = self.mask(self.shape, rng)
        arrays, make, items = self.score(self.shape, rng, dtype)
        sinks = None
        if self.sinks is not None:
            sinks = (self.sinks + rng.standard_normal(self.shape.h)).astype(wide)
        scale = np.asarray(0.6, wide)
        dropout = ja.Dropout(self.rate, jax.random.key(self.seed)) if self.rate else None

        def attend(q, k, v, scale, arrays, sinks):
            score = make(arrays)
            given = {"mask": mask, "score": score, "scale": scale, "sinks": sinks}
            given["positions"] = self.shape.positions
            return ja.attend(q, k, v, **given, dropout=dropout, backend=backend)

        inputs = jax.tree.map(jnp.asarray, (q, k, v, scale, arrays, sinks))
        result, pulled = _run(attend, inputs, ja.Attended(cot_out, cot_lse))

        keep = kept(self.shape, dropout, backend) if dropout else True
        extra = oracle.Extra(tuple(items(arrays)), sinks, keep, self.rate)
        low = np.float32 if dtype == np.float64 else dtype
        known = partial(oracle.attention, q, k, v, allowed, scale, extra=extra)
        (out, lse), (low_out, low_lse) = known(), known(dtype=low)
        assert_close(result.out, out, low_out, dtype, "out", recomputed(out, peak(out), lse, dtype))
        assert_close(result.lse, lse, low_lse, wide, "lse")

        known = partial(oracle.gradients, q, k, v, allowed, scale, cot_out, cot_lse, extra=extra)
        want, naive = known(), known(dtype=low)
        near = partial(_near, lse=lse, low=low)
        for name, got, a, b, size in zip("qkv", pulled, want, naive, want.sizes, strict=False):
            near(f"d{name}", got, a, b, size)
        terms = np.abs(np.asarray(q, np.float64)).max() * want.sizes[0].sum() / scale
        near("dscale", pulled[3], want.scale, naive.scale, terms)
        for i, (got, a, b) in enumerate(zip(pulled[4], want.score, naive.score, strict=True)):
            near(f"gradient of array {i}", got, a.value, b.value, a.size)
        if sinks is not None:
            near("dsinks", pulled[5], want.sinks.value, naive.sinks.value, want.sinks.size)


def _run(attend, inputs, cotangents):
    @jax.jit
    def run(inputs, cotangents):
        result, pull = jax.vjp(attend, *inputs)
        return result, pull(cotangents)

    return jax.tree.map(np.asarray, run(inputs, cotangents))


def _near(name, got, want, naive, size, lse, low):
    naive = naive.astype(np.float32 if got.dtype == np.float64 else got.dtype)
    size = recomputed(want, peak(np.asarray(size)), lse, got.dtype)
    assert_close(got, want, naive, got.dtype, name, size)


def recomputed(want, size, lse, dtype) -> float:
    """What rounding acts on: the result in its dtype, and before it the terms in the wider one.

    As in tolerance.recomputed, exp(logits - lse) carries the rounding of the logits.
    """
    return peak(want) + eps(oracle.accumulator(dtype)) / eps(dtype) * size * (1 + peak(lse))


def kept(shape: Shape, dropout, backend):
    """[*b h t s]: the pairs that dropout keeps, read off with unit vectors as values."""
    value = np.broadcast_to(np.eye(shape.s, dtype=np.float32)[:, None, :], (*shape.k[:-1], shape.s))
    q, k = np.zeros((*shape.q[:-1], 1), np.float32), np.zeros((*shape.k[:-1], 1), np.float32)
    given = {"dropout": dropout, "positions": shape.positions, "backend": backend}
    out = ja.attention(q, k, jnp.asarray(value), **given)
    return np.asarray(out).swapaxes(-2, -3) > 0

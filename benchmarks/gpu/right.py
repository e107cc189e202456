"""The stage that compares results and gradients with float64, at sizes of a few tiles.

Inputs are new in every run. Before each of two runs the memory that results will take is filled
with NaN, so that what a kernel does not write shows; the two have to agree in every bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxattn as ja
from benchmarks.gate import Finding, errors
from benchmarks.gpu.child import Case, Setting
from benchmarks.timing import build
from benchmarks.workloads import BFLOAT16, Workload
from tests import oracle
from tests.oracle.scores import Cap, Fixed

F16 = np.dtype(np.float16)
LSE = 1e-4
"""How far off lse may be, as a part of 1 + |lse|."""
OBSERVED = 2.0**-8
"""How far off an observation may be, as a part of its largest value: half of bfloat16's spacing."""


@dataclass(frozen=True)
class Rule:
    """A call and what it means; a function of the number of queries t where it holds arrays."""

    options: Callable[[int], dict[str, Any]] = lambda t: {}
    allowed: Callable[[Any, Any], Any] = lambda i, j: True
    """Of the positions of queries, [t 1], and of keys, [s]."""
    score: Callable[[Any, Any], tuple[Any, ...]] = lambda i, j: ()
    scale: float | None = None
    t: int = 389
    s: int | None = None
    d: int = 64
    e: int | None = None
    heads: int = 4
    kv_heads: int = 2
    dtype: np.dtype = BFLOAT16
    nan: str = ""
    """Which of k and v has one."""


def of(mask: Any = ja.EVERYTHING, **rest: Any) -> Callable[[int], dict[str, Any]]:
    return lambda t: {"mask": mask, **rest}


causal = lambda i, j: j <= i
slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
alibi = lambda i, j: Fixed(-slopes[:, None, None] * np.abs(i - j))
packed = lambda n: np.arange(n) // 90
at_end = lambda i, j: j <= i + 517 - 70
far = lambda i, j: (j <= i) & (i - j <= 60)
CAUSAL = of(ja.Causal())
near_or_first = ja.Window(50) | ja.Lengths(k=9)

RULES = {
    "full": Rule(),
    "causal": Rule(CAUSAL, causal),
    "causal d128": Rule(CAUSAL, causal, d=128),
    "causal d256": Rule(CAUSAL, causal, d=256),
    "causal d80 e40": Rule(CAUSAL, causal, d=80, e=40),
    "full d128, t 1031": Rule(t=1031, d=128),
    "causal f16": Rule(CAUSAL, causal, dtype=F16),
    "full f16 d128": Rule(d=128, dtype=F16),
    "causal, 8 to 1 heads": Rule(CAUSAL, causal, heads=8, kv_heads=1, d=128),
    "end, t 70 s 517": Rule(of(ja.Causal(), positions=ja.END), at_end, t=70, s=517),
    "one query": Rule(of(), t=1, s=517, d=128),
    "window": Rule(of(ja.Window(70)), lambda i, j: (i - 70 <= j) & (j <= i)),
    "window ahead": Rule(of(ja.Window(30, 40)), lambda i, j: (i - 30 <= j) & (j <= i + 40), d=128),
    "prefix": Rule(of(ja.PrefixLM(100)), lambda i, j: (j < 100) | (j <= i)),
    "lengths": Rule(
        of(ja.Lengths(q=np.array([999, 40]), k=np.array([70, 999]))),
        lambda i, j: np.stack([j < 70 + 0 * i, (i < 40) & (j < 999)])[:, None],
    ),
    "segments": Rule(
        lambda t: {"mask": ja.Segments(packed(t)) & ja.Causal()},
        lambda i, j: (i // 90 == j // 90) & (j <= i),
        d=128,
    ),
    "positions": Rule(
        lambda t: {"mask": ja.PrefixLM(9), "positions": ja.Positions(np.arange(t) % 99, 0)},
        lambda i, j: (j < 9) | (j <= i % 99),
    ),
    "or": Rule(of(near_or_first), lambda i, j: ((i - 50 <= j) & (j <= i)) | (j < 9)),
    "not": Rule(of(~ja.Window(50)), lambda i, j: ~((i - 50 <= j) & (j <= i)), d=128),
    "mask function": Rule(
        of(ja.Where(lambda at: (at.q - at.k) % 3 != 1)), lambda i, j: (i - j) % 3 != 1
    ),
    "score function": Rule(
        of(ja.Causal(), score=lambda x, at: 3.0 * jnp.tanh(x / 3.0) - 0.02 * jnp.abs(at.q - at.k)),
        causal,
        lambda i, j: (Cap(3.0), Fixed(-0.02 * np.abs(i - j))),
    ),
    "soft cap": Rule(of(score=ja.SoftCap(2.0)), score=lambda i, j: (Cap(2.0),)),
    "alibi d128": Rule(
        of(ja.Causal(), score=ja.ALiBi(slopes)), causal, lambda *at: (alibi(*at),), d=128
    ),
    "alibi, cap": Rule(
        of(ja.Causal(), score=(ja.ALiBi(slopes), ja.SoftCap(2.0))),
        causal,
        lambda i, j: (alibi(i, j), Cap(2.0)),
    ),
    "negative scale": Rule(of(ja.Causal(), scale=-0.3), causal, scale=-0.3),
    "dropout": Rule(of(ja.Causal(), dropout=ja.Dropout(0.3, np.array([1, 2], np.uint32))), causal),
    "NaN in a key": Rule(of(ja.Window(60)), far, nan="k"),
    "NaN in a value, d128": Rule(of(ja.Window(60)), far, d=128, nan="v"),
}


def right(setting: Setting) -> list[Case]:
    names = list(RULES)[:: setting.size(1, 7)]
    cases = [Case(x, partial(check, setting, RULES[x]), limit=60.0) for x in names]
    return [*cases, Case("observations", partial(observations, setting))]


def check(setting: Setting, rule: Rule) -> dict[str, Any]:
    """Raises AssertionError where something is wrong."""
    t = min(rule.t, setting.size(rule.t, 97))
    s, e = rule.s or t, rule.e or rule.d
    sizes: dict[str, Any] = {"heads": rule.heads, "kv_heads": rule.kv_heads, "features": rule.d}
    its = Workload(t, s, 2, value_features=e, dtype=rule.dtype, gradient=True, **sizes)
    inputs = its.inputs(setting.seed)
    q, k, v, g = inputs[:4]
    dlse = np.random.default_rng(setting.seed + 1).standard_normal(q.shape[:3], np.float32)
    if rule.nan:
        (k if rule.nan == "k" else v)[0, 20, 0, 3] = np.nan
    i, j = np.arange(t)[:, None], np.arange(s)
    options = rule.options(t)
    keep = _kept(options["dropout"], its) if "dropout" in options else True
    extra = oracle.Extra(rule.score(i, j), None, keep, 0.3 if "dropout" in options else 0.0)
    allowed = np.asarray(rule.allowed(i, j))
    out, lse = oracle.attention(q, k, v, allowed, rule.scale, extra=extra)
    sees_nan = np.isnan(out).any(-1)
    g[sees_nan], dlse[sees_nan] = 0, 0
    dlse = np.where(np.isfinite(lse), dlse, 0)
    made = oracle.gradients(q, k, v, allowed, rule.scale, g, dlse, extra=extra)
    want = {"out": out, "dq": made.q, "dk": made.k, "dv": made.v}
    backend: ja.Backend = ja.Blockwise() if setting.dry else ja.Hopper()

    def program(q: Any, k: Any, v: Any, g: Any, dlse: Any) -> Any:
        attend = lambda *x: ja.attend(*x, **options, backend=backend)[:2]
        (out, lse), pull = jax.vjp(attend, q, k, v)
        return (out, *pull((g, dlse)), lse)

    arrays = [jnp.asarray(x, rule.dtype) for x in (q, k, v, g)]
    built = build(program, *arrays, jnp.asarray(dlse))
    runs = []
    for _ in range(2):
        _poison(jax.eval_shape(program, *arrays, dlse))
        runs.append([np.asarray(x) for x in built.result()])
    *got, got_lse = runs[0]
    found = dict(zip(want, (x.astype(np.float64) for x in got), strict=True))
    worst, wrong = 0.0, []
    for name, x in found.items():
        rows = ~sees_nan if name in ("out", "dq") else ...
        if name == "out" and not (np.isnan(x) == np.isnan(out)).all():
            wrong.append("NaN is elsewhere")
        finding = Finding(name, errors(its, name, x[rows], want[name][rows]))
        wrong += [str(finding)] * finding.wrong
        worst = max(worst, *(off / most for off, _, most in finding.shown.values()))
    with np.errstate(invalid="ignore"):
        off = np.abs(got_lse - lse) / (1 + np.abs(lse))
    same = (got_lse == lse) | (np.isnan(got_lse) & np.isnan(lse))
    lse_off = float(np.where(same, 0, off).max())
    wrong += [] if lse_off <= LSE else [f"lse is off by {lse_off:.2g}"]
    bits = all(a.tobytes() == b.tobytes() for a, b in zip(*runs, strict=True))
    wrong += [] if bits else ["two runs differ"]
    assert not wrong, "; ".join(wrong)
    return {"worst": worst, "lse": lse_off, "compile_s": built.compile_seconds}


def _poison(results: Any) -> None:
    """Fills what the allocator will give out next with NaN."""
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(results) for _ in range(4)]
    shapes += [(2**n, np.float32) for n in range(8, 24) for _ in range(2)]
    held = jax.block_until_ready([jax.device_put(np.full(x, np.nan, y)) for x, y in shapes])
    for x in held:
        x.delete()


def _kept(dropout: ja.Dropout, its: Workload) -> np.ndarray:
    """Which weights it keeps, [b h t s], read off with unit vectors as values."""
    q = jnp.zeros((its.batch, its.queries, its.heads, 1))
    k, eye = jnp.zeros((its.batch, its.keys, 1, 1)), jnp.eye(its.keys)[None, :, None]
    v = jnp.broadcast_to(eye, (its.batch, *eye.shape[1:]))
    out = ja.attention(q, k, v, dropout=dropout, backend=ja.Reference())
    return np.asarray(out.swapaxes(1, 2) > 0)


def observations(setting: Setting) -> dict[str, Any]:
    """A map, what keys receive, the largest logit and the entropy, beside float64."""
    t, n = setting.size(512, 64), 8
    its = Workload(t, t, 1, 2, 2, 64, 64, BFLOAT16)
    q, k, v, *_ = its.inputs(setting.seed)
    seen = ja.observe
    wanted = {"map": seen.Map(n), "received": seen.Received(), "max": seen.MaxLogit()}
    wanted["entropy"] = seen.Entropy()
    arrays = [jnp.asarray(x, ml_dtypes.bfloat16) for x in (q, k, v)]
    backend: ja.Backend = ja.Blockwise() if setting.dry else ja.Hopper()
    attend = lambda *x: ja.attend(*x, mask=ja.Causal(), observe=wanted, backend=backend).observed
    got = jax.jit(attend)(*arrays)
    logits = np.einsum("bthd,bshd->bhts", *(x.astype(np.float64) for x in (q, k))) / 8
    logits = np.where(np.tri(t, dtype=bool), logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
    want = {
        "map": p.reshape(1, 2, n, t // n, n, t // n).sum((3, 5)) * n / t,
        "received": p.sum(2).swapaxes(1, 2),
        "max": logits.max((0, 2, 3)),
        "entropy": entropy.swapaxes(1, 2),
    }
    got = {**got, "received": got["received"].mass}
    off = {
        x: float(np.abs(np.asarray(got[x]) - y).max() / np.abs(y).max()) for x, y in want.items()
    }
    assert max(off.values()) < OBSERVED, f"errors {off}"
    return {"worst": max(off.values()) / OBSERVED, "errors": off}

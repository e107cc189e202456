"""Programs that are timed: many calls in one, so that starting them costs nothing; and their check.

A call is repeated in a loop on the device, each waiting for the one before, with the same random
inputs. A share is that of a matrix product's speed, from rounds in which the two take turns. FLOPs
as in `benchmarks.workloads`; a backward pass alone counts 2.5 times a forward pass.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxattn as ja
from benchmarks.contenders import attend
from benchmarks.gate import Finding, errors, truth
from benchmarks.gpu.child import Setting
from benchmarks.options import NOTHING, Mask, Option
from benchmarks.timing import Budget, Built, measure, paired_ratio
from benchmarks.workloads import BFLOAT16, Workload
from tests import oracle

BATCH_SECONDS, GUESS = 0.02, 500e12
"""How long a program is to last, if its calls are as fast as the guess in FLOP/s."""

TOKENS, WIDTH = 16384, 2048
"""Of all sequences together, and features of all heads together, as FlashAttention's papers have
them."""

BACKWARD = 2.5
BUDGET = Budget(0.3, fewest=5, most=9, sample_seconds=0.015)


class Program(NamedTuple):
    built: Built
    calls: int
    flops: float
    """Of a call."""
    run: Callable[..., Any]
    """The same of other arrays."""


def repeated(
    f: Callable[..., Any],
    flops: float,
    shapes: Sequence[Any],
    arrays: Callable[[], Sequence[Any]],
    speed: float = GUESS,
    options: Any = None,
) -> Program:
    """f, again and again. shapes: of the arrays, which are made when it first runs, since others
    may have the device while it is compiled. speed: roughly, in FLOP/s, to choose how often.
    options: of the compiler."""
    calls = int(min(300, max(1, BATCH_SECONDS * speed / flops)))
    if jax.default_backend() == "cpu":
        calls = 2

    def run(*arrays: Any) -> Any:
        def once(_: Any, last: Any) -> Any:
            return f(*lax.optimization_barrier((arrays, last))[0])

        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, *arrays))
        return lax.fori_loop(0, calls, once, start)

    begin = time.perf_counter()
    made = jax.jit(run).lower(*shapes).compile(options)
    seconds = time.perf_counter() - begin
    temp = getattr(made.memory_analysis(), "temp_size_in_bytes", None)
    built = Built(lambda: made(*arrays()), temp_bytes=lambda: temp, compile_seconds=seconds)
    return Program(built, calls, flops, made)


@cache
def product(n: int, dtype: str = "bfloat16") -> Program:
    """Of two matrices of n x n random numbers, by cuBLAS."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in (1, 2))
    given, cublas = (a, b), {"xla_gpu_enable_triton_gemm": False}
    return repeated(jnp.matmul, 2.0 * n**3, given, lambda: given, options=cublas)


def timed(programs: Mapping[str, Program], setting: Setting) -> dict[str, Any]:
    """Of each program, timed in turns with a matrix product: ms, TFLOP/s and share."""
    both = {**programs, "product": product(setting.size(8192, 64))}
    got = measure({name: its.built for name, its in both.items()}, BUDGET)
    samples = {x: [s / both[x].calls for s in its["samples_s"]] for x, its in got.items()}
    facts: dict[str, Any] = {}
    for name, its in both.items():
        speed = its.flops / both["product"].flops
        facts[name] = {
            "ms": median(samples[name]) * 1e3,
            "tflops": its.flops / median(samples[name]) / 1e12,
            "share": speed / paired_ratio(samples[name], samples["product"]),
            "compile_s": its.built.compile_seconds,
            "temp_mib": (its.built.temp_bytes() or 0) / 2**20,
            "samples_ms": [round(s * 1e3, 5) for s in samples[name]],
        }
    return facts


def ratio(facts: Mapping[str, Any], ours: str, theirs: str) -> float:
    """Time over another's, round by round."""
    return paired_ratio(facts[ours]["samples_ms"], facts[theirs]["samples_ms"])


def work(
    setting: Setting, t: int, d: int, mask: Mask, option: Option = NOTHING, **more: Any
) -> Workload:
    """So many tokens that all sequences together have `TOKENS`; more: of `Workload`."""
    t = setting.size(t, max(t // 128, 48))
    heads, batch = setting.size(WIDTH // d, 2), max(1, setting.size(TOKENS, 0) // t)
    usual: dict[str, Any] = {"queries": t, "keys": t, "batch": batch, "dtype": BFLOAT16}
    usual |= {"heads": heads, "kv_heads": heads, "features": d, "value_features": d}
    return Workload(**(usual | {"mask": mask, "option": option} | more))


class Call:
    """A workload on the device, by one of jaxattn's backends."""

    def __init__(self, its: Workload, setting: Setting, backend: ja.Backend | None = None) -> None:
        self.work, self.setting = its, setting
        self.backend = backend or (ja.Blockwise() if setting.dry else ja.Hopper())
        self.speed = GUESS if isinstance(self.backend, ja.Hopper) else GUESS / 10
        self.extra: dict[str, Any] = its.option.arrays(its, np.random.default_rng(setting.seed))
        if its.mask.documents is not None:
            self.extra["ids"] = its.mask.ids(its.queries)
        self.shapes = [jax.ShapeDtypeStruct(x, its.dtype) for x in its.shapes.values()]
        self.attend: Callable[..., jax.Array] = partial(
            attend, ja, work=its, extra=self.extra, backend=self.backend
        )

    @cached_property
    def arrays(self) -> list[jax.Array]:
        """q, k, v and the cotangent."""
        keys = jax.random.split(jax.random.key(self.setting.seed), 4)
        of = zip(keys, self.shapes, strict=True)
        # Of one axis, which is as long for most workloads, and compiled once.
        return [jax.random.normal(key, x.size, x.dtype).reshape(x.shape) for key, x in of]

    def forward(self) -> Program:
        return self.program(self.attend)

    def program(self, f: Callable[..., Any], slower: float = 1.0) -> Program:
        """Of a function of q, k and v."""
        of, speed = lambda: self.arrays[:3], self.speed / slower
        return repeated(f, self.work.flops, self.shapes[:3], of, speed)

    def backward(self) -> Program:
        """Alone: what the forward pass kept is given."""
        keeps = jax.jit(lambda *qkv: jax.vjp(self.attend, *qkv)[1]).lower(*self.shapes[:3])
        kept = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), keeps.out_info)
        keeping = keeps.compile()
        self.kept = cache(lambda: keeping(*self.arrays[:3]))
        given = lambda: (self.kept(), self.arrays[3])
        f, flops = lambda kept, g: kept(g), BACKWARD * self.work.flops
        return repeated(f, flops, (kept, self.shapes[3]), given, self.speed)

    def check(self, forward: Program | None = None, backward: Program | None = None) -> float:
        """The largest error of programs against float64, as a part of what it may be.

        All keys, of some queries of every tile, of the first and of the last head: other queries
        get no gradient from above, so that what reaches the keys is known too.

        Raises:
          AssertionError: it is too large.
        """
        its, (q, k, v, g) = self.work, map(np.asarray, self.arrays)
        few = np.linspace(0, its.queries - 1, min(its.queries, 64)).astype(int)
        rows, group = np.unique(few), its.heads // its.kv_heads
        keep = self._kept(rows) if its.option.rate else None
        got: dict[str, Any] = {}
        if forward is not None:
            got["out"] = np.asarray(forward.built.result())
        if backward is not None:
            sparse = np.zeros_like(g)
            sparse[:, rows] = g[:, rows]
            made = map(np.asarray, backward.run(self.kept(), jnp.asarray(sparse)))
            got |= zip(("dq", "dk", "dv"), made, strict=True)
        last = 0 if its.option.rate else its.batch - 1
        worst, wide = 0.0, lambda x: x.astype(np.float32)
        for b, n in {(0, 0), (last, its.kv_heads - 1)}:
            heads, one = slice(n * group, (n + 1) * group), slice(n, n + 1)
            here = keep if keep is None else keep[heads]
            allowed, extra = truth(its, self.extra, heads, rows, here)
            arrays = wide(q[b, rows, heads]), wide(k[b, :, one]), wide(v[b, :, one])
            out, lse = oracle.attention(*arrays, allowed, extra=extra)
            want = {"out": out}
            if backward is not None:
                given = allowed, None, wide(g[b, rows, heads]), np.zeros_like(lse)
                made = oracle.gradients(*arrays, *given, extra=extra)
                want |= {"dq": made.q, "dk": made.k, "dv": made.v}
            for name, x in got.items():
                found = x[b, rows, heads] if name in ("out", "dq") else x[b, :, one]
                finding = Finding(name, errors(its, name, wide(found), want[name]))
                assert not finding.wrong, str(finding)
                worst = max(worst, *(x / most for x, _, most in finding.shown.values()))
        return worst

    def _kept(self, rows: np.ndarray) -> np.ndarray:
        """Which weights of the first sequence dropout keeps, [h t s], by what follows from
        positions alone: with q = k = 0 and unit vectors as values."""
        t, s = len(rows), self.work.keys
        arrays = jnp.zeros((1, t, self.work.heads, 1)), jnp.zeros((1, s, 1, 1))
        at, given = ja.Positions(rows, 0), self.work.option.jaxattn(ja, self.extra)
        made = partial(ja.attention, positions=at, backend=ja.Reference(), **given)
        out = jax.jit(made)(*arrays, jnp.eye(s)[None, :, None])
        return np.asarray(out[0].swapaxes(0, 1) > 0)

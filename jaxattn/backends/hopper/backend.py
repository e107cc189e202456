"""Attention by kernels of our own for NVIDIA's Hopper, in Pallas Mosaic GPU."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Var
from jaxtyping import Array

from jaxattn._axes import accumulator
from jaxattn._band import Band, Near
from jaxattn._content import as_int, is_whole
from jaxattn._jaxpr import equations
from jaxattn._lowering import devices
from jaxattn._mask import BoundAnd, BoundMask, BoundNot, BoundOr, Everything
from jaxattn._observation import Watch
from jaxattn._problem import Problem
from jaxattn._score import BoundFunction
from jaxattn._softmax import LogSumExp
from jaxattn._trace import Traced
from jaxattn.backends.blockwise.backend import (
    Forward,
    as_asked,
    flat,
    one_axis,
    pulled_back,
    unflat,
)
from jaxattn.backends.hopper.plan import (
    ROWS,
    SCHEDULES,
    SHARED_BYTES,
    WARPGROUPS,
    WIDTHS,
    Plan,
    Tiles,
    make_plan,
    width,
)
from jaxattn.backends.protocol import Call, Cost, Moves, Moving, Results
from jaxattn.masks import BoundDense, BoundLengths, BoundSegments, BoundWhere, Prefix
from jaxattn.scores import BoundALiBi, BoundBias, BoundSoftCap

CAPABILITY = "9.0"
MASKS = Everything, Band, Near, Prefix, BoundLengths, BoundSegments, BoundDense
SCORES = BoundALiBi, BoundBias, BoundSoftCap
# Of users' functions, what tests/test_hopper.py shows to compile, in int32, float32 and bool.
OPERATIONS = {
    *("abs", "sign", "neg", "add", "sub", "mul", "div", "rem", "max", "min"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "select_n", "convert_element_type"),
    *("exp", "log", "sin", "cos", "tanh"),
}
# With these numbers the other operand does not matter. The compiler then drops it, and finds no
# layout for what is left of it; and so it is with a number compared with itself.
IDLE = {("mul", 0), ("and", 0), ("or", 1), ("rem", 1)}


@dataclass(frozen=True)
class Hopper(Forward):
    """Kernels for GPUs of compute capability 9.0 (H100, H200), in half precision: the forward pass,
    gradients of q, k and v (with dropout of up to 128 features), and from the lse `Entropy`,
    `MaxLogit`, `Received` and a `Map` whose cells have 8 queries and 8 keys at least. All other
    derivatives and observations are made as `Blockwise()` makes them, from the lse.

    block_q: queries of a program in the forward pass, a multiple of 128. block_kv: keys of a tile,
    a multiple of 64. schedule: how products and softmax take turns there: "plain", "overlap" (of
    two tiles in a warpgroup) or "ping-pong" (of two warpgroups). None lets the plan choose. The
    result does not depend on them beyond rounding.
    """

    block_q: int | None = None
    block_kv: int | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        for name, multiple in (("block_q", WARPGROUPS * ROWS), ("block_kv", 64)):
            block = as_int(getattr(self, name))
            object.__setattr__(self, name, block)
            if block is not None and (not is_whole(block) or block < 1 or block % multiple):
                raise ValueError(
                    f"{name} is a multiple of {multiple}, or None for the plan's choice; got "
                    f"{name}={block!r}"
                )

        if self.schedule not in (None, *SCHEDULES):
            raise ValueError(f"schedule is one of {SCHEDULES}, or None, got {self.schedule!r}")

    def plan(self, problem: Problem) -> Plan:
        """That of the forward pass."""
        d, e = width(problem.q.shape[-1]), width(problem.v.shape[-1])
        return make_plan(d, e, self.block_q, self.block_kv, self.schedule)

    def refuses(self, call: Call) -> str | None:
        problem, (major, minor, *_) = call.problem, jax.__version_info__
        d, e = problem.q.shape[-1], problem.v.shape[-1]
        if call.platform not in (None, "cuda"):
            return f"it runs on NVIDIA GPUs of compute capability {CAPABILITY}"
        if (major, minor) < (0, 11):
            return f"it takes jax 0.11 or later, and this is {jax.__version__}"
        if problem.q.dtype == accumulator(problem.q.dtype):
            return f"it takes float16 and bfloat16, not {problem.q.dtype}"
        if max(d, e) > WIDTHS[-1]:
            return f"it takes up to {WIDTHS[-1]} features, got d={d} and e={e}"
        plan = self.plan(problem)
        if (needed := plan.shared_bytes(width(d), width(e))) > SHARED_BYTES:
            return f"its tiles take {needed:,} bytes of shared memory, of {SHARED_BYTES:,}"
        if not all(isinstance(n, int) for n in (*problem.q.shape, *problem.k.shape)):
            return "its programs are counted for known sizes"
        if devices().divided:
            return "the compiler does not divide its kernels over devices"
        if reason := _unknown(problem):
            return reason
        if call.platform == "cuda" and (found := capability()) != CAPABILITY:
            return f"it takes compute capability {CAPABILITY}, and this device has {found}"
        return None

    def run(self, problem: Problem, watched: Watch, interpret: Any = None) -> Results:
        from jaxattn.backends.hopper.forward import forward  # Pallas takes a second to import

        q, k, v, rule = flat(problem)
        d, e = width(q.shape[3]), width(v.shape[3])
        q, k, v = _wide(q, d), _wide(k, d), _wide(v, e)
        out, peak, log_total = forward(self.plan(problem), problem.sizes, q, k, v, rule, interpret)
        out = out[..., : problem.v.shape[-1]].astype(peak.dtype)
        results = unflat(Results(out, peak, log_total, ()), problem.sizes.batch)
        if not watched:
            return results
        lse = results.lse.value
        return results._replace(states=self.observe(problem, watched, lse, 0, interpret))

    def observe(
        self, problem: Problem, watched: Watch, lse: Array, order: int = 0, interpret: Any = None
    ) -> tuple[Any, ...]:
        """By kernels what `choose` names; as `Blockwise` the rest, and what JAX is to
        differentiate."""
        from jaxattn.backends.hopper import observing

        sizes, features = problem.sizes, width(problem.q.shape[-1])
        plan, shown = observing.choose(watched, problem.rule, features)
        shown = [not order and x for x in shown]
        pick = lambda which: tuple(x for x, y in zip(watched, shown, strict=True) if y is which)
        rest = iter(super().observe(problem, pick(False), lse) if not all(shown) else ())
        if not any(shown):
            return tuple(rest)
        q, k, _, rule = flat(problem)
        total = lse
        if rule.sinks is not None:
            parts = LogSumExp(lse, jnp.zeros_like(lse))
            total, _ = parts.with_sink(rule.sinks.logits[..., None, :])
            # A query that sees no key has the sink alone.
            total = jnp.where(jnp.isneginf(lse), lse, total.value)
        total = one_axis(total, len(sizes.batch))
        arrays = _wide(q, features), _wide(k, features)
        made = observing.observe(plan, sizes, *arrays, rule, pick(True), total, interpret)
        states = iter(unflat(made, sizes.batch))
        return tuple(next(states if x else rest) for x in shown)

    def transpose(
        self,
        problem: Problem,
        watched: Watch,
        results: Results,
        moving: Moving,
        cotangents: Moves,
        interpret: Any = None,
    ) -> Any:
        """By kernels, where only q, k and v are asked for, of scores of our own, and there are
        registers for it."""
        still = jax.tree.leaves((moving[0].rule._replace(sinks=None), moving[1], cotangents.states))
        features = max(width(problem.q.shape[-1]), width(problem.v.shape[-1]))
        by_hand = any(isinstance(item, BoundFunction) for item in problem.rule.score)
        if still or by_hand or (problem.rule.dropout and features > 128):
            return super().transpose(problem, watched, results, moving, cotangents)
        from jaxattn.backends.hopper.backward import backward

        q, k, v, rule = flat(problem)
        d, e = width(q.shape[3]), width(v.shape[3])
        lse, g, dlse = pulled_back(problem, results, cotangents)
        arrays = _wide(q, d), _wide(k, d), _wide(v, e)
        made = backward(problem.sizes, *arrays, rule, lse, _wide(g, e), dlse, interpret)
        made = [dx[..., : x.shape[-1]] for dx, x in zip(made, (q, k, v), strict=True)]
        nothing = jnp.zeros(())  # of the scale and the scores, which are not asked for
        return as_asked(problem, moving, made, nothing, moving[0].rule.score)

    def cost(self, problem: Problem, mask: BoundMask, watched: Watch) -> Cost:
        sizes, (d, e) = problem.sizes, (problem.q.shape[-1], problem.v.shape[-1])
        plan = self.plan(problem)
        tiles, visited, flops = Tiles(plan, sizes, mask), None, None
        everywhere = tiles.programs * tiles.across
        total = sizes.h * math.prod(sizes.batch)
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mask)):
            bounds = np.asarray(tiles.arrays()[0])
            visited = int((bounds[..., 3] - bounds[..., 0]).sum()) * (total // len(bounds))
            flops = 2 * visited * plan.block_q * plan.block_kv * (d + e)
        return Cost(
            heads=1,
            batch=1,
            q_block=plan.block_q,
            k_block=plan.block_kv,
            visited=visited,
            tiles=everywhere * total,
            flops=flops,
            second_sweep=bool(watched),
        )


def capability() -> str:
    """The compute capability of the device that programs are made for, as far as it is known."""
    mesh: Any = jax.sharding.get_abstract_mesh()
    kind = getattr(getattr(mesh, "abstract_device", None), "device_kind", None)
    if kind is not None:
        hopper = ("H100", "H200", "H800", "H20", "GH200")
        return CAPABILITY if any(name in kind for name in hopper) else f"that of {kind}"
    if jax.default_backend() != "gpu":
        return "none that is known"
    return str(getattr(jax.devices()[0], "compute_capability", "none that is known"))


def _unknown(problem: Problem) -> str | None:
    """Which mask or score has no place in the kernel yet."""
    rule = problem.rule
    if (name := _other_mask(rule.mask)) is not None:
        return f"it has no {name} in its kernel"
    for item in rule.score:
        known = (
            _fits(item.function) if isinstance(item, BoundFunction) else isinstance(item, SCORES)
        )
        if not known:
            return f"it has no {_name(item)} in its kernel"
    return None


def _fits(function: Traced) -> bool:
    """Whether a kernel can run a function of one pair."""
    has_arrays = bool(jax.tree.leaves(function.captured))
    return not has_arrays and all(_compiles(*x) for x in equations(function.program.jaxpr))


def _compiles(eqn: Any, operands: list[Any]) -> bool:
    name, numbers = eqn.primitive.name, [x for x in operands if not isinstance(x, Var)]
    dtypes = {x.aval.dtype for x in (*eqn.invars, *eqn.outvars)}
    if name not in OPERATIONS or not dtypes <= {np.dtype(x) for x in ("int32", "float32", "bool")}:
        return False
    if name == "rem" and np.dtype("float32") in dtypes:
        return False
    if name == "select_n" and not isinstance(operands[0], Var):
        return False
    twice = len(operands) > 1 and operands[0] is operands[-1] and name not in ("add", "mul")
    return not (twice or any((name, float(x)) in IDLE for x in numbers))


def _name(item: Any) -> str:
    return type(item).__name__.removeprefix("Bound")


def _other_mask(mask: BoundMask) -> str | None:
    if isinstance(mask, BoundAnd | BoundOr):
        return next((name for part in mask.masks if (name := _other_mask(part))), None)
    if isinstance(mask, BoundNot):
        return "~EVERYTHING" if isinstance(mask.mask, Everything) else _other_mask(mask.mask)
    if isinstance(mask, BoundWhere) and _fits(mask.seen):
        return None
    return None if isinstance(mask, MASKS) else _name(mask)


def _wide(x: Array, features: int) -> Array:
    """x with so many features, the new ones 0."""
    more = features - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x

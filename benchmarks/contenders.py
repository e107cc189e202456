"""Who is measured: jaxattn, `jax.nn.dot_product_attention`, Flax NNX's, and PyTorch's where it is.

Every contender gets what it would get at its best: inputs already on the device and in the layout
it prefers, one program compiled ahead of time for exactly these shapes, its own way to say
"causal", "window" and "grouped heads". A gradient returns the output as well as dq, dk and dv, so
that no compiler can leave the forward pass out. What a library lacks is said, not made up for.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import and_
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn
from benchmarks.gate import Pattern
from benchmarks.options import BIAS, COMPAT, DENSE_MASK, FLAX, JAX_NN, NOTHING, OURS, PLAIN, Arrays
from benchmarks.timing import Built, build
from benchmarks.workloads import FLOAT32, Inputs, Workload
from jaxattn import compat


@dataclass(frozen=True)
class Contender:
    name: str
    build: Callable[[Workload, Inputs], Built]
    limits: Callable[[Workload], str | None] = lambda work: None
    """Why it cannot run a workload; None if it can."""
    asked: Callable[[Workload], Workload | None] = lambda work: work
    """What it is to compute where a workload is measured; None where it does not take part."""


def missing(name: str, work: Workload) -> str | None:
    """Why a contender cannot run a workload, as far as that is in the table of options."""
    had = work.option == NOTHING or name in work.option.others
    return None if had else f"{name} has no {work.option.title}"


def attend(
    ja: ModuleType,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    work: Workload,
    extra: Arrays,
    **rest: Any,
) -> jax.Array:
    """By jaxattn, which is given: this version, or another. rest: of `ja.attention`."""
    given = {**work.option.jaxattn(ja, extra), **rest}
    masks = [ja.Causal()] if work.mask.causal else []
    if work.mask.left is not None:
        masks.append(ja.Window(left=work.mask.left))
    if work.mask.documents is not None:
        masks.append(ja.Segments(extra["ids"]))
    masks += [given.pop("mask")] if "mask" in given else []
    return ja.attention(q, k, v, mask=reduce(and_, masks) if masks else ja.EVERYTHING, **given)


def _kept(ja: ModuleType, work: Workload, extra: Arrays, rows: int) -> Pattern:
    """The weights it keeps, read off with q = k = 0 and unit vectors as values."""
    read_off = jax.jit(partial(ja.attention, **work.option.jaxattn(ja, extra)))
    found = []
    group = work.heads // work.kv_heads
    for b, h, t in ((work.batch, work.heads, rows), (1, group, work.queries)):
        q, k = jnp.zeros((b, t, h, 1)), jnp.zeros((b, work.keys, 1, 1))
        v = jnp.broadcast_to(jnp.eye(work.keys)[None, :, None], (b, work.keys, 1, work.keys))
        found.append(np.asarray(read_off(q, k, v).swapaxes(1, 2) > 0))
    return Pattern(found[0], found[1][0])


def _bias_and_mask(work: Workload, extra: Arrays, dtype: Any) -> tuple[Any, Any]:
    """[1 h t s] and [1 1 t s], given or made inside the program; None for none."""
    bias, ids = work.option.added, extra.get("ids")
    seen = extra.get("seen") if ids is None else (ids[:, None] == ids[None, :])[None, None]
    return bias and bias(extra, _ahead_ts(work))[None].astype(dtype), seen


def _ahead_ts(work: Workload) -> jax.Array:
    return jnp.arange(work.keys)[None, :] - jnp.arange(work.queries)[:, None]


def _by_jax_nn(call: Callable[..., jax.Array], **cudnn: Any) -> Callable[..., Built]:
    """By `jax.nn.dot_product_attention`, or what is called as it is."""

    def attention(q, k, v, work: Workload, extra: Arrays) -> jax.Array:
        left = work.mask.left
        window = None if left is None else (left, 0)
        causal = work.mask.causal and (left is None or cudnn != {})  # else cuDNN's looks ahead
        given = {"is_causal": causal, "local_window_size": window, **cudnn}
        return call(q, k, v, *_bias_and_mask(work, extra, q.dtype), **given)

    return partial(compiled, attention)


def _flax(q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays) -> jax.Array:
    from flax import nnx  # which a bare machine may lack

    bias, seen = _bias_and_mask(work, extra, q.dtype)
    given: dict[str, Any] = {"is_causal": work.mask.causal and work.mask.left is None}
    if work.mask.left is not None:  # it has no window of its own
        ahead_ts = _ahead_ts(work)
        seen = ((-work.mask.left <= ahead_ts) & (ahead_ts <= 0))[None, None]
    if work.option.rate:
        given |= {"dropout_rate": work.option.rate, "broadcast_dropout": False}
        given["dropout_rng"] = jax.random.wrap_key_data(extra["key"])
    return nnx.dot_product_attention(q, k, v, bias, seen, **given)


def compiled(attention: Callable[..., jax.Array], work: Workload, inputs: Inputs) -> Built:
    """By `jax.jit`. attention: of q, k, v, the workload, and the arrays of its option and mask."""
    wanted = [inputs.q, inputs.k, inputs.v, *([inputs.cotangent] if work.gradient else [])]
    extra = {name: jnp.asarray(x) for name, x in inputs.extra.items()}
    arrays = extra, *(jnp.asarray(x, work.dtype) for x in wanted)
    jax.block_until_ready(arrays)
    jax.clear_caches()  # else a peer's traces would shorten this one's compile time

    def program(extra, q, k, v, *cotangent):
        forward = lambda q, k, v: attention(q, k, v, work, extra)
        if not cotangent:
            return (forward(q, k, v),)
        out, pull_back = jax.vjp(forward, q, k, v)
        return (out, *pull_back(*cotangent))

    exact = work.dtype == FLOAT32 and jax.default_backend() != "cpu"
    with jax.default_matmul_precision("highest" if exact else None):  # no TF32 for anyone
        built = build(program, *arrays)
    return replace(
        built,
        outputs=lambda got: [np.asarray(x.astype(jnp.float32)) for x in got],
        needs_bytes=work.bytes + (built.temp_bytes() or 0),
    )


def by_jaxattn(ja: ModuleType, name: str, **rest: Any) -> Contender:
    """jaxattn, this version or another."""

    def make(work: Workload, inputs: Inputs) -> Built:
        built = compiled(partial(attend, ja), work, inputs)
        return replace(built, read_off=partial(_kept, ja, work, inputs.extra))

    return Contender(name, make, **rest)


def _drop_in(work: Workload) -> Workload | None:
    """What jax.nn has too, where keeping up counts: few tokens, and the length of the ratios."""
    taken = work.option in (NOTHING, BIAS, DENSE_MASK) and work.mask.left is None
    forward = not work.gradient and work.queries == work.keys and work.batch == 1
    return work if taken and forward and (work.queries <= 128 or work.queries == 2048) else None


def _flax_limits(work: Workload) -> str | None:
    if jax.default_backend() == "cpu" and work.scores > 2**29:
        return "it calls jax.nn.dot_product_attention, which takes seconds here: timed once"
    return missing(FLAX, work)


def _cudnn_limits(work: Workload) -> str | None:
    if work.dtype == FLOAT32:
        return "cuDNN's attention is for 16-bit inputs"
    plain = work == work.plain
    return None if plain else "options are measured with jax.nn's own implementation"


_plain = lambda work: None if work == work.plain else work.plain
JAXATTN = by_jaxattn(jaxattn, OURS)
JAXATTN_PLAIN = by_jaxattn(jaxattn, PLAIN, asked=_plain)
"""jaxattn without the option: what the option costs is a ratio of interleaved rounds too."""
DROP_IN = Contender(COMPAT, _by_jax_nn(compat.dot_product_attention), asked=_drop_in)
_jax_nn = jax.nn.dot_product_attention
XLA = Contender(JAX_NN, _by_jax_nn(_jax_nn), partial(missing, JAX_NN))
CUDNN = Contender("jax.nn cuDNN", _by_jax_nn(_jax_nn, implementation="cudnn"), _cudnn_limits)
NNX = Contender(FLAX, partial(compiled, _flax), _flax_limits)


def contenders(works: Sequence[Workload]) -> tuple[Contender, ...]:
    """Everyone who can be measured on this machine, jaxattn first.

    Those who are there for the sake of options only where some workload has one.
    """
    with_options = any(work != work.plain for work in works)
    everyone = [JAXATTN, *([JAXATTN_PLAIN, DROP_IN] if with_options else []), XLA, NNX]
    everyone += [CUDNN] if jax.default_backend() == "gpu" else []
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_contenders import torch_contenders

        everyone += torch_contenders(with_options)
    return tuple(everyone)

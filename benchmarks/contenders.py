"""Who is measured: jaxattn, `jax.nn.dot_product_attention`, Flax NNX's, and PyTorch's where it is.

Every contender gets what it would get at its best: inputs already on the device and in the layout
it prefers, one program compiled ahead of time for exactly these shapes, its own way to say
"causal", "window" and "grouped heads". A gradient returns the output as well as dq, dk and dv, so
that no compiler can leave the forward pass out. What a library lacks is said, not made up for.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import and_
from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn
from benchmarks import options
from benchmarks.gate import Pattern
from benchmarks.options import Arrays
from benchmarks.timing import Built, build
from benchmarks.workloads import FLOAT32, Inputs, Workload
from jaxattn import compat

Attention: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, Workload, Arrays], jax.Array]
"""Of q, k, v, the workload and the arrays of its option and mask: out."""


def _nothing_missing(work: Workload) -> str | None:
    return None


def _itself(work: Workload) -> Workload | None:
    return work


@dataclass(frozen=True)
class Contender:
    name: str
    build: Callable[[Workload, Inputs], Built]
    limits: Callable[[Workload], str | None] = _nothing_missing
    """Why it cannot run a workload; None if it can."""
    asked: Callable[[Workload], Workload | None] = _itself
    """What it is to compute where a workload is measured; None where it does not take part."""


def missing(name: str, work: Workload) -> str | None:
    """Why a contender cannot run a workload, as far as that is in the table of options."""
    if work.option == options.NOTHING or name in work.option.others:
        return None
    return f"{name} has no {work.option.title}"


def is_plain(work: Workload) -> bool:
    """Whether the workload has neither an option nor documents."""
    return work.plain == work


def attend(
    ja: ModuleType, q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays
) -> jax.Array:
    """By jaxattn, which is given: this version, or another."""
    given = work.option.jaxattn(ja, extra)
    masks = [ja.Causal()] if work.mask.causal else []
    if work.mask.left is not None:
        masks.append(ja.Window(left=work.mask.left))
    if work.mask.documents is not None:
        masks.append(ja.Segments(extra["ids"]))
    masks += [given.pop("mask")] if "mask" in given else []
    return ja.attention(q, k, v, mask=reduce(and_, masks) if masks else ja.EVERYTHING, **given)


def _kept(ja: ModuleType, work: Workload, extra: Arrays, rows: int) -> Pattern:
    """The weights it keeps, read off with q = k = 0 and unit vectors as values."""

    @partial(jax.jit, static_argnums=(0, 1, 2))
    def read_off(b: int, h: int, t: int) -> jax.Array:
        q, k = jnp.zeros((b, t, h, 1)), jnp.zeros((b, work.keys, 1, 1))
        v = jnp.broadcast_to(jnp.eye(work.keys)[None, :, None], (b, work.keys, 1, work.keys))
        out = ja.attention(q, k, v, **work.option.jaxattn(ja, extra))
        return out.swapaxes(1, 2) > 0

    group = work.heads // work.kv_heads
    of_one = read_off(1, group, work.queries)[0]
    return Pattern(np.asarray(read_off(work.batch, work.heads, rows)), np.asarray(of_one))


def _by_jax_nn(call: Callable[..., jax.Array], q, k, v, work: Workload, extra: Arrays, **cudnn):
    """By `jax.nn.dot_product_attention`, or what is called as it is."""
    given: dict[str, Any] = dict(cudnn)
    if work.mask.causal and (work.mask.left is None or cudnn):  # else cuDNN's window looks ahead
        given["is_causal"] = True
    if work.mask.left is not None:
        given["local_window_size"] = (work.mask.left, 0)
    if (seen := _seen(work, extra)) is not None:
        given["mask"] = seen
    if work.option.added is not None:
        given["bias"] = work.option.added(extra, _ahead_ts(work))[None].astype(q.dtype)
    return call(q, k, v, **given)


def _ahead_ts(work: Workload) -> jax.Array:
    return jnp.arange(work.keys)[None, :] - jnp.arange(work.queries)[:, None]


def _seen(work: Workload, extra: Arrays) -> jax.Array | None:
    """[1 1 t s]: of documents or a dense mask, given or made inside the program; None for none."""
    ids = extra.get("ids")
    return extra.get("seen") if ids is None else (ids[:, None] == ids[None, :])[None, None]


def _flax(q: jax.Array, k: jax.Array, v: jax.Array, work: Workload, extra: Arrays) -> jax.Array:
    given: dict[str, Any] = {"is_causal": True} if work.mask == options.CAUSAL else {}
    if (seen := _seen(work, extra)) is not None:
        given["mask"] = seen
    if work.mask.left is not None:  # it has no window of its own
        ahead_ts = _ahead_ts(work)
        given["mask"] = ((-work.mask.left <= ahead_ts) & (ahead_ts <= 0))[None, None]
    if work.option == options.BIAS:
        given["bias"] = extra["bias"].astype(q.dtype)
    if work.option.rate:
        given |= {"dropout_rate": work.option.rate, "broadcast_dropout": False}
        given |= {"deterministic": False}
        given["dropout_rng"] = jax.random.wrap_key_data(extra["key"])
    return nnx.dot_product_attention(q, k, v, **given)


def compiled(
    attention: Attention, work: Workload, inputs: Inputs, kept: Callable[..., Any] | None = None
) -> Built:
    """By `jax.jit`. kept: from the workload, the arrays and a number of queries to a Pattern."""
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

    with _honest_float32(work):
        built = build(program, *arrays)
    return replace(
        built,
        outputs=lambda got: [np.asarray(x.astype(jnp.float32)) for x in got],
        needs_bytes=work.bytes + (built.temp_bytes() or 0),
        read_off=None if kept is None else partial(kept, work, extra),
    )


def _honest_float32(work: Workload) -> contextlib.AbstractContextManager[Any]:
    """float32 work is done in float32 by everyone: no TF32 on a GPU."""
    if work.dtype == FLOAT32 and jax.default_backend() != "cpu":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def by_jaxattn(ja: ModuleType, name: str, **rest: Any) -> Contender:
    """jaxattn, this version or another."""
    kept = partial(_kept, ja)
    return Contender(name, partial(compiled, partial(attend, ja), kept=kept), **rest)


def _without_option(work: Workload) -> Workload | None:
    return None if is_plain(work) else work.plain


def _drop_in(work: Workload) -> Workload | None:
    """What jax.nn has too, where keeping up counts: few tokens, and the length of the ratios."""
    theirs = (options.NOTHING, options.BIAS, options.DENSE_MASK)
    taken = work.option in theirs and work.mask.left is None
    forward = not work.gradient and work.queries == work.keys and work.batch == 1
    return work if taken and forward and (work.queries <= 128 or work.queries == 2048) else None


def _flax_limits(work: Workload) -> str | None:
    if jax.default_backend() == "cpu" and work.scores > 2**29:
        return "it calls jax.nn.dot_product_attention, which takes seconds here: timed once"
    return missing(options.FLAX, work)


def _cudnn_limits(work: Workload) -> str | None:
    if work.dtype == FLOAT32:
        return "cuDNN's attention is for 16-bit inputs"
    return None if is_plain(work) else "options are measured with jax.nn's own implementation"


JAXATTN = by_jaxattn(jaxattn, options.OURS)
JAXATTN_PLAIN = by_jaxattn(jaxattn, options.PLAIN, asked=_without_option)
"""jaxattn without the option: what the option costs is a ratio of interleaved rounds too."""
_as_jax_nn = partial(_by_jax_nn, compat.dot_product_attention)
DROP_IN = Contender(options.COMPAT, partial(compiled, _as_jax_nn), asked=_drop_in)
_jax_nn = partial(_by_jax_nn, jax.nn.dot_product_attention)
XLA = Contender(options.JAX_NN, partial(compiled, _jax_nn), partial(missing, options.JAX_NN))
_cudnn = partial(_jax_nn, implementation="cudnn")
CUDNN = Contender("jax.nn cuDNN", partial(compiled, _cudnn), _cudnn_limits)
NNX = Contender(options.FLAX, partial(compiled, _flax), _flax_limits)


def contenders(works: Sequence[Workload]) -> tuple[Contender, ...]:
    """Everyone who can be measured on this machine, jaxattn first.

    Those who are there for the sake of options only where some workload has one.
    """
    with_options = not all(map(is_plain, works))
    everyone = [JAXATTN, *([JAXATTN_PLAIN, DROP_IN] if with_options else []), XLA, NNX]
    everyone += [CUDNN] if jax.default_backend() == "gpu" else []
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_contenders import torch_contenders

        everyone += torch_contenders(with_options)
    return tuple(everyone)

"""What `support.py` tries: each option twice, as jaxattn's values and written out in jnp."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn as ja
from benchmarks.options import RelativeBias

H, T, S, D, E = 2, 5, 7, 3, 2
I, J = np.arange(T)[:, None], np.arange(S)[None, :]
NUMBERS = np.random.default_rng(0)

Arrays = Mapping[str, Any]
Options = Callable[[Arrays], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    name: as in the table. options: of `ja.attend`, from all arrays. written: of `_dense`, likewise:
    `allowed`, `score`, `sinks`, `factor`. learnt: real arrays. rest: arrays without a gradient.
    """

    name: str
    options: Options = lambda a: {}
    written: Options = lambda a: {}
    learnt: Arrays | None = None
    rest: Arrays | None = None
    groups: int = 1
    merged: bool = False
    only_lse: bool = False

    def arrays(self) -> tuple[Any, Any]:
        """(q, k, v, learnt), and the rest."""
        random = np.random.default_rng(len(self.name))
        shapes = (T, H * self.groups, D), (S, H, D), (S, H, E)
        q, k, v = (random.standard_normal(shape) for shape in shapes)
        rest = {name: jnp.asarray(x) for name, x in (self.rest or {}).items()}
        return jax.tree.map(jnp.asarray, (q, k, v, dict(self.learnt or {}))), rest

    def attend(self, x: Any, rest: Arrays, backend: Any) -> Any:
        q, k, v, learnt = x
        options: dict[str, Any] = {"positions": ja.Positions(0, 0)} | self.options(
            {**learnt, **rest}
        )
        if self.merged:
            parts = [ja.attend(q, k[cut], v[cut], backend=backend) for cut in CUTS]
            got = ja.merge(*parts)
        else:
            got = ja.attend(q, k, v, **options, backend=backend)
        return (jnp.zeros(()) if self.only_lse else got.out), got.lse

    def dense(self, x: Any, rest: Arrays) -> Any:
        q, k, v, learnt = x
        out, lse = _dense(q, k, v, **self.written({**learnt, **rest}))
        return (jnp.zeros(()) if self.only_lse else out), lse


CUTS = slice(0, 3), slice(3, S)


def _dense(q, k, v, allowed=True, score=lambda x: x, sinks=None, factor=1.0):
    """out [t h e] and lse [t h]; score is of the logits [h t s], factor of the weights."""
    group = q.shape[-2] // k.shape[-2]
    k, v = (jnp.repeat(x, group, axis=-2) for x in (k, v))
    logits = score(jnp.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5)
    logits = jnp.where(allowed, logits, -jnp.inf)
    joined = logits
    if sinks is not None:
        sink = jnp.broadcast_to(sinks[:, None, None], (*logits.shape[:-1], 1))
        joined = jnp.concatenate([logits, sink], -1)
    lse = jax.nn.logsumexp(joined, axis=-1, keepdims=True)
    weights = jnp.exp(logits - lse) * factor
    return jnp.einsum("hts,she->the", weights, v), lse[..., 0].T


def _mask(
    name: str, mask: Callable[[Arrays], ja.Mask], allowed: Options | Any, **rest: Any
) -> Case:
    of = allowed if callable(allowed) else lambda a: allowed
    return Case(name, lambda a: {"mask": mask(a)}, lambda a: {"allowed": of(a)}, rest=rest)


def _places(
    name: str, positions: Callable[[Arrays], Any], allowed: Options | Any, **rest: Any
) -> Case:
    of = allowed if callable(allowed) else lambda a: allowed
    options = lambda a: {"mask": ja.Causal() & ja.Window(4), "positions": positions(a)}
    return Case(name, options, lambda a: {"allowed": of(a)}, rest=rest)


def _score(name: str, score: Options | Any, written: Any, **learnt: Any) -> Case:
    return Case(
        name,
        lambda a: {"score": score(a)},
        lambda a: {"score": lambda x: written(a, x)},
        learnt=learnt,
    )


def _factor() -> jax.Array:
    """[h t s]: what dropout multiplies weights with, read off with unit vectors as values."""
    q, k, v = jnp.zeros((T, H, 1)), jnp.zeros((S, H, 1)), jnp.eye(S)[:, None].repeat(H, 1)
    out = ja.attention(q, k, v, dropout=DROPOUT, backend=ja.Reference())
    return jnp.where(out.swapaxes(0, 1) > 0, 1 / (1 - DROPOUT_RATE), 0)


DROPOUT_RATE = 0.3
DROPOUT = ja.Dropout(DROPOUT_RATE, jax.random.wrap_key_data(jnp.array([1, 2], jnp.uint32)))

_Q_IDS, _K_IDS = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 2])
_PLACES = NUMBERS.permutation(S)
_SEEN = NUMBERS.random((H, T, S)) < 0.5
_SEEN[..., 0] = True
_CAUSAL, _WINDOW = J <= I + 2, (I <= J) & (J <= I + 2)
_AWAY, _BUCKETS = np.abs(I - J), RelativeBias(8, 4)
_NEAR = (J <= I + 2) & (I + 2 - J <= 4)


def _cap(a: Arrays, x: Any) -> Any:
    return a["cap"] * jnp.tanh(x / a["cap"])


def _alibi(a: Arrays, x: Any) -> Any:
    return x - a["slopes"][:, None, None] * _AWAY


CASES = (
    _mask("`EVERYTHING`", lambda a: ja.EVERYTHING, True),
    _mask("`Causal`", lambda a: ja.Causal(2), _CAUSAL),
    _mask("`Window`", lambda a: ja.Window(2, 0, 2), _WINDOW),
    _mask("`PrefixLM`", lambda a: ja.PrefixLM(3), (J < 3) | (J <= I)),
    _mask("`Lengths`", lambda a: ja.Lengths(k=5), J < 5),
    _mask(
        "`Segments`",
        lambda a: ja.Segments(a["q"], a["k"]),
        _Q_IDS[:, None] == _K_IDS,
        q=_Q_IDS,
        k=_K_IDS,
    ),
    _mask("`Dense`", lambda a: ja.Dense(a["seen"]), _SEEN, seen=_SEEN),
    _mask("`Where`", lambda a: ja.Where(lambda at: (at.q + at.k) % 2 == 0), (I + J) % 2 == 0),
    _mask("`a & b`", lambda a: ja.Causal(2) & ja.Lengths(k=5), _CAUSAL & (J < 5)),
    _mask("`a \\| b`", lambda a: ja.Window(2, 0, 2) | ja.Lengths(k=2), _WINDOW | (J < 2)),
    _mask("`~a`", lambda a: ~ja.Window(1), ~((I - 1 <= J) & (J <= I))),
    _mask(
        "traced numbers in masks",
        lambda a: ja.PrefixLM(a["prefix"]) & ja.Lengths(k=a["k"]),
        lambda a: ((J <= I) | (a["prefix"] > J)) & (a["k"] > J),
        prefix=np.array(3),
        k=np.array(4),
    ),
    _places("`positions=END`", lambda a: ja.END, _NEAR),
    _places(
        "`Positions` of starts, traced",
        lambda a: ja.Positions(a["q"], a["k"]),
        lambda a: (I + a["q"] >= J + a["k"]) & (I + a["q"] - J - a["k"] <= 4),
        q=np.array(3),
        k=np.array(1),
    ),
    _places(
        "`Positions` of every token",
        lambda a: ja.Positions(a["q"] + 2, a["k"]),
        (_PLACES <= I + 2) & (I + 2 - _PLACES <= 4),
        q=np.arange(T),
        k=_PLACES,
    ),
    _score(
        "`Bias`",
        lambda a: ja.Bias(a["bias"]),
        lambda a, x: x + a["bias"],
        bias=NUMBERS.standard_normal((H, T, S)),
    ),
    _score("`ALiBi`", lambda a: ja.ALiBi(a["slopes"]), _alibi, slopes=NUMBERS.standard_normal(H)),
    _score(
        "`RelativeBias`",
        lambda a: ja.RelativeBias(a["table"], max_distance=4),
        lambda a, x: x + jnp.moveaxis(a["table"][_BUCKETS.bucket(J - I)], -1, 0),
        table=NUMBERS.standard_normal((8, H)),
    ),
    _score("`SoftCap`", lambda a: ja.SoftCap(a["cap"]), _cap, cap=np.array(0.7)),
    _score(
        "`score=function`",
        lambda a: lambda logit, at: logit * a["by_key"][at.k] + at.q,
        lambda a, x: x * a["by_key"] + I,
        by_key=NUMBERS.standard_normal(S),
    ),
    _score(
        "`score=(a, b)`",
        lambda a: (ja.ALiBi(a["slopes"]), ja.SoftCap(a["cap"])),
        lambda a, x: _cap(a, _alibi(a, x)),
        slopes=NUMBERS.standard_normal(H),
        cap=np.array(0.7),
    ),
    Case(
        "`sinks`",
        lambda a: {"sinks": a["sinks"]},
        lambda a: {"sinks": a["sinks"]},
        learnt={"sinks": NUMBERS.standard_normal(H)},
    ),
    Case("`Dropout`", lambda a: {"dropout": DROPOUT}, lambda a: {"factor": _factor()}),
    Case("`merge`", merged=True),
    Case("lse alone", only_lse=True),
    Case("grouped heads", groups=2),
)

"""What `support.py` tries: each option twice, as jaxattn's values and written out in jnp."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn as ja
from benchmarks.options import bucket
from tests import dense

H, T, S, D, E = 2, 5, 7, 3, 2
I, J = np.arange(T)[:, None], np.arange(S)[None, :]
NUMBERS = np.random.default_rng(0)
FROM_0 = ja.Positions(0, 0)

Arrays = Mapping[str, Any]
Options = Callable[[Arrays], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One row of the table: of a call, from (q, k, v, learnt arrays) and the rest, to (out, lse).

    options: of `ja.attend`, from all arrays. written: of `dense.attend`, likewise.
    learnt: real arrays. rest: arrays without a gradient.
    """

    name: str
    options: Options = lambda a: {}
    written: Options = lambda a: {}
    learnt: Arrays = field(default_factory=dict)
    rest: Arrays = field(default_factory=dict)
    groups: int = 1
    attends: Callable[..., Any] = ja.attend
    only_lse: bool = False

    def arrays(self) -> tuple[Any, Any]:
        """(q, k, v, learnt), and the rest."""
        random = np.random.default_rng(len(self.name))
        shapes = (T, H * self.groups, D), (S, H, D), (S, H, E)
        q, k, v = (random.standard_normal(shape) for shape in shapes)
        return jax.tree.map(jnp.asarray, ((q, k, v, dict(self.learnt)), dict(self.rest)))

    def attend(self, x: Any, rest: Arrays, backend: Any) -> Any:
        *arrays, learnt = x
        options = {"positions": FROM_0} | self.options({**learnt, **rest})
        got = self.attends(*arrays, **options, backend=backend)
        return self._shown(got.out, got.lse)

    def dense(self, x: Any, rest: Arrays) -> Any:
        *arrays, learnt = x
        return self._shown(*dense.attend(*arrays, **self.written({**learnt, **rest})))

    def _shown(self, out: Any, lse: Any) -> Any:
        return (jnp.zeros(()) if self.only_lse else out), lse


def _merged(q: Any, k: Any, v: Any, positions: Any, backend: Any) -> Any:
    """Of two disjoint sets of keys."""
    return ja.merge(*(ja.attend(q, k[x], v[x], backend=backend) for x in (_EARLY, _LATE)))


_EARLY, _LATE = slice(0, 3), slice(3, S)


def _mask(name: str, mask: Any, allowed: Any, positions: Any = FROM_0, **rest: Any) -> Case:
    """The mask, the pairs it allows and the positions, or functions of the rest to them."""
    of = lambda x: x if callable(x) and not isinstance(x, ja.Mask) else lambda a: x
    options = lambda a: {"mask": of(mask)(a), "positions": of(positions)(a)}
    return Case(name, options, lambda a: {"allowed": of(allowed)(a)}, rest=rest)


def _score(name: str, score: Options | Any, written: Any, **learnt: Any) -> Case:
    """score: jaxattn's, from the arrays; written: from the arrays and the logits."""
    options = lambda a: {"score": score(a)}
    return Case(name, options, lambda a: {"score": lambda x: written(a, x)}, learnt=learnt)


def _factor() -> jax.Array:
    """[h t s]: what dropout multiplies weights with, read off with unit vectors as values."""
    q, k, v = jnp.zeros((T, H, 1)), jnp.zeros((S, H, 1)), jnp.eye(S)[:, None].repeat(H, 1)
    out = ja.attention(q, k, v, dropout=DROPOUT, backend=ja.Reference())
    return jnp.where(out.swapaxes(0, 1) > 0, 1 / (1 - DROPOUT.rate), 0)


DROPOUT = ja.Dropout(0.3, jax.random.wrap_key_data(jnp.array([1, 2], jnp.uint32)))

_Q_IDS, _K_IDS = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 2])
_PLACES = NUMBERS.permutation(S)
_SEEN = NUMBERS.random((H, T, S)) < 0.5
_SEEN[..., 0] = True
_CAUSAL, _WINDOW = J <= I + 2, (I <= J) & (J <= I + 2)
_LAST_5 = ja.Causal() & ja.Window(4)
_within_5 = lambda back: (back >= 0) & (back <= 4)


def _cap(a: Arrays, x: Any) -> Any:
    return a["cap"] * jnp.tanh(x / a["cap"])


def _alibi(a: Arrays, x: Any) -> Any:
    return x - a["slopes"][:, None, None] * np.abs(I - J)


def _relative(a: Arrays, x: Any) -> Any:
    return x + jnp.moveaxis(a["table"][bucket(J - I, 8, 4)], -1, 0)


_SLOPES, _TABLE = NUMBERS.standard_normal(H), NUMBERS.standard_normal((8, H))
_BIAS, _SINKS = NUMBERS.standard_normal((H, T, S)), NUMBERS.standard_normal(H)
_BY_KEY, _CAP = NUMBERS.standard_normal(S), np.array(0.7)

CASES = (
    _mask("`EVERYTHING`", ja.EVERYTHING, True),
    _mask("`Causal`", ja.Causal(2), _CAUSAL),
    _mask("`Window`", ja.Window(2, 0, 2), _WINDOW),
    _mask("`PrefixLM`", ja.PrefixLM(3), (J < 3) | (J <= I)),
    _mask("`Lengths`", ja.Lengths(k=5), J < 5),
    _mask(
        "`Segments`",
        lambda a: ja.Segments(a["q"], a["k"]),
        _Q_IDS[:, None] == _K_IDS,
        q=_Q_IDS,
        k=_K_IDS,
    ),
    _mask("`Dense`", lambda a: ja.Dense(a["seen"]), _SEEN, seen=_SEEN),
    _mask("`Where`", ja.Where(lambda at: (at.q + at.k) % 2 == 0), (I + J) % 2 == 0),
    _mask("`a & b`", ja.Causal(2) & ja.Lengths(k=5), _CAUSAL & (J < 5)),
    _mask("`a \\| b`", ja.Window(2, 0, 2) | ja.Lengths(k=2), _WINDOW | (J < 2)),
    _mask("`~a`", ~ja.Window(1), ~((I - 1 <= J) & (J <= I))),
    _mask(
        "traced numbers in masks",
        lambda a: ja.PrefixLM(a["prefix"]) & ja.Lengths(k=a["k"]),
        lambda a: ((J <= I) | (a["prefix"] > J)) & (a["k"] > J),
        prefix=np.array(3),
        k=np.array(4),
    ),
    _mask("`positions=END`", _LAST_5, _within_5(I + 2 - J), ja.END),
    _mask(
        "`Positions` of starts, traced",
        _LAST_5,
        lambda a: _within_5(I + a["q"] - J - a["k"]),
        lambda a: ja.Positions(a["q"], a["k"]),
        q=np.array(3),
        k=np.array(1),
    ),
    _mask(
        "`Positions` of every token",
        _LAST_5,
        _within_5(I + 2 - _PLACES),
        lambda a: ja.Positions(a["q"] + 2, a["k"]),
        q=np.arange(T),
        k=_PLACES,
    ),
    _score("`Bias`", lambda a: ja.Bias(a["bias"]), lambda a, x: x + a["bias"], bias=_BIAS),
    _score("`ALiBi`", lambda a: ja.ALiBi(a["slopes"]), _alibi, slopes=_SLOPES),
    _score(
        "`RelativeBias`",
        lambda a: ja.RelativeBias(a["table"], max_distance=4),
        _relative,
        table=_TABLE,
    ),
    _score("`SoftCap`", lambda a: ja.SoftCap(a["cap"]), _cap, cap=_CAP),
    _score(
        "`score=function`",
        lambda a: lambda logit, at: logit * a["by_key"][at.k] + at.q,
        lambda a, x: x * a["by_key"] + I,
        by_key=_BY_KEY,
    ),
    _score(
        "`score=(a, b)`",
        lambda a: (ja.ALiBi(a["slopes"]), ja.SoftCap(a["cap"])),
        lambda a, x: _cap(a, _alibi(a, x)),
        slopes=_SLOPES,
        cap=_CAP,
    ),
    Case("`sinks`", dict, dict, learnt={"sinks": _SINKS}),
    Case("`Dropout`", lambda a: {"dropout": DROPOUT}, lambda a: {"factor": _factor()}),
    Case("`merge`", attends=_merged),
    Case("lse alone", only_lse=True),
    Case("grouped heads", groups=2),
)

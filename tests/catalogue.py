"""Every mask, score and observation that tests go through, each beside what it means.

A new one is listed here, and so comes into every matrix; test_catalogue.py fails if a public one
is missing.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import rules
import scored
from numpy import ndarray
from oracle import observe as truth
from rules import (
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
from scored import alibi, bias, cap, cap_of_each_head, chain, function, relative

import jaxattn as ja
from jaxattn import observe as see

SQUARE = Shape((2,), 67, 67, 6, 3, 5, 7)
WIDE = SQUARE._replace(s=101)
TALL = SQUARE._replace(t=101)
ONE = WIDE._replace(t=1)
WIDE_0, TALL_0, ONE_0 = (shape.at(0) for shape in (WIDE, TALL, ONE))
WIDE_END, TALL_END, ONE_END = (shape.at(ja.END) for shape in (WIDE, TALL, ONE))
STARTS = WIDE.at(np.array([3, -20], np.int32))
SORTED = WIDE.at(np.arange(67) * 2 // 3, np.arange(101) - 9)

# One of each kind, and what it is used on.
KINDS: dict[str, tuple[Shape, rules.Build]] = {
    "everything": (WIDE, everything),
    "causal": (SQUARE, causal()),
    "window-end-wide": (WIDE_END, window(9, 2)),
    "prefix": (WIDE_END, prefix(20)),
    "lengths-both": (WIDE, lengths(np.array([67, 30], np.int32), np.array([0, 64], np.int32))),
    "segments": (SQUARE, packed),
    "dense-bhts": (WIDE, dense("bhts")),
    "strided": (WIDE_0, strided()),
    "causal-array": (STARTS, causal()),
    "ring-buffer": (ring(WIDE), window(40)),
    "shuffled": (shuffled(WIDE), causal()),
    "causal-and-either": (SQUARE, both(causal(), either(packed, dense("1hts", 0.05)))),
    "segments-or-not-window": (SQUARE, either(packed, inverse(window(30, 20)))),
}
MASKS = KINDS | {
    "causal-top-left-wide": (WIDE_0, causal()),
    "causal-top-left-tall": (TALL_0, causal()),
    "causal-end-wide": (WIDE_END, causal()),
    "causal-end-tall": (TALL_END, causal()),
    "causal-ahead": (SQUARE, causal(5)),
    "causal-behind": (SQUARE, causal(-40)),
    "causal-beyond": (SQUARE, causal(-67)),
    "causal-far-ahead": (SQUARE, causal(500)),
    "causal-far-behind": (SQUARE, causal(-500)),
    "causal-array-behind": (STARTS, causal(-2)),
    "causal-end-of-tokens": (WIDE.at(ja.END, np.arange(101) * 3 % 101), causal()),
    "causal-decode": (ONE_END, causal()),
    "causal-decode-first": (ONE_0, causal()),
    "window": (SQUARE, window(17)),
    "window-right": (SQUARE, window(0, 17)),
    "window-both-sides": (SQUARE, window(3, 5)),
    "window-self": (SQUARE, window(0, 0)),
    "window-wider": (SQUARE, window(200, 200)),
    "window-away": (SQUARE, window(2, 1, 80)),
    "window-ahead": (WIDE_0, window(0, 9, 40)),
    "window-beyond": (SQUARE, window(4, 0, 22)),
    "window-unbounded-left": (SQUARE, window(None, 4)),
    "window-unbounded-right": (SQUARE, window(4, None)),
    "window-unbounded": (SQUARE, window(None, None)),
    "window-end-tall": (TALL_END, window(9, 2)),
    "window-top-left-tall": (TALL_0, window(9, 2)),
    "window-array": (WIDE.at(np.array([[3], [-20]], np.int32), 1), window(9, 2, 1)),
    "window-decode": (ONE_END, window(40)),
    "lengths-keys": (WIDE, lengths(k=np.array([70, 5], np.int32))),
    "lengths-queries": (WIDE, lengths(q=np.array([67, 4]))),
    "lengths-ints": (WIDE, lengths(50, 33)),
    "lengths-one-for-all": (WIDE, lengths(np.array([50]), np.array(33))),
    "lengths-beyond": (WIDE, lengths(500, 500)),
    "lengths-none": (WIDE, lengths()),
    "segments-scattered": (WIDE, scattered),
    "dense-1": (WIDE, dense("1")),
    "dense-ts": (WIDE, dense("ts")),
    "dense-hts": (WIDE, dense("hts", 0.01)),
    "dense-b1ts": (WIDE, dense("b1ts")),
    "dense-1hts": (WIDE, dense("1hts")),
    "dense-bht1": (WIDE, dense("bht1")),
    "dense-keys": (WIDE, dense("b11s")),
    "dense-queries": (WIDE, dense("t1")),
    "dense-sparse": (WIDE, dense("b1ts", share=0.01)),
    "causal-window": (SQUARE, both(causal(), window(20, 20))),
    "causal-end-window-end": (WIDE_END, both(causal(), window(20, 20, -5))),
    "causal-segments": (SQUARE, both(causal(), packed)),
    "causal-lengths": (WIDE_END, both(causal(), lengths(k=np.array([90, 40], np.int32)))),
    "causal-query-lengths": (WIDE_0, both(causal(), lengths(q=np.array([3, 50])))),
    "causal-dense": (SQUARE, both(causal(), dense("1hts"))),
    "two-lengths": (WIDE, both(lengths(20, 50), lengths(np.array([60, 4]), 30))),
    "window-dense-lengths": (WIDE_0, both(window(14, 14), dense("h11", 0.5), lengths(k=41))),
    "window-before-lengths": (SQUARE, both(window(9, 0, 23), lengths(k=40))),
    "window-array-before-lengths": (STARTS, both(window(4), lengths(k=40))),
    "window-segments-lengths": (SQUARE, both(window(11, 4), packed, lengths(60, 50))),
    "two-windows": (SQUARE, both(window(30, 10), window(10, 30))),
    "everything-and": (SQUARE, both(everything, causal())),
    "all-at-once": (
        SQUARE,
        both(causal(2), window(26, 1), packed, lengths(50, 61), dense("ts")),
    ),
    "disjoint": (SQUARE, both(causal(-9), window(2, 2))),
    "prefix-array": (WIDE.at(3), prefix(np.array([40, 0], np.int32))),
    "prefix-starts": (WIDE.at(np.array([-20, 5]), 0), prefix(np.array([30, 0]))),
    "prefix-later-keys": (WIDE.at(np.array([4, 9]), np.array([3, -2])), prefix(5)),
    "prefix-of-all": (SQUARE, prefix(500)),
    "prefix-and-window": (SQUARE, both(prefix(5), window(8, 2))),
    "ring-buffer-both-sides": (ring(WIDE, roll=-4), window(12, 3)),
    "ring-buffer-unbounded": (ring(WIDE), window(None, None)),
    "ring-buffer-both": (ring(WIDE), both(causal(), inverse(window(12)), window(49))),
    "shuffled-window": (shuffled(WIDE), both(window(30, 9), inverse(window(3)))),
    "shuffled-window-of-few": (shuffled(WIDE), window(2, 1, 1)),
    "shuffled-prefix": (shuffled(WIDE), prefix(np.array([4, 0], np.int32))),
    "shuffled-strided": (shuffled(WIDE), strided()),
    "shuffled-one": (shuffled(WIDE._replace(batch=(1,))), causal(1)),
    "sorted-causal": (SORTED, causal()),
    "sorted-causal-window": (SORTED, both(causal(), window(5))),
    "sorted-prefix": (SORTED, prefix(np.array([9, 0]))),
    "packed-from-0": (SQUARE.at(np.arange(67) % 22, np.arange(67) % 22), both(packed, window(3))),
    "strided-array": (STARTS, strided()),
    "strided-sparse": (WIDE_0, strided(7)),
    "looked-up": (WIDE_0, looked_up),
    "not-causal": (WIDE_END, inverse(causal())),
    "not-window": (SQUARE, inverse(window(6, 9))),
    "not-not-window": (SQUARE, inverse(inverse(window(2, 1)))),
    "not-lengths": (WIDE, inverse(lengths(np.array([2, 53]), np.array([17, 93])))),
    "not-segments": (WIDE, inverse(scattered)),
    "not-looked-up": (WIDE_0, inverse(looked_up)),
    "nothing": (WIDE, inverse(everything)),
    "nothing-or-segments": (SQUARE, either(inverse(everything), packed)),
    "everything-or": (WIDE, either(everything, scattered)),
    "window-or-sinks": (WIDE_END, either(window(11), lengths(k=3))),
    "window-or-window": (SQUARE, either(window(3, 0, -12), window(0, 3, 12))),
    "segments-or-strided": (SQUARE, either(packed, strided(4), dense("hts", 0.1))),
    "either-and-either": (
        WIDE_0,
        both(either(scattered, strided()), either(prefix(2), looked_up)),
    ),
    "nested": (
        SQUARE,
        both(either(window(3), inverse(packed), lengths(k=2)), inverse(window(0, 0)), causal(1)),
    ),
    "not-nested": (
        SQUARE,
        inverse(both(either(window(3), inverse(packed)), inverse(strided(2)))),
    ),
}

SCORES: dict[str, scored.Build] = {
    "bias-1": bias("1"),
    "bias-s": bias("s"),
    "bias-t1": bias("t1"),
    "bias-ts": bias("ts"),
    "bias-h1s": bias("h1s"),
    "bias-ht1": bias("ht1"),
    "bias-hts": bias("hts"),
    "bias-h11": bias("h11"),
    "bias-b11s": bias("b11s"),
    "bias-b1ts": bias("b1ts"),
    "bias-bht1": bias("bht1"),
    "bias-bhts": bias("bhts"),
    "bias-hiding": bias("hts", hidden=0.3),
    "alibi": alibi(),
    "alibi-standard": alibi(learnt=False),
    "relative": relative(),
    "relative-causal": relative(False, 6, 9),
    "cap": cap(),
    "cap-of-each-head": cap_of_each_head,
    "function-of-head-and-key": function("add-by-head-and-key"),
    "function-of-distance": function("add-by-distance"),
    "function-of-batch-and-query": function("times-by-batch-and-query"),
    "bias-cap": chain(bias("h1s"), cap()),
    "cap-bias": chain(cap(), bias("h1s")),
    "bias-gate-cap-bias": chain(
        bias("ts"), function("times-by-batch-and-query"), cap(), bias("b111", 0.0)
    ),
    "function-and-relative": chain(function("add-by-distance"), relative()),
    "two-functions-alibi-relative": chain(
        function("add-by-distance"), alibi(), cap_of_each_head, relative()
    ),
}
BY_POSITION = ("alibi", "alibi-standard", "relative", "relative-causal", "function-of-distance")


def _nothing() -> float:
    return 0.0


def _squares(seen: Any, array: Any) -> Any:
    return array[0] * (seen.weights**2).sum()


def _squares_of_rows(seen: Any) -> Any:
    return (seen.weights**2).sum(1)


def _no_top() -> dict[str, float]:
    return {"top": 0.0}


def _top(seen: Any) -> dict[str, Any]:
    return {"top": (seen.weights**3).max(axis=0)}


def _higher(a: Any, b: Any) -> dict[str, Any]:
    return {"top": jnp.maximum(a["top"], b["top"])}


def _turned(state: Any) -> Any:
    return -state["top"]


Truth = Callable[[truth.Weights], list[ndarray]]


def observations(t: int, s: int, h: int) -> dict[str, tuple[see.Observation, Truth]]:
    """For t queries with h heads of s keys; each with what it shows of weights."""
    u, w = np.cos(np.arange(2.0 * s)).reshape(s, 2), np.sin(np.arange(2.0 * h * t))
    u, w = u.astype(np.float32), w.reshape(h, t, 2).astype(np.float32)
    of = (1 + np.cos(np.arange(t))).astype(np.float32)
    third = np.arange(s) % 3 == 0
    rows, columns = np.array([0, t - 1, t // 4]), np.array([3 % s, s - 1])
    return {
        "lse": (see.LogSumExp(), truth.log_sum_exp),
        "row_max": (see.RowMax(), truth.row_max),
        "max_logit": (see.MaxLogit(), truth.max_logit),
        "before_scores": (see.MaxLogit(before_scores=True), truth.max_logit),
        "entropy": (see.Entropy(), truth.entropy),
        "top": (see.TopKeys(3), lambda x: truth.top_keys(x, 3)),
        "received": (see.Received(), truth.received),
        "received_of": (see.Received(of), lambda x: truth.received(x, of)),
        "received_max": (see.ReceivedMax(), truth.received_max),
        "map": (see.Map(8), lambda x: truth.cells(x, 8)),
        "map_sum": (see.Map(5, see.SUM), lambda x: truth.cells(x, 5, "sum")),
        "map_peak": (see.Map(8, see.PEAK), lambda x: truth.cells(x, 8, "peak")),
        "map_whole": (see.Map(64, see.SUM), lambda x: truth.cells(x, 64, "sum")),
        "rows": (see.Rows(rows), lambda x: truth.rows(x, rows)),
        "columns": (see.Columns(columns), lambda x: truth.columns(x, columns)),
        "diagonal": (see.Diagonal(-1), lambda x: truth.diagonal(x, -1)),
        "distance": (see.Distance(), truth.distance),
        "mass": (see.MassOn(4), lambda x: truth.mass_on(x, np.arange(s) < 4)),
        "mass_on": (see.MassOn(third), lambda x: truth.mass_on(x, third)),
        "apply": (see.Apply(u), lambda x: truth.apply(x, u)),
        "transposed": (see.ApplyTransposed(w), lambda x: truth.apply_transposed(x, w)),
        "fold": (
            see.Fold(_nothing, _squares, arrays=(np.full(1, 2, np.float32),)),
            lambda x: [(x.p**2).sum((-1, -2)) * 2],
        ),
        "fold_rows": (
            see.Fold(_nothing, _squares_of_rows, per=see.QUERY),
            lambda x: [truth.per_query((x.p**2).sum(-1))],
        ),
        "fold_keys": (
            see.Fold(_no_top, _top, _higher, _turned, per=see.KEY),
            lambda x: [truth.per_query(-(x.p**3).max(-2))],
        ),
    }


def in_groups(names: Any, count: int = 4) -> list[tuple[str, ...]]:
    """All names, in groups that are observed by one program."""
    return [tuple(names)[i::count] for i in range(count)]


def sampled(names: Any, n: int) -> list[Any]:
    """Masks or cases as parameters: of each kind one is ordinary, and of the others one in n."""
    every = lambda x: 1 if str(x) in KINDS else n
    return [pytest.param(x, marks=pytest.mark.sampled(every(x)), id=str(x)) for x in names]

"""Readings against NumPy in float64, whichever way they are made; and what is refused."""

from typing import Any

import jax
import numpy as np
import pytest
from viewer_pages import HEADS, LAYERS, TOKENS, T, causal_reading, inputs, weights_of

import jaxattn as ja
from jaxattn import viewer
from jaxattn.observe import PEAK, SUM
from jaxattn.viewer import _labels, _next
from jaxattn.viewer._reading import Opened, Steps

Q, K, V, X = inputs()
WEIGHTS = weights_of(Q, K)
LONG = 150
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-6}


def statistics(weights, tokens, keys=None):
    """One number of each head, written out: means over queries that see more than one key."""
    l, h, t, s = weights.shape
    out = {}
    rows = [i for i in range(t) if (weights[0, 0, i] > 0).sum() > 1]
    surprise = weights * -np.log(np.where(weights > 0, weights, 1))
    out["entropy"] = surprise.sum(-1)[:, :, rows].mean(-1)
    full = np.mean([np.log((weights[0, 0, i] > 0).sum()) for i in rows])
    out["spread"] = out["entropy"] / full
    out["sink"] = weights[:, :, rows, 0].mean(-1)
    if keys is not None:
        return out
    at = lambda ahead: np.stack(
        [weights[:, :, i, i + ahead] if 0 <= i + ahead < s else np.zeros((l, h)) for i in rows], -1
    )
    beside = {"previous": -1, "itself": 0, "next": 1}
    out |= {name: at(ahead).mean(-1) for name, ahead in beside.items()}
    far = sum(weights[:, :, i, j] * abs(i - j) for i in rows for j in range(s))
    out["distance"] = far / len(rows)
    repeats = {i: [j for j in range(1, i + 1) if tokens[j - 1] == tokens[i]] for i in rows}
    repeats = {i: js for i, js in repeats.items() if js}
    if repeats:
        each = [weights[:, :, i, js].sum(-1) for i, js in repeats.items()]
        out["induction"] = np.mean(each, axis=0)
    return out


def of_qk(t, causal=True):
    q, k, v, x = inputs(t=t, s=t)
    tokens = (TOKENS * LONG)[:t]
    mask = ja.Causal() if causal else ja.EVERYTHING
    reading = viewer.from_qk(q, k, v, x=x, tokens=tokens, mask=mask)
    return reading, weights_of(q, k, causal=causal), tokens


def of_weights(t, causal=True):
    _, weights, tokens = of_qk(t, causal)
    return viewer.from_weights(weights, tokens), weights, tokens


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("t", [T, LONG])
@pytest.mark.parametrize("make", [of_qk, of_weights])
def test_statistics(make, t, causal):
    reading, weights, tokens = make(t, causal)
    for name, want in statistics(weights, tokens).items():
        np.testing.assert_allclose(getattr(reading.statistics, name), want, **CLOSE, err_msg=name)


@pytest.mark.parametrize("t", [T, LONG])
@pytest.mark.parametrize("make", [of_qk, of_weights])
def test_maps_rows_columns_and_top_keys(make, t):
    reading, weights, _ = make(t)
    side = -(-t // 128)
    cells = -(-t // side)
    pad = cells * side - t
    padded = np.pad(weights, ((0, 0), (0, 0), (0, pad), (0, pad)))
    sums = padded.reshape(LAYERS, HEADS, cells, side, cells, side).sum((3, 5))
    many = np.minimum(side, t - side * np.arange(cells))
    np.testing.assert_allclose(reading.maps, sums / many[:, None], **CLOSE)
    open_ts = np.pad(np.tril(np.ones((t, t), int)), ((0, pad), (0, pad)))
    pairs = open_ts.reshape(cells, side, cells, side).sum((1, 3))
    np.testing.assert_array_equal(reading.pairs, np.broadcast_to(pairs, reading.pairs.shape))
    np.testing.assert_array_equal(reading.sees[1, 2], np.arange(1, t + 1))
    np.testing.assert_allclose(reading.received, weights.sum(2), **CLOSE)
    queries = reading.tops.queries
    np.testing.assert_array_equal(queries, np.minimum(np.arange(1, cells + 1) * side, t) - 1)
    top = 8 if t <= 128 else 5
    best = -np.sort(-weights[:, :, queries], axis=-1)[..., :top]
    np.testing.assert_allclose(reading.tops.weights, best, **CLOSE)
    seen = reading.tops.keys >= 0
    np.testing.assert_array_equal(seen.sum(-1)[0, 0], np.minimum(queries + 1, top))
    picked = np.take_along_axis(weights[:, :, queries], np.maximum(reading.tops.keys, 0), -1)
    np.testing.assert_allclose(np.where(seen, picked, 0), best, **CLOSE)


def test_cells_may_show_peaks():
    q, k, *_ = inputs(t=LONG, s=LONG)
    weights, tokens = weights_of(q, k), [str(i) for i in range(LONG)]
    want = weights.reshape(LAYERS, HEADS, LONG // 2, 2, LONG // 2, 2).max((3, 5))
    for reading in (
        viewer.from_qk(q, k, tokens=tokens, mask=ja.Causal(), reduce=PEAK),
        viewer.from_weights(weights, tokens, reduce=PEAK),
    ):
        np.testing.assert_allclose(reading.maps, want, **CLOSE)


def test_cross_attention_has_no_previous_token():
    q, k, *_ = inputs(t=5, s=9)
    weights = weights_of(q, k, causal=False)
    tokens, keys = list("abcde"), list("fghijklmn")
    for reading in (
        viewer.from_qk(q, k, tokens=tokens, keys=keys),
        viewer.from_weights(weights, tokens, keys=keys),
    ):
        for name, want in statistics(weights, tokens, keys).items():
            np.testing.assert_allclose(getattr(reading.statistics, name), want, **CLOSE)
        for name in ("previous", "itself", "next", "induction", "distance"):
            assert np.isnan(getattr(reading.statistics, name)).all()
        np.testing.assert_allclose(reading.maps, weights, **CLOSE)


def test_a_model_that_observes_gives_the_same_reading():
    """A batch of one, as a model has it, and what makes each layer told by any object."""

    class Made:
        def __init__(self, i):
            self.q, self.k, self.v, self.x = Q[i][None], K[i][None], V[i][None], X[i][None]
            self.score, self.scale, self.sinks, self.mask = (), None, None, ja.Causal()

    observe = viewer.wanted(TOKENS)
    attend = jax.jit(lambda q, k, v: ja.attend(q, k, v, mask=ja.Causal(), observe=observe).observed)
    seen = [attend(Q[i][None], K[i][None], V[i][None]) for i in range(LAYERS)]
    reading = viewer.from_observed(seen, TOKENS, layers=[Made(i) for i in range(LAYERS)])
    want = causal_reading()
    np.testing.assert_allclose(reading.maps, want.maps, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(reading.entropy, want.entropy, rtol=1e-5, atol=1e-6)
    assert isinstance(reading.steps, Steps)
    np.testing.assert_array_equal(reading.steps.q, np.moveaxis(Q, 2, 1))
    np.testing.assert_array_equal(reading.steps.x, X)


def test_grouped_heads_have_the_keys_that_they_read():
    reading = viewer.from_qk(Q, K[:, :, :1], V[:, :, :1], tokens=TOKENS)
    assert isinstance(reading.steps, Steps)
    assert reading.steps.k.shape == (LAYERS, HEADS, T, Q.shape[-1])
    np.testing.assert_allclose(
        reading.maps, weights_of(Q, np.repeat(K[:, :, :1], HEADS, 2), causal=False), **CLOSE
    )


def test_long_inputs_open_some_queries():
    q, k, v, _ = inputs(t=LONG, s=LONG)
    weights = weights_of(q, k)
    tokens = [str(i) for i in range(LONG)]
    reading = viewer.from_qk(q, k, v, tokens=tokens, mask=ja.Causal(), opened=[149, 3])
    opened = reading.steps
    assert isinstance(opened, Opened)
    assert opened.out is not None
    np.testing.assert_array_equal(opened.queries, [149, 3])
    out = np.einsum("lhts,lshe->lhte", weights, v)[:, :, [149, 3]]
    np.testing.assert_allclose(opened.out, out, rtol=1e-4, atol=1e-5)
    best = -np.sort(-weights[:, :, [149, 3]])[..., :5]
    np.testing.assert_allclose(opened.weights, best, **CLOSE)
    logits = np.einsum("lhnd,lhnkd->lhnk", opened.q, opened.k) * q.shape[-1] ** -0.5
    seen = opened.keys >= 0
    np.testing.assert_allclose(
        np.exp(logits - opened.lse[..., None])[seen], opened.weights[seen], rtol=1e-4, atol=1e-7
    )
    assert (seen.sum(-1)[:, :, 1] == 4).all()


def test_heads_are_called_by_what_they_look_at():
    t = 12
    tokens = list("abcdef") * 2
    eye = np.eye(t)
    previous = np.eye(t, k=-1) + np.eye(t) * (np.arange(t) == 0)
    induction = np.eye(t, k=-5)
    induction[:5, 0] = 1
    sink = np.zeros((t, t))
    sink[:, 0] = 1
    even = np.tril(np.ones((t, t)))
    even /= even.sum(1, keepdims=True)
    mixed = 0.3 * eye + 0.3 * previous + 0.4 * even
    allowed = np.tril(np.ones((t, t), bool))
    heads = np.stack([eye, previous, induction, sink, even, mixed])[None]
    reading = viewer.from_weights(heads, tokens, allowed=allowed)
    names = [reading.names(0, h) for h in range(6)]
    assert names[0] == ["self head"]
    assert names[1] == ["previous-token head"]
    assert names[2] == ["induction head"]
    assert names[3] == ["sink head"]
    assert names[4] == ["averaging head"]
    assert names[5] == []


def test_masked_heads_and_a_query_that_sees_nothing():
    allowed = np.ones((T, T), bool)
    allowed[:, 3], allowed[6] = False, False
    reading = viewer.from_qk(Q, K, V, tokens=TOKENS, mask=ja.Dense(allowed))
    np.testing.assert_array_equal(reading.pairs, np.broadcast_to(allowed, reading.pairs.shape))
    assert (reading.entropy[:, :, 6] == 0).all()
    assert (reading.tops.keys[:, :, 6] == -1).all()
    html = viewer.page(reading).html
    assert html.isascii()


def test_notes_name_what_comes_between_products_and_softmax():
    score = [ja.SoftCap(20.0), ja.ALiBi()]
    sinks = np.zeros(HEADS, np.float32)
    reading = viewer.from_qk(
        Q, K, V, tokens=TOKENS, mask=ja.Causal(), score=score, sinks=sinks, notes=["rotary"]
    )
    assert reading.notes == ("rotary",)
    cap, alibi, sink = reading.changes
    assert cap == "soft cap: c · tanh(x / c) with c = 20"
    assert "ALiBi" in alibi
    assert "sink" in sink
    assert isinstance(reading.steps, Steps)
    assert reading.steps.logits is not None
    assert reading.steps.sinks is not None
    assert reading.steps.sinks.shape == (LAYERS, HEADS)


@pytest.mark.parametrize("temperature", _next.TEMPERATURES)
def test_next_tokens_are_exact_at_every_temperature(temperature):
    logits = np.random.default_rng(0).standard_normal((5, 100)) * 4
    ids = [7, 3, 99, 0, 50]
    known = viewer.next_tokens(logits, str, ids=ids, top=6)
    i = known.temperatures.index(temperature)
    total = np.exp(known.logits / temperature).sum(1) + np.exp(known.rest[:, i])
    want = np.exp(logits / temperature)
    want /= want.sum(1, keepdims=True)
    order = np.argsort(-logits)[:, :6]
    assert [list(row) for row in known.tokens] == order.astype(str).tolist()
    got = np.exp(known.logits / temperature) / total[:, None]
    np.testing.assert_allclose(got, np.take_along_axis(want, order, 1), rtol=1e-12)
    assert list(known.came) == ["3", "99", "0", "50", ""]
    ranks = [1 + int((logits[n] > logits[n, ids[n + 1]]).sum()) for n in range(4)]
    assert known.rank[:4].tolist() == ranks


def test_tokens_are_made_readable():
    shown = {"Ġpeople": "·people", "▁a": "·a", "\n": "⏎", "": "∅", "\0": "␀", "##s": "##s"}
    shown |= {"\ud800": "U+D800", "a\u2028b": "aU+2028b", "\u202e": "U+202E"}
    shown |= {"שלום": "שלום", "👩": "👩"}
    assert {token: _labels.readable(token) for token in shown} == shown


def ids() -> Any:
    return [1] * T


BAD: dict[str, Any] = {
    "tokens as one text": (
        lambda: viewer.from_weights(WEIGHTS, "a text"),
        TypeError,
        "list of str",
    ),
    "ids as tokens": (lambda: viewer.from_weights(WEIGHTS, ids()), TypeError, "convert_ids"),
    "too few tokens": (lambda: viewer.from_weights(WEIGHTS, TOKENS[:-1]), ValueError, "11"),
    "a batch": (lambda: viewer.from_weights(WEIGHTS[None], TOKENS), ValueError, "one sequence"),
    "no layer": (lambda: viewer.from_weights([], TOKENS), ValueError, "at least one"),
    "keys without tokens": (
        lambda: viewer.from_weights(WEIGHTS[..., :5], TOKENS),
        ValueError,
        "keys=",
    ),
    "layers of k": (lambda: viewer.from_qk(Q, K[:1], tokens=TOKENS), ValueError, "layers"),
    "a query that is not there": (lambda: viewer.wanted(["a"] * 50, opened=[50]), ValueError, "49"),
    "maps of sums": (lambda: viewer.wanted(["a"], reduce=SUM), ValueError, "SHARE or PEAK"),
    "no map": (
        lambda: viewer.from_observed([{"entropy": WEIGHTS}], TOKENS),
        ValueError,
        r"wanted\(tokens\)",
    ),
    "three readings": (lambda: viewer.page(*[causal_reading()] * 3), ValueError, "one reading"),
    "no reading": (lambda: viewer.page(ids()), TypeError, "from_weights"),
    "logits of a batch": (lambda: viewer.next_tokens(WEIGHTS, str), ValueError, r"\[t v\]"),
    "temperature 0": (
        lambda: viewer.next_tokens(WEIGHTS[0, 0], str, temperatures=[0]),
        ValueError,
        "above 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_tell_the_rule_and_the_remedy(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        call()

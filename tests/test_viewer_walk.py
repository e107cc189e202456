"""The walk through a head, and the next tokens: the numbers on the page against NumPy."""

import re

import numpy as np
import pytest
from viewer_pages import (
    HEADS,
    TOKENS,
    D,
    T,
    causal_reading,
    inputs,
    numbers,
    softmax,
    weights_of,
)

import jaxattn as ja
from jaxattn import viewer

Q, K, V, X = inputs()


def told(it):
    """The sums of all steps, by the step's name."""
    steps = {}
    for step in it.page.locator(".step").all():
        name = step.locator("h3").inner_text()
        result = step.locator(".sum .result")
        if result.count():
            text = result.first.inner_text().replace("−", "-")
            steps[name] = -np.inf if "∞" in text else float(text)
    return steps


def choose(it, query, key):
    it.page.locator("#walk-controls select").nth(0).select_option(str(query))
    it.page.locator("#walk-controls select").nth(1).select_option(str(key))
    it.settle()


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2)])
def test_every_step_has_the_numbers_of_the_chosen_pair(show, layer, head):
    q, k, v = (x[layer, :, head].astype(np.float64) for x in (Q, K, V))
    raw = q @ k.T
    weights = weights_of(Q, K)[layer, head]
    out = weights @ v
    page = viewer.page(causal_reading())
    with show(page, fragment=f"#head={layer}.{head}") as it:
        shapes = dict(
            zip(
                it.page.locator(".step h3").all_inner_texts(),
                it.page.locator(".step .shape").all_inner_texts(),
                strict=True,
            )
        )
        assert shapes["Tokens as numbers"] == "11 tokens × 13 numbers"
        assert shapes["Query, key and value"] == "Q 11 × 5, K 11 × 5, V 11 × 7"
        assert shapes["Output"] == "11 × 7"
        for i, j in [(10, 3), (4, 4), (6, 1)]:
            choose(it, i, j)
            got = told(it)
            np.testing.assert_allclose(got["Scores"], raw[i, j], atol=6e-4)
            np.testing.assert_allclose(got["Scaled"], raw[i, j] / np.sqrt(D), atol=6e-4)
            np.testing.assert_allclose(got["Masked"], raw[i, j] / np.sqrt(D), atol=6e-4)
            np.testing.assert_allclose(got["Weights"], weights[i, j], atol=6e-5)
            np.testing.assert_allclose(got["Output"], out[i, 0], atol=6e-4)
        choose(it, 2, 7)
        assert told(it)["Masked"] == -np.inf
        assert told(it)["Weights"] == 0


def test_pointing_at_a_cell_tells_its_number_and_marks_it_everywhere(show):
    raw = Q[0, :, 0].astype(np.float64) @ K[0, :, 0].T
    with show(viewer.page(causal_reading())) as it:
        canvas = it.page.locator("canvas[data-matrix='raw']")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        label = canvas.get_attribute("aria-label")
        assert re.match("S, 11 by 11", label)
        for i, j in [(3, 3), (9, 2)]:
            place = it.page.evaluate(
                "() => { const m = walk.matrices.find((m) => m.id === 'raw');"
                "return [m.left, m.cell, m.tall]; }"
            )
            left, wide, tall = place
            canvas.hover(position={"x": left + (j + 0.5) * wide, "y": (i + 0.5) * tall})
            it.settle()
            said = it.text("#tip").replace("−", "-")
            np.testing.assert_allclose(float(said.split()[-1]), raw[i, j], rtol=1e-5)
            np.testing.assert_allclose(told(it)["Scores"], raw[i, j], atol=6e-4)
        assert box["width"] > 100


def test_a_soft_cap_and_a_sink_are_named_and_counted(show):
    sinks = np.array([0.5, -1, 2], np.float32)
    cap = 1.5
    reading = viewer.from_qk(
        Q, K, V, tokens=TOKENS, mask=ja.Causal(), score=ja.SoftCap(cap), sinks=sinks
    )
    scaled = np.einsum("thd,shd->hts", Q[1].astype(np.float64), K[1]) / np.sqrt(D)
    logits = cap * np.tanh(scaled / cap)
    masked = np.where(np.tril(np.ones((T, T), bool)), logits, -np.inf)
    sink = np.broadcast_to(sinks[:, None, None], (HEADS, T, 1))
    weights = softmax(np.concatenate([masked, sink], -1))[..., :-1]
    with show(viewer.page(reading), fragment="#head=1.2") as it:
        assert "soft cap" in it.text("#steps")
        assert "sink" in it.text("#steps")
        choose(it, 9, 4)
        got = told(it)
        np.testing.assert_allclose(got["Changed"], logits[2, 9, 4], atol=6e-4)
        np.testing.assert_allclose(got["Weights"], weights[2, 9, 4], atol=6e-5)


def test_steps_beside_given_weights_end_in_those(show):
    """What the score makes of the products is not known, but for a number of each row."""
    cap = 1.5
    weights = weights_of(Q, K, cap=cap)
    made = [viewer.Layer(*each, score=ja.SoftCap(cap)) for each in zip(Q, K, V, X, strict=True)]
    reading = viewer.from_weights(weights, TOKENS, layers=made)
    with show(viewer.page(reading), fragment="#head=0.1") as it:
        choose(it, 7, 5)
        got = told(it)
        raw = Q[0, 7, 1].astype(np.float64) @ K[0, 5, 1]
        np.testing.assert_allclose(got["Scores"], raw, atol=6e-4)
        np.testing.assert_allclose(got["Changed"], np.log(weights[0, 1, 7, 5]), atol=6e-4)
        np.testing.assert_allclose(got["Weights"], weights[0, 1, 7, 5], atol=6e-5)


def test_of_many_tokens_one_query_is_followed_with_its_top_keys(show):
    t = 70
    q, k, v, _ = inputs(t=t, s=t)
    tokens = [f"w{i}" for i in range(t)]
    weights = weights_of(q, k)
    reading = viewer.from_qk(q, k, v, tokens=tokens, mask=ja.Causal(), opened=[69, 33])
    with show(viewer.page(reading), fragment="#head=1.0") as it:
        for query in (69, 33):
            best = np.argsort(-weights[1, 0, query])[:8]
            choose(it, query, best[2])
            got = told(it)
            raw = q[1, query, 0].astype(np.float64) @ k[1, best[2], 0]
            np.testing.assert_allclose(got["Scores"], raw, atol=6e-4)
            np.testing.assert_allclose(got["Weights"], weights[1, 0, query, best[2]], atol=6e-5)
            out = weights[1, 0, query] @ v[1, :, 0]
            np.testing.assert_allclose(got["Output"], out[0], atol=6e-4)
            assert "8 of 70" in it.text("#steps")


def test_weights_alone_say_what_is_missing(show):
    with show(viewer.page(viewer.from_weights(weights_of(Q, K), TOKENS))) as it:
        assert "made from weights alone" in it.text("#steps")
        assert it.page.locator("#next").is_hidden()


def test_next_tokens_at_any_temperature_and_position(show):
    logits = np.random.default_rng(0).standard_normal((T, 300)) * 3
    ids = list(range(7, 7 + T))
    known = viewer.next_tokens(logits, lambda i: f"word{i}", ids=ids)
    page = viewer.page(causal_reading(next_tokens=known))
    with show(page, fragment="#at=4&temperature=2") as it:
        for at, temperature in [(4, 2.0), (10, 2.0), (10, 0.2)]:
            it.page.locator("#next-at").fill(str(at))
            place = known.temperatures.index(temperature)
            it.page.locator("#next-temperature").fill(str(place))
            it.settle()
            want = softmax(logits[at] / temperature)
            order = np.argsort(-want)[:10]
            words = it.page.locator("#next-tokens .word").all_inner_texts()
            assert words == [*(f"word{i}" for i in order), "290 others"]
            percents = it.page.locator("#next-tokens .number").all_inner_texts()
            got = [numbers("", text)[0] / 100 for text in percents]
            np.testing.assert_allclose(got[:-1], want[order], atol=6e-5)
            np.testing.assert_allclose(got[-1], 1 - want[order].sum(), atol=6e-5)
            if at < T - 1:
                came = ids[at + 1]
                assert f"word{came}" in it.text("#next-tokens")
                chance = numbers("with ", it.text("#next-tokens"))[0] / 100
                np.testing.assert_allclose(chance, want[came], atol=6e-5)
                assert f"number {1 + (want > want[came]).sum()} of all" in it.text("#next-tokens")

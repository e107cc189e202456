"""Pages of hostile tokens, unequal lengths, NaN, one token, and more tokens than cells."""

import numpy as np
from viewer_pages import TOKENS, inputs, numbers, told_weight, weights_of

import jaxattn as ja
from jaxattn import viewer
from jaxattn.viewer import _colours, _labels

WEIGHTS = weights_of(*inputs()[:2])
HOSTILE = [
    *("</script><script>boom()</script>", "<b>bold</b>", "\"'`&amp;", "a\u2028b", "👩‍👩‍👧"),
    *("שלום", "مرحبا", "\0", "\ud800", "\udfff\ud83d", "<!--", "]]>", "${x}", "{{data}}", ""),
]


def test_hostile_tokens_are_text(show):
    q, k, v, _ = inputs(t=len(HOSTILE), s=len(HOSTILE))
    texts = [_labels.readable(token) for token in HOSTILE]
    name = "</title><script>boom()</script>\ud800"
    page = viewer.page(viewer.from_qk(q, k, v, tokens=HOSTILE, name=name), title=name)
    with show(page) as it:
        strip = it.page.locator(".strip").first.locator(".token")
        got = strip.evaluate_all("all => all.map(e => e.textContent)")
        cut = lambda text: text if len(text) <= 24 else text[:23] + "…"
        assert got == [cut(text) for text in texts]
        assert it.page.locator("b").count() == it.page.locator(".maths b").count()
        assert it.page.evaluate("typeof boom") == "undefined"
        for i in range(len(HOSTILE)):
            assert "weight" in it.hover(i, i)


def test_unequal_lengths_have_the_tokens_of_both_axes(show):
    tokens, keys = ["das", "ist", "ein", "Haus"], ["this", "is", "a", "very", "small", "house", "."]
    q, k, v, _ = inputs(t=4, s=7)
    weights = weights_of(q, k, causal=False)
    reading = viewer.from_qk(q, k, v, tokens=tokens, keys=keys)
    with show(viewer.page(reading)) as it:
        said = it.hover(3, 6)
        assert "Haus (3)" in said
        assert ". (6)" in said
        weight = told_weight(said)
        np.testing.assert_allclose(weight, weights[0, 0, 3, 6], rtol=0.03)
        strips = [s.locator(".token").all_inner_texts() for s in it.page.locator(".strip").all()]
        assert strips == [tokens, keys]
        assert it.page.locator("[data-column='previous']").count() == 0  # there is no such token


def test_rows_of_nan_are_told_from_zero_and_from_hidden(show):
    weights = WEIGHTS.copy()
    weights[0, 0, 4, :5] = np.nan
    reading = viewer.from_weights(weights, TOKENS)
    with show(viewer.page(reading)) as it:
        assert it.colour(4, 2) == list(bytes.fromhex(_colours.LIGHT.nan))
        assert it.colour(4, 8) == list(bytes.fromhex(_colours.LIGHT.hidden))
        assert "not a number" in it.hover(4, 2)
        assert "≈" in it.hover(5, 2) or "Exact" in it.hover(5, 2)


def test_one_token(show):
    q, k, v, x = inputs(t=1, s=1)
    reading = viewer.from_qk(q, k, v, x=x, tokens=["alone"], mask=ja.Causal())
    with show(viewer.page(reading)) as it:
        assert "1.00000" in it.hover(0, 0)
        assert "hidden" not in it.hover(0, 0)


def test_pooled_cells_say_how_many_pairs_and_how(show):
    t = 300
    q, k, v, _ = inputs(t=t, s=t, layers=1)
    tokens = [f"w{i % 50}" for i in range(t)]
    page = viewer.page(viewer.from_qk(q, k, v, tokens=tokens, mask=ja.Causal()))
    weights, side = weights_of(q, k)[0, 0], 3  # 300 tokens in at most 128 cells
    best = int(np.argmax(weights[-1])) // side  # the key that is shown at first, and its cell
    received = weights[:, best * side : (best + 1) * side].sum()
    with show(page) as it:
        said = it.hover(60, 20)
        assert "9 pairs pooled" in said
        assert "Mean share" in said
        weight = told_weight(said)
        cell = weights[60 * side : 61 * side, 20 * side : 21 * side].sum(axis=1).mean()
        np.testing.assert_allclose(weight, cell, rtol=0.03)
        assert "6 pairs pooled" in it.hover(60, 60)  # the diagonal goes through it
        assert "hidden" in it.hover(20, 60)
        np.testing.assert_allclose(numbers("receives ", it.text("#strips"))[0], received, rtol=0.01)
        tops = np.sort(weights[182])[::-1][:5]  # the last query of row 60
        listed = numbers(r"\)\s+", it.hover(60, 20))
        np.testing.assert_allclose(listed, tops, rtol=1e-3)

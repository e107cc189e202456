"""The page in a real browser: colours, tooltips, keys, themes, links, and hostile inputs."""

import re

import numpy as np
import pytest
from viewer_pages import (
    HEADS,
    LAYERS,
    TOKENS,
    T,
    causal_reading,
    inputs,
    numbers,
    told_weight,
    weights_of,
)

from jaxattn import viewer
from jaxattn.viewer import _colours, _encode

WEIGHTS = weights_of(*inputs()[:2])
OPEN = np.tril(np.ones((T, T), bool))


@pytest.fixture(scope="module")
def page():
    return viewer.page(causal_reading(), title="A title")


def on_scale(weight, scale, most):
    """Where Python puts a weight on the colour scale."""
    share = weight / most
    with np.errstate(divide="ignore"):
        log = 1 + np.log10(share) / 3
    return {"linear": share, "root": np.sqrt(share), "log": np.maximum(log, 0)}[scale]


SCALES = [("linear", "light"), ("root", "dark"), ("log", "light")]


@pytest.mark.parametrize(("scale", "scheme"), SCALES)
def test_cells_have_the_colours_that_python_gives_them(show, page, scale, scheme):
    stored = _encode.restore(_encode.quantise(WEIGHTS, np.broadcast_to(~OPEN, WEIGHTS.shape)))
    most = np.nanmax(stored[:, :, 1:])  # row 0 sees one key alone, and does not count
    theme = _colours.LIGHT if scheme == "light" else _colours.DARK
    layer, head = 1, 2
    with show(page, scheme=scheme, fragment=f"#head={layer}.{head}&scale={scale}") as it:
        for row, column in [(0, 0), (1, 0), (4, 4), (7, 2), (10, 6), (10, 0)]:
            place = on_scale(stored[layer, head, row, column], scale, most)
            want = _colours.viridis(np.array(place)).astype(int)
            np.testing.assert_allclose(it.colour(row, column), want, atol=1)
        hidden = list(bytes.fromhex(theme.hidden))
        assert it.colour(0, 5) == it.colour(3, 9) == hidden
        assert hidden not in _colours.viridis(np.linspace(0, 1, 256)).tolist()


def test_the_tooltip_tells_the_weight(show, page):
    with show(page, fragment="#head=0.1") as it:
        for row, column in [(2, 1), (6, 6), (10, 3)]:
            said = it.hover(row, column)
            weight = told_weight(said)
            exact = "Exact" in said
            np.testing.assert_allclose(
                weight, WEIGHTS[0, 1, row, column], rtol=2e-5 if exact else 0.024
            )
            assert TOKENS[row] in said
            assert TOKENS[column] in said
            assert exact or "quantised" in said
            tops = numbers(r"\)\s+", said)
            want = np.sort(WEIGHTS[0, 1, row])[::-1][: len(tops)]
            np.testing.assert_allclose(tops, want, rtol=1e-3)
        assert "hidden" in it.hover(3, 8)


def test_cells_beyond_the_top_keys_are_said_to_be_quantised(show, page):
    row = T - 1
    least = int(np.argmin(WEIGHTS[0, 0, row]))
    with show(page) as it:
        said = it.hover(row, least)
    assert "quantised to 8 bits" in said
    weight = told_weight(said)
    np.testing.assert_allclose(weight, WEIGHTS[0, 0, row, least], rtol=0.03)


def test_keys_move_over_the_grid_and_the_map(show, page):
    with show(page) as it:
        keyboard, chosen = it.page.keyboard, "[data-head][aria-current='true']"
        it.page.locator(".grid .tile").first.focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowDown"):  # the last one leads nowhere
            keyboard.press(key)
            it.settle()
        assert it.page.locator(f".grid {chosen}").get_attribute("data-head") == "1.1"
        assert it.page.evaluate("document.activeElement.dataset.head") == "1.1"
        it.page.locator(".map canvas").focus()
        for key in ("PageUp", "ArrowDown", "ArrowDown", "ArrowRight"):
            keyboard.press(key)
        it.settle()
        assert "are" in it.text("#tip")
        assert "dynamics" in it.text("#tip")
        it.page.wait_for_timeout(300)  # it is said when the keys have come to rest
        weight = told_weight(it.page.inner_text("#announce"))
        np.testing.assert_allclose(weight, WEIGHTS[1, 1, 2, 1], rtol=0.03)
        keyboard.press("Escape")
        it.settle()
        assert it.page.locator("#tip").is_hidden()


def test_every_control_is_reached_by_the_tab_key_once(show, page):
    with show(page) as it:
        met = []
        while met.count("skip") < 2:
            it.page.keyboard.press("Tab")
            where = (
                "e => e.id || e.className || e.getAttribute('aria-roledescription') || e.tagName"
            )
            met.append(it.page.evaluate(f"({where})(document.activeElement)"))
        assert met[0] == "skip"
        assert sum("tile" in name for name in met[:20]) == 1  # arrows go on from there
        assert "map of weights" in met
        assert sum("token" in name for name in met) == 2  # one in each strip
        assert {"order", "scale", "theme", "link", "table"} <= set(met)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(show, page, scheme):
    other = {"light": "dark", "dark": "light"}
    theme = "document.documentElement.dataset.theme"
    with show(page, scheme=scheme) as it:
        assert it.page.evaluate(theme) == scheme
        it.page.emulate_media(color_scheme=other[scheme])
        it.settle()
        assert it.page.evaluate(theme) == other[scheme]
        it.page.click("#theme")
        it.settle()
        assert it.page.evaluate(theme) == scheme
        dark = (
            it.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        )
        assert dark == (scheme == "dark")


def test_a_link_restores_the_view(show, page):
    with show(page) as it:
        it.page.select_option("#order", "sink")
        it.page.select_option("#scale", "log")
        it.page.click(".grid [data-head='1.2']")
        x, y = it.place(7, 3)
        it.page.locator(".map canvas").click(position={"x": x, "y": y})
        it.settle()
        fragment = it.page.evaluate("location.hash")
    with show(page, fragment=fragment) as it:
        assert it.page.input_value("#order") == "sink"
        assert it.page.input_value("#scale") == "log"
        assert it.page.locator(".grid [aria-current='true']").get_attribute("data-head") == "1.2"
        chosen = it.page.locator(".token[aria-pressed='true']").all_inner_texts()
        assert chosen == [TOKENS[7], TOKENS[3]]


def test_a_link_that_tells_what_is_not_there_is_left_alone(show, page):
    with show(page, fragment="#head=9.9&query=99&key=x&order=<b>&scale=no&temperature=-1") as it:
        assert it.page.locator(".grid [aria-current='true']").get_attribute("data-head") == "0.0"


def test_the_grid_is_ordered_by_statistics(show, page):
    statistics = causal_reading().statistics
    heads = "all => all.map(tile => tile.dataset.head)"
    with show(page) as it:
        for order in ("entropy", "sink", "previous", "induction", "itself"):
            it.page.select_option("#order", order)
            it.settle()
            values = getattr(statistics, order).ravel()
            want = np.argsort(values if order == "entropy" else -values, kind="stable")
            got = it.page.locator(".grid .tile").evaluate_all(heads)
            assert got == [f"{i // HEADS}.{i % HEADS}" for i in want]


def test_hovering_a_token_shows_where_it_looks_and_who_looks_at_it(show, page):
    with show(page) as it:
        queries, keys = it.page.locator(".strip").nth(0), it.page.locator(".strip").nth(1)
        lightness = (
            "e => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(1, 2).map(Number)[0]"
        )
        queries.locator(".token").nth(8).hover()
        it.settle()
        green = [t.evaluate(lightness) for t in keys.locator(".token").all()[:9]]  # viridis rises
        assert np.argmax(green) == np.argmax(WEIGHTS[0, 0, 8])
        listed = it.page.locator(".ranked").first.locator(".number").all_inner_texts()
        np.testing.assert_allclose(float(listed[0]), WEIGHTS[0, 0, 8].max(), rtol=1e-3)
        keys.locator(".token").nth(2).hover()
        it.settle()
        green = [t.evaluate(lightness) for t in queries.locator(".token").all()[2:]]
        assert np.argmax(green) == np.argmax(WEIGHTS[0, 0, 2:, 2])
        received = re.findall(r"receives ([\d.]+)", it.text("#strips"))[0]
        np.testing.assert_allclose(float(received), WEIGHTS[0, 0, :, 2].sum(), rtol=0.01)


def test_the_table_sorts_and_opens_heads(show, page):
    with show(page) as it:
        it.page.click("[data-column='distance']")
        cells = it.page.locator("tbody tr td:nth-child(7)").all_inner_texts()
        column = [numbers("", cell)[0] for cell in cells]
        assert len(column) == LAYERS * HEADS
        assert column == sorted(column, reverse=True)
        it.page.locator("tbody .open").last.click()
        it.settle()
        last = it.page.locator("tbody tr").last.get_attribute("data-head")
        assert it.page.locator(".grid [aria-current='true']").get_attribute("data-head") == last


def test_two_readings_are_side_by_side_on_one_scale(show):
    weights = weights_of(*inputs(seed=1)[:2])
    second = viewer.from_weights(weights, TOKENS, name="second")
    page = viewer.page(viewer.from_weights(WEIGHTS, TOKENS, name="first"), second)
    with show(page) as it:
        it.page.locator(".grid").nth(1).locator("[data-head='1.0']").click()
        it.settle()
        current = it.page.locator(".grid [aria-current='true']")
        assert [tile.get_attribute("data-head") for tile in current.all()] == ["1.0", "1.0"]
        for side, each in enumerate((WEIGHTS, weights)):
            said = it.hover(5, 2, side)
            weight = told_weight(said)
            np.testing.assert_allclose(weight, each[1, 0, 5, 2], rtol=0.03)
        it.page.get_by_role("button", name="second").click()
        it.settle()
        assert "side=1" in it.page.evaluate("location.hash")


def test_a_notebook_shows_it_in_a_frame_of_its_own(chromium, tmp_path, page):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><title>n</title>{page._repr_html_()}", encoding="utf-8")
    context = chromium.new_context()
    opened, wrong = context.new_page(), []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(path.as_uri())
    frame = opened.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached", timeout=20_000)
    assert frame.locator(".grid .tile").count() == LAYERS * HEADS
    frame.locator(".grid .tile").last.click()
    opened.wait_for_timeout(100)
    context.close()
    assert not wrong

"""What is written into a page: bytes of maps, packed arrays, colours, nothing that could run."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from viewer_pages import TOKENS, causal_reading

from jaxattn import viewer
from jaxattn.observe import SHARE
from jaxattn.viewer import _colours, _encode, _reading

RANDOM = np.random.default_rng(0)


def test_weights_survive_in_a_byte_to_2_percent():
    weights = 10.0 ** RANDOM.uniform(-4.98, 0, 10_000)
    codes = _encode.quantise(weights, np.zeros(weights.shape, bool))
    np.testing.assert_allclose(_encode.restore(codes), weights, rtol=0.0231)
    assert codes.min() >= _encode.LOWEST


def test_hidden_nan_zero_and_one_have_bytes_of_their_own():
    weights = np.array([0.7, np.nan, 0, 1e-9, 1, 1.0000001])
    codes = _encode.quantise(weights, np.array([1, 0, 0, 0, 0, 0], bool))
    assert codes.tolist() == [_encode.HIDDEN, _encode.NAN, 2, 2, 255, 255]
    np.testing.assert_array_equal(_encode.restore(codes), [np.nan, np.nan, 0, 0, 1, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int32, np.float32])
def test_packed_arrays_come_back_to_the_bit(dtype):
    array = (RANDOM.standard_normal((3, 5, 7)) * 1000).astype(dtype)
    packed = _encode.pack(array)
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    bytes_ = planes.reshape(array.itemsize, -1).T.tobytes()
    back = np.frombuffer(bytes_, f"<{packed['kind']}").reshape(packed["shape"])
    np.testing.assert_array_equal(back, array)


def test_viridis_is_that_of_matplotlib():
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    x = np.linspace(0, 1, 256)
    want = matplotlib.colormaps["viridis"](x)[:, :3] * 255
    np.testing.assert_allclose(_colours.viridis(x), want, atol=0.51)


def test_signed_colours_go_from_the_middle_to_both_ends():
    for theme in (_colours.LIGHT, _colours.DARK):
        got = _colours.signed(np.array([-2.0, -1, 0, 1]), theme)
        ends = [theme.negative, theme.negative, theme.zero, theme.positive]
        np.testing.assert_array_equal(got, [list(bytes.fromhex(end)) for end in ends])


def test_the_page_is_one_file_that_names_no_other():
    html = viewer.page(causal_reading(), title="<i>&").html
    assert html.isascii()
    assert set(re.findall(r"https?://[^\s\"'`]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(?:src|import|fetch|XMLHttpRequest|WebSocket)\b\s*[=(]", html)
    assert "<title>&lt;i&gt;&amp;</title>" in html
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", html)


def test_tokens_stay_in_their_json():
    tokens = ["</script>", "<!--", "\u2028", "{{script}}", "\ud800", *TOKENS[5:]]
    reading = viewer.from_weights(np.full((1, 1, 11, 11), 1 / 11), tokens)
    html = viewer.page(reading).html
    (text,) = re.findall(r'id="description">(.*?)</script>', html)
    assert "<" not in text
    known = json.loads(text)["readings"][0]
    assert known["tokens"][:4] == ["</script>", "<!--", "U+2028", "{{script}}"]
    plain = viewer.page(viewer.from_weights(np.full((1, 1, 11, 11), 1 / 11), TOKENS)).html
    assert html.count("<script") == plain.count("<script")


def test_saving_and_showing(tmp_path):
    page = viewer.page(causal_reading())
    path = page.save(tmp_path / "page.html")
    assert path.read_text() == page.html
    frame = page._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert frame.count("<") == 2  # all of the page is text of the attribute
    assert causal_reading()._repr_html_().startswith("<iframe")


def long_reading(t=4096, layers=12, heads=12):
    """As large as a page of so many tokens gets: numbers that cannot be compressed."""
    cells, n = 128, (layers, heads)
    random = lambda *shape: RANDOM.random((*n, *shape), np.float32)
    pairs = np.broadcast_to(np.tril(np.full((cells, cells), 1024)), (*n, cells, cells))
    maps = 10 ** (-4 * random(cells, cells))
    statistics = _reading.Statistics(*RANDOM.random((9, *n)))
    rows, d = 128, 64
    steps = _reading.Opened(
        queries=np.array([t - 1, 3071, 2047, 1023]),
        keys=RANDOM.integers(0, t, (*n, 4, 5)),
        weights=random(4, 5),
        lse=random(4),
        q=random(4, d),
        k=random(4, 5, d),
        v=random(4, 5, d),
        out=random(4, d),
        scale=np.full(layers, d**-0.5),
    )
    return viewer.Reading(
        name="long",
        tokens=tuple(f"Ġword{i % 900}" for i in range(t)),
        keys=tuple(f"Ġword{i % 900}" for i in range(t)),
        same=True,
        reduce=SHARE,
        maps=maps,
        pairs=pairs,
        sees=np.broadcast_to(np.arange(1, t + 1), (*n, t)),
        entropy=random(t) * 8,
        received=random(t) * 3,
        tops=_reading.Tops(
            np.arange(1, rows + 1) * 32 - 1,
            np.sort(random(rows, 5))[..., ::-1],
            RANDOM.integers(0, t, (*n, rows, 5)),
        ),
        statistics=statistics,
        steps=steps,
    )


def test_4096_tokens_and_144_heads_take_less_than_8_megabytes():
    assert len(viewer.page(long_reading()).html) < 8_000_000

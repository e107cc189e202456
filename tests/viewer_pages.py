"""Readings for the tests of pages, and a page as a test opens it."""

import re
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float

import jaxattn as ja
from jaxattn import viewer

LAYERS, HEADS, T, D, E = 2, 3, 11, 5, 7
TOKENS = [
    "Aero",
    "dynamics",
    "are",
    "for",
    "people",
    "who",
    "can",
    "'t",
    "build",
    "people",
    "engines",
]


def softmax(logits: np.ndarray) -> Float[np.ndarray, "..."]:
    """Over the last axis, in float64; 0 in a row that is all -inf."""
    peak = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    raised = np.exp(logits - np.where(np.isneginf(peak), 0, peak))
    total = raised.sum(axis=-1, keepdims=True)
    return raised / np.where(total == 0, 1, total)


def inputs(seed: int = 0, t: int = T, s: int = T, layers: int = LAYERS) -> tuple[np.ndarray, ...]:
    """q [l t h d], k [l s h d], v [l s h e] and x [l t m]."""
    random = np.random.default_rng(seed)
    shapes = (layers, t, HEADS, D), (layers, s, HEADS, D), (layers, s, HEADS, E), (layers, t, 13)
    scales = 2, 2, 1, 1
    pairs = zip(shapes, scales, strict=True)
    return tuple((random.standard_normal(n) * c).astype(np.float32) for n, c in pairs)


def weights_of(
    q: np.ndarray, k: np.ndarray, *, causal: bool = True, cap: float | None = None
) -> Float[np.ndarray, "l h t s"]:
    """In float64."""
    logits = np.einsum("lthd,lshd->lhts", q.astype(np.float64), k.astype(np.float64))
    logits = logits * q.shape[-1] ** -0.5
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
    if causal:
        logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
    return softmax(logits)


def causal_reading(**more: Any) -> viewer.Reading:
    q, k, v, x = inputs()
    return viewer.from_qk(q, k, v, x=x, tokens=TOKENS, mask=ja.Causal(), name="small", **more)


NUMBER = r"(\d+(?:\.\d+)?(?:e[-−+]?\d+)?)"


def numbers(before: str, text: str) -> list[float]:
    """The numbers right after what a pattern matches, as the page writes them."""
    found = re.findall(f"{before}{NUMBER}", text)
    return [float(number.replace("−", "-")) for number in found]


def told_weight(said: str) -> float:
    """The weight that a tooltip tells."""
    return numbers(r"weight\s+(?:≈ )?", said)[0]


class Shown:
    """A page in the browser: what a reader does, and what there is to see."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def place(self, row: int, column: int, inset: float | None = None, side: int = 0) -> Any:
        """Where a cell of the large map is in the canvas: its middle, or near its corner."""
        at = self.page.evaluate(f"layoutOfMap(readings[{side}], {self._width(side)})")
        inset = at["cell"] / 2 if inset is None else inset
        return at["left"] + column * at["cell"] + inset, at["top"] + row * at["cell"] + inset

    def colour(self, row: int, column: int, side: int = 0) -> list[int]:
        """The colour of a cell of the large map."""
        x, y = self.place(row, column, 4, side)
        script = f"""() => {{
          const canvas = document.querySelectorAll(".map canvas")[{side}];
          const ratio = devicePixelRatio;
          const at = [Math.floor({x} * ratio), Math.floor({y} * ratio)];
          const copy = new OffscreenCanvas(1, 1).getContext("2d", {{ willReadFrequently: true }});
          copy.drawImage(canvas, -at[0], -at[1]);
          return [...copy.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        }}"""
        return self.page.evaluate(script)

    def hover(self, row: int, column: int, side: int = 0) -> str:
        """The tooltip over a cell of the large map."""
        x, y = self.place(row, column, side=side)
        self.page.locator(".map canvas").nth(side).hover(position={"x": x, "y": y})
        self.settle()
        return self.text("#tip")

    def settle(self) -> None:
        """Until what was changed is drawn."""
        frames = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))"
        self.page.evaluate(f"() => {frames}")

    def _width(self, side: int) -> int:
        return self.page.evaluate(f"document.querySelectorAll('.map')[{side}].clientWidth")


@contextmanager
def shown(
    browser: Any,
    folder: Any,
    page: viewer.Page,
    *,
    width: int = 1280,
    scheme: str = "light",
    fragment: str = "",
) -> Any:
    """The page from a file. No request, error or warning of the console is let pass."""
    path = page.save(folder / "page.html")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    opened, wrong = context.new_page(), []
    opened.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: wrong.append(str(error)))

    def note(request: Any) -> None:
        if not request.url.startswith((path.as_uri(), "data:", "blob:")):
            wrong.append(f"request of {request.url}")

    opened.on("request", note)
    opened.goto(path.as_uri() + fragment)
    opened.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)
    result = Shown(opened)
    result.settle()
    yield result
    context.close()
    assert not wrong, wrong

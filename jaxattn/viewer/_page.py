"""`page`: readings as one HTML file that needs nothing else."""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jaxattn.viewer import _colours, _encode
from jaxattn.viewer._contents import contents
from jaxattn.viewer._reading import Reading

STYLES = ("base.css", "heads.css", "walk.css")
SCRIPTS = (
    "data.js",
    "colour.js",
    "dom.js",
    "state.js",
    "tip.js",
    "reading.js",
    "grid.js",
    "picture.js",
    "map.js",
    "tokens.js",
    "steps.js",
    "matrix.js",
    "walk.js",
    "next.js",
    "table.js",
    "export.js",
    "main.js",
)
"""Of `jaxattn/viewer/web/`, in the order in which they are put together."""


@dataclass(frozen=True)
class Page:
    """A page as a string of HTML, in ASCII, with all that it shows in it."""

    html: str

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file, and returns its path."""
        path = Path(path)
        path.write_text(self.html, encoding="ascii")
        return path

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, so that neither can disturb the other."""
        inside = html.escape(self.html)
        return (
            f'<iframe srcdoc="{inside}" title="Attention" loading="lazy" allow="clipboard-write" '
            f'style="width:100%;height:860px;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Page of {len(self.html) / 1e6:.2f} MB; save(path) writes it to a file"


def page(*readings: Reading, title: str = "Attention") -> Page:
    """One page of a reading, or of two side by side: two inputs, or two models.

    Raises:
      ValueError: none, or more than two. TypeError: something else than a reading.
    """
    if not 1 <= len(readings) <= 2:
        raise ValueError(f"a page shows one reading, or two side by side, got {len(readings)}")
    for reading in readings:
        if not isinstance(reading, Reading):
            raise TypeError(
                f"a page shows readings, got {type(reading).__name__}; make one: "
                f"from_weights(weights, tokens)"
            )
    described, arrays = [], {}
    for i, reading in enumerate(readings):
        description, packed = contents(reading)
        described.append(description)
        arrays |= {f"{i}/{name}": array for name, array in packed.items()}
    described = {
        "title": title,
        "readings": described,
        "arrays": {n: {"kind": a["kind"], "shape": a["shape"]} for n, a in arrays.items()},
        "floor": _encode.FLOOR,
        "decades": _encode.DECADES,
        "viridis": _colours.VIRIDIS,
        "themes": {"light": _colours.LIGHT._asdict(), "dark": _colours.DARK._asdict()},
    }
    whole = _asset("page.html")
    parts = {
        "title": _ascii(html.escape(title)),
        "style": "\n".join(map(_asset, STYLES)),
        "data": "\n".join(_scripts(described, arrays)),
        "script": '"use strict";\n' + "\n".join(map(_asset, SCRIPTS)),
    }
    # At once, so that nothing of one part is taken for the place of another.
    return Page(re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], whole))


def _scripts(described: Any, arrays: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The description and the arrays as elements that run nothing. No `<` is in them."""
    text = json.dumps(described, separators=(",", ":")).replace("<", "\\u003c")
    yield f'<script type="application/json" id="description">{text}</script>'
    for name, array in arrays.items():
        yield f'<script type="text/plain" id="{name}">{array["data"]}</script>'


def _asset(name: str) -> str:
    text = resources.files("jaxattn.viewer").joinpath("web", name).read_text(encoding="utf-8")
    assert text.isascii(), f"{name} is written in ASCII, with escapes for the rest"
    return text


def _ascii(text: str) -> str:
    return text.encode("ascii", "xmlcharrefreplace").decode()

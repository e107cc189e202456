"""The Python of the READMEs runs as it stands, from the first block to the last."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small_checkpoints import make_gpt2

import jaxattn
import jaxattn.masks

ROOT = Path(__file__).parents[1]
FIRST, INSIDE = ROOT / "README.md", ROOT / "jaxattn" / "README.md"
LONG = "16384"  # what the block of so many tokens says


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def run(some: list[str], known: dict[str, Any]) -> dict[str, Any]:
    for block in some:
        exec(block, known)
    return known


def test_the_first_page_runs():
    known = run([block.replace("131072", "1024") for block in blocks(FIRST)], {})
    assert known["seen"].keys() == {"entropy"}
    assert known["dslope"].shape == (8,)
    assert known["out"].shape == (2, 32, 64)
    assert known["picture"].shape == (1, 64, 64)


def test_the_first_page_is_short():
    assert len(FIRST.read_bytes()) <= 10_000


def test_what_is_inside_runs(tmp_path, monkeypatch):
    """It goes on from the first page, with tokens of its own for the steps."""
    make_gpt2(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    x, w = jnp.ones((9, 48)), jnp.ones((48, 48))
    q, k = (jnp.ones((1, 64, n, 16)) for n in (8, 2))
    given = {"x": x, "w_q": w, "w_k": w, "w_v": w, "w_o": w, "q": q, "k": k, "folder": "model"}
    rest = [block for block in blocks(INSIDE) if LONG not in block]
    known = run(["import jax, jax.numpy as jnp, jaxattn as ja", *rest], given)
    assert known["penalty"].shape == ()
    assert known["dq"].shape == q.shape
    assert (tmp_path / "attention.html").is_file()
    assert known["drawn"].map.get_array().shape == (125, 125)  # 125 cells of 4 pixels or more


@pytest.mark.long
def test_the_block_of_16384_tokens_runs():
    (block,) = (block for block in blocks(INSIDE) if LONG in block)
    known = run([block], {})
    assert known["dq"].shape == (16384, 8, 64)
    assert np.isfinite(known["hvp"]).all()


@pytest.mark.parametrize("folder", [".", "jaxattn", "jaxattn/viewer", "figures", "benchmarks"])
def test_links_lead_somewhere(folder: str):
    path = ROOT / folder / "README.md"
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text())
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


def test_masks_and_observations_are_in_the_tables():
    text = FIRST.read_text()
    masks = {x for x in jaxattn.masks.__all__ if x in jaxattn.__all__} - {"Mask", "END"}
    kinds = {x: getattr(jaxattn.observe, x) for x in jaxattn.observe.__all__}
    base = jaxattn.observe.Observation
    observations = {
        x for x, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, base)
    }
    for name in masks | observations - {base.__name__, "BoundObservation"}:
        assert f"`{name}" in text, name

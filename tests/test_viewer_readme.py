"""The Python of the viewer's README runs as it stands, with torch and transformers if there."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

import jaxattn

README = Path(jaxattn.__file__).parent / "viewer" / "README.md"


def blocks():
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def known(tmp_path, monkeypatch):
    """What the first block leaves behind, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks()[0], names)
    assert os.listdir() == ["attention.html"]
    return names


def test_the_first_block_and_observations(known):
    exec(blocks()[-1], known)
    assert known["reading"].maps.shape == (2, 4, 9, 9)
    assert known["reading"].steps is not None
    assert known["reading"].next_tokens.vocabulary == 50


@pytest.mark.filterwarnings("ignore")  # those of torch and transformers are theirs
def test_weights_of_transformers_and_a_hook(known):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    weights, hook = blocks()[1:3]
    exec(weights, known)
    by_weights = known["reading"]
    exec(hook, known)
    by_hook = known["reading"]
    assert by_weights.maps.shape == (2, 3, 9, 9)
    np.testing.assert_allclose(by_weights.maps, by_hook.maps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_weights.statistics.entropy, by_hook.statistics.entropy, rtol=1e-4)

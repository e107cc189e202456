"""The benchmarks of observing and of Flax models: what is checked, what follows from samples."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bench import QUICK

from benchmarks import flax_models, observing, observing_report


def test_observing_measures_and_reports(tmp_path):
    observing.main(["--tokens", "64", "--seconds", "0", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "observing.json").read_text())
    assert [row["mask"] for row in data["rows"]] == ["full", "causal"]
    names = set(data["rows"][0]["contenders"])
    assert {observing.PLAIN, observing.SEEN, observing.TOP, "jax.nn.softmax"} <= names
    assert all(its["errors"]["out"] < 1e-5 for its in data["rows"][0]["contenders"].values())
    report = (tmp_path / "observing.md").read_text()
    assert "Flax sow_weights" in report
    assert (tmp_path / "observing.png").stat().st_size > 10_000


def test_a_contender_that_shows_something_else_is_not_timed(monkeypatch):
    right = observing.contenders(False, 64, False)[observing.SEEN]

    def wrong(*arrays):
        built = right(*arrays)
        zeros = {"entropy": np.zeros((1, 64, observing.HEADS))}
        return replace(built, run=lambda: built.run() | zeros)

    monkeypatch.setattr(observing, "contenders", lambda *_: {observing.SEEN: wrong})
    with pytest.raises(AssertionError, match="off from float64"):
        observing.measure_length(64, False, False, QUICK, lambda text: None)


def _row(tokens, mask, seconds, temp=2**20):
    contenders = {name: {"seconds": [x] * 5, "temp_bytes": temp} for name, x in seconds.items()}
    return {"tokens": tokens, "mask": mask, "contenders": contenders}


def test_targets_follow_from_the_worst_samples():
    names = observing_report
    fast = {names.PLAIN: 1.0, names.SEEN: 1.2, names.TOP: 1.8}
    slow = {names.PLAIN: 1.0, names.SEEN: 1.4, names.TOP: 1.8}
    errors = {"entropy": 1e-6, "received": 1e-6, "map": 1e-7, "top": 0.0}
    data = {
        "rows": [_row(4096, "full", fast), _row(4096, "causal", slow)],
        "exactness": {"tokens": 4096, "errors": errors},
    }
    found = {target.text: target for target in names.targets(data)}
    four = found["the four at 4,096 tokens, of unobserved: at most 1.3"]
    assert (four.found, four.met) == ("1.40 (causal)", False)
    assert found["the four and top 8 at 4,096 tokens, of unobserved: at most 1.9"].met
    assert not any("16,384" in text for text in found)


def test_flax_models_compare_and_report(tmp_path, capsys):
    sizes = ["--layers", "1", "--tokens", "32", "--cached", "64", "--seconds", "0"]
    flax_models.main([*sizes, "--out", str(tmp_path)])
    report = (tmp_path / "flax-models.md").read_text()
    assert "training step" in report
    assert "decoding, 64 held" in report
    assert capsys.readouterr().out.count("Flax") >= 4


def test_models_that_differ_are_not_timed():
    with pytest.raises(AssertionError, match="nothing is timed"):
        flax_models._same(np.zeros(3), np.full(3, 0.1))

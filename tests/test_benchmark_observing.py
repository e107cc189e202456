"""The benchmarks of observing and of Flax models: what is checked, what follows from samples."""

import json
from dataclasses import replace

import numpy as np
from bench import QUICK

from benchmarks import flax_models, observing, run
from benchmarks.timing import Built


def test_observing_measures_and_reports(tmp_path):
    observing.main(["--tokens", "64", "--seconds", "0", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "observing.json").read_text())
    assert [work["mask"] for work in data["workloads"]] == ["full", "causal"]
    records = data["workloads"][0]["contenders"]
    assert {
        observing.PLAIN,
        observing.SEEN,
        observing.TOP,
        "jax.nn.softmax",
    } <= set(records)
    assert all(record["status"] == "timed" for record in records.values())
    assert all(record["errors"]["out"]["off"] < 1e-5 for record in records.values())
    report = (tmp_path / "observing.md").read_text()
    assert "Flax sow_weights" in report
    assert (tmp_path / "observing.png").stat().st_size > 10_000


def test_a_contender_that_shows_something_else_is_not_timed():
    arrays = observing.inputs(64)
    check = observing.checking(arrays, False)
    right = observing.contenders(False, arrays)[observing.SEEN]

    def wrong():
        built = right()
        zeros = {"entropy": np.zeros((1, 64, observing.HEADS))}
        return replace(built, run=lambda: built.run() | zeros)

    records = run.measure_all({"wrong": (wrong, check), "right": (right, check)}, QUICK)
    assert records["wrong"]["status"] == "wrong"
    assert "entropy is off" in records["wrong"]["reason"]
    assert "samples_s" not in records["wrong"]
    assert records["right"]["status"] == "timed"


def _work(tokens, mask, seconds, temp=2**20):
    records = {name: {"samples_s": [x] * 5, "temp_bytes": temp} for name, x in seconds.items()}
    return {"name": f"{mask}-t{tokens}", "tokens": tokens, "mask": mask, "contenders": records}


def test_targets_follow_from_the_worst_samples():
    names = observing
    fast = {names.PLAIN: 1.0, names.SEEN: 1.2, names.TOP: 1.8}
    slow = {names.PLAIN: 1.0, names.SEEN: 1.4, names.TOP: 1.8}
    errors = {"entropy": 1e-6, "received": 1e-6, "map": 1e-7, "top": 0.0}
    data = {
        "workloads": [_work(4096, "full", fast), _work(4096, "causal", slow)],
        "exactness": {"tokens": 4096, "errors": errors},
    }
    lines = {line.text: line for line in names.lines(data)}
    four = lines["the four at 4,096 tokens, of unobserved: at most 1.3"]
    assert (four.found, four.holds) == ("1.40 (causal)", False)
    assert lines["the four and top 8 at 4,096 tokens, of unobserved: at most 1.9"].holds
    assert not any("16,384" in text for text in lines)
    data["workloads"][0]["contenders"][names.TOP] = {"status": "wrong"}
    lines = {line.text: line for line in names.lines(data)}
    assert not lines["the four and top 8 at 4,096 tokens, of unobserved: at most 1.9"].holds


def test_flax_models_compare_and_report(tmp_path, capsys):
    sizes = ["--layers", "1", "--tokens", "32", "--cached", "64", "--seconds", "0"]
    flax_models.main([*sizes, "--out", str(tmp_path)])
    report = (tmp_path / "flax-models.md").read_text()
    assert "training step" in report
    assert "decoding, 64 held" in report
    assert capsys.readouterr().out.count("Flax") >= 4


def test_models_that_differ_are_not_timed():
    check = flax_models.like({"a": np.ones(3), "b": np.zeros(3)})
    built = Built(lambda: None)
    (same,) = check(built, {"a": np.full(3, 1 + 1e-6), "b": np.full(3, 1e-6)})
    (other,) = check(built, {"a": np.ones(3), "b": np.full(3, 0.1)})
    (undefined,) = check(built, {"a": np.ones(3), "b": np.full(3, np.nan)})
    assert (same.wrong, other.wrong, undefined.wrong) == (False, True, True)

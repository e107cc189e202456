"""The benchmarks tell the truth: FLOPs, the gate, the order of turns, ratios and verdicts."""

import itertools
import json
import shutil
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from bench import QUICK, fast, lean, synthetic, times

from benchmarks import __main__ as command
from benchmarks import plots, report, run
from benchmarks.contenders import XLA, Contender
from benchmarks.gate import Gate
from benchmarks.options import CAUSAL, EVERY_PAIR, window
from benchmarks.results import FOLDER, Results, save
from benchmarks.sets import SETS, over
from benchmarks.targets import verdicts
from benchmarks.timing import Budget, Built, measure, orders, paired_ratio
from benchmarks.workloads import BFLOAT16, Workload

SMALL = Workload(queries=13, keys=13, batch=2, heads=6, kv_heads=3, features=5, value_features=7)


@pytest.mark.parametrize("mask", [EVERY_PAIR, CAUSAL, window(5), window(41)], ids=str)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_flops_match_a_count_of_pairs(mask, gradient):
    work = replace(SMALL, mask=mask, gradient=gradient)
    pairs = 0
    for i, j in itertools.product(range(13), range(13)):
        left = 13 if mask.left is None else mask.left
        pairs += mask == EVERY_PAIR or i - left <= j <= i
    forward = 2 * pairs * (5 + 7) * 2 * 6
    assert work.pairs == pairs * 2 * 6
    assert work.flops == (3.5 * forward if gradient else forward)
    assert mask.allowed(13, 13).sum() == pairs


def test_bytes_count_every_array_once():
    q, k, v, out = 2 * 13 * 6 * 5, 2 * 13 * 3 * 5, 2 * 13 * 3 * 7, 2 * 13 * 6 * 7
    assert SMALL.bytes == 4 * (q + k + v + out)
    gradient = replace(SMALL, gradient=True, dtype=BFLOAT16)
    assert gradient.bytes == 2 * (2 * (q + k + v) + 2 * out)


@pytest.mark.parametrize("works", SETS.values(), ids=SETS.keys())
def test_names_in_a_set_are_unique(works):
    assert max(Counter(w.name for w in works).values()) == 1


def test_inputs_are_exact_in_their_dtype():
    inputs = replace(SMALL, dtype=BFLOAT16).inputs(seed=3)
    assert (inputs.q.astype(BFLOAT16).astype(np.float32) == inputs.q).all()
    assert inputs.q.std() > 0.5


def test_unequal_lengths_with_a_causal_mask_are_refused():
    with pytest.raises(ValueError, match="as many queries as keys"):
        Workload(queries=3, keys=5, mask=CAUSAL)


def test_sampled_reference_agrees_with_the_whole_one():
    work = replace(SMALL, gradient=True, mask=CAUSAL)
    inputs = work.inputs()
    whole = {name: np.full(shape, np.nan) for name, shape in work.outputs.items()}
    for piece in Gate(work, inputs).expected():
        whole[piece.output][piece.index] = piece.want
    assert not any(np.isnan(x).any() for x in whole.values())
    sampled = Gate(work, inputs, most_pairs=100).expected()
    assert {p.output for p in sampled} == set(whole) == {"out", "dq", "dk", "dv"}
    assert sum(p.want.size for p in sampled) < sum(x.size for x in whole.values())
    for piece in sampled:
        np.testing.assert_allclose(piece.want, whole[piece.output][piece.index], rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_turns_are_balanced(count):
    rounds = list(orders(range(count), 2 * count))
    assert all(sorted(order) == list(range(count)) for order in rounds)
    for place in range(count):
        assert set(Counter(order[place] for order in rounds).values()) == {2}
    for a, b in itertools.combinations(range(count), 2):
        assert sum(order.index(a) < order.index(b) for order in rounds) == count


@pytest.mark.parametrize("lasts", [0.0, 0.03], ids=["short", "long"])
def test_contenders_take_turns_and_share_rounds(lasts):
    ran = []

    def contender(name: str) -> Built:
        def one() -> None:
            ran.append(name)
            time.sleep(lasts)

        return Built(one)

    names = ("a", "b", "c")
    budget = Budget(0.0, fewest=6, most=6, sample_seconds=1e-9)
    timed = measure({x: contender(x) for x in names}, budget)
    assert {len(x["samples_s"]) for x in timed.values()} == {6}
    if lasts:
        assert ran == [name for order in orders(names, 6) for name in order]
        assert all(lasts <= x for samples in timed.values() for x in samples["samples_s"])
    else:  # before each sample an untimed call
        assert ran[-36:] == [name for order in orders(names, 6) for name in order for _ in "12"]


def test_paired_ratio_ignores_a_drift_that_both_share():
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert paired_ratio([3 * x for x in drift], drift) == 3
    with pytest.raises(ValueError, match="longer"):
        paired_ratio([1.0], drift)


def _broken(work, inputs):
    raise NotImplementedError("this shape\nand more")


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_a_wrong_contender_gets_no_time(gradient):
    work = replace(SMALL, gradient=gradient, mask=window(4), features=8, value_features=8)
    others = [
        times(XLA, 1 + 3e-6),
        times(XLA, float("nan")),
        Contender("broken", _broken),
        Contender("refusing", _broken, lambda work: "no such mask"),
        Contender("greedy", lambda *given: replace(XLA.build(*given), needs_bytes=2**60)),
    ]
    records = run.measure_workload(work, [XLA, *others], QUICK)["contenders"]
    statuses = {name: record["status"] for name, record in records.items()}
    assert list(statuses.values()) == [
        "timed",
        "wrong",
        "wrong",
        "failed",
        "unsupported",
        "does not fit",
    ]
    assert len(records["jax.nn"]["samples_s"]) == 5
    assert all("samples_s" not in records[x.name] for x in others)
    assert "out is off" in records["jax.nn x 1.000003"]["reason"]
    assert records["broken"]["reason"] == "NotImplementedError: this shape"
    assert records["greedy"]["temp_bytes"] is not None


def test_an_error_outside_the_float64_sample_is_found_by_the_others():
    work = replace(SMALL, gradient=True, mask=CAUSAL)
    inputs = work.inputs()
    gate = Gate(work, inputs, most_pairs=100)
    by_name = {name: np.zeros(shape, np.float32) for name, shape in work.outputs.items()}
    for piece in Gate(work, inputs).expected():
        by_name[piece.output][piece.index] = piece.want
    right = list(by_name.values())
    assert not any(finding.wrong for finding in gate.check(Built(lambda: right), right))
    wrong = [*right[:3], right[3] * 1.1]
    samples = {"a": right, "b": right, "c": wrong}
    found = gate.dissenters({name: gate.sample(x) for name, x in samples.items()})
    assert set(found) == {"c"}
    assert found["c"].output == "dv"


def test_ratios_shares_and_verdicts_follow_from_the_samples():
    results = Results(synthetic(fast, lean))
    long = over(2048)[0].name
    assert results.seconds(long, "jaxattn") == pytest.approx(2048**2 * 12 * 256 / 100e9 * 1.25)
    assert results.ratio(long, "jax.nn", "jaxattn") == pytest.approx(20)
    assert results.peak("float32") == pytest.approx(250)
    assert results.share(long, "jaxattn") == pytest.approx(100 / 1.25 / 250)
    assert results.ratio("no such workload", "jaxattn", "jax.nn") is None
    judged = verdicts(results)
    assert [v.met for v in judged] == [True] * len(judged)
    assert not any("plain" in v.what or "compat" in v.what for v in judged)


def test_verdicts_say_what_is_not_met_and_what_is_not_known():
    data = synthetic(lambda work, name: 1.0, lambda work, name: work.queries**2)
    data["workloads"][0]["contenders"]["jaxattn"]["compile_s"] = 3.5
    slow = next(w for w in data["workloads"] if w["name"] == "gradient-full-t2048")
    slow["contenders"]["jaxattn"] = {"status": "wrong", "reason": "dq"}
    data["workloads"] = [w for w in data["workloads"] if w["name"] != "forward-full-t64"]
    by_name = {(v.what, v.limit): v for v in verdicts(Results(data))}
    compile_time = by_name["Compile time of any workload", "3.00 s"]
    assert (compile_time.met, compile_time.worst) == (False, "gradient-full-t2048")
    assert by_name["Forward, full, T = 9 to 128, time over jax.nn's", "1.050"].met is None
    ratio = by_name["Forward, full, T = 512, time over jax.nn's", "0.700"]
    assert (ratio.met, ratio.measured, ratio.worst) == (False, "1.000", "forward-full-t512")
    wrong = by_name["Gradient, full, T = 2048, time over torch SDPA's", "1.500"]
    assert (wrong.met, wrong.measured) == (False, "no right answer")
    assert by_name["Forward, T = 16384, temporary memory", "64.0 MiB"].measured == "256.0 MiB"


def test_report_shows_the_numbers_of_the_file(tmp_path):
    data = synthetic(fast, lean)
    save(data, tmp_path / "made-up.json")
    assert json.loads((tmp_path / "made-up.json").read_text()) == data
    results = Results(data)
    text = report.markdown(results)
    long = "`forward-full-t2048` | 161 |"
    assert long in text
    assert "3,221 (20.0) | 145 (0.90) | 5 |" in text
    assert "80 (32%)" in text
    assert "`forward-full-t16384`, jax.nn: does not fit: needs 24 GiB" in text
    assert "not met" not in text
    assert "made-up-memory.png" in text
    assert all(line.count("|") == 6 for line in text.splitlines() if line.startswith("| Forward"))
    assert "| forward, causal | 4096 |" in report.headline(results)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_reports_are_what_follows_from_the_results(path, tmp_path):
    assert command.main(["--report", str(shutil.copy(path, tmp_path))]) == 0
    (written,) = tmp_path.glob("*.md")
    again = "run python -m benchmarks --report on it"
    assert written.read_text() == (FOLDER / written.name).read_text(), again


def test_report_of_another_device_has_no_targets():
    data = synthetic(fast, lean)
    gpu = [w.facts() | {"contenders": {}} for w in SETS["gpu"]]
    data["workloads"] = gpu
    text = report.markdown(Results(data))
    assert "## Targets" not in text
    assert "## Summary" not in text
    assert "gradient-causal-t8192-b4-h16-d128-bf16" in text


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plots_are_the_same_bytes_every_time(kind):
    results = Results(synthetic(fast, lean))
    drawn = plots.plots(results)
    assert set(drawn) == {"time", "memory", "share"}
    share = drawn["share"]
    assert list(share.panels) == [
        "forward, full",
        "forward, causal",
        "gradient, full",
        "gradient, causal",
    ]
    assert plots.render(share, kind) == plots.render(share, kind)


def test_plotted_memory_marks_what_was_not_run():
    memory = plots.plots(Results(synthetic(fast, lean)))["memory"]
    (_, _, ran), (length, value, not_run) = memory.panels["forward, full"]["jax.nn"][-2:]
    assert (length, value, ran, not_run) == (16384, 24576, True, False)


def test_command_measures_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MATRIX", dict.fromkeys(run.MATRIX, 64))
    arguments = ["--set", "smoke", "--only", "forward-full-t9", "--out", str(tmp_path)]
    arguments += ["--name", "tiny", "--seconds", "0.05"]
    assert command.main(arguments) == 0
    assert {x.name for x in tmp_path.iterdir()} == {"tiny.json", "tiny.md"}
    results = Results(json.loads((tmp_path / "tiny.json").read_text()))
    ours = results.record("forward-full-t9", "jaxattn")
    assert ours["status"] == "timed"
    assert ours["compile_s"] > 0
    assert ours["errors"]["out"]["rms"] < 1e-6
    assert len(ours["samples_s"]) >= 5
    written = (tmp_path / "tiny.md").read_bytes()
    (tmp_path / "tiny.md").unlink()
    assert command.main(["--report", str(tmp_path / "tiny.json")]) == 0
    assert (tmp_path / "tiny.md").read_bytes() == written


def test_interrupting_keeps_what_was_measured(tmp_path, monkeypatch):
    real = run.measure_workload

    def interrupted(work, *rest):
        if work.name != "forward-full-t9":
            raise KeyboardInterrupt
        return real(work, *rest)

    monkeypatch.setattr(run, "MATRIX", dict.fromkeys(run.MATRIX, 64))
    monkeypatch.setattr(run, "measure_workload", interrupted)
    monkeypatch.setattr(command, "contenders", lambda works: [XLA])
    arguments = ["--set", "smoke", "--out", str(tmp_path), "--name", "cut", "--seconds", "0.05"]
    assert command.main(arguments) == 130
    kept = json.loads((tmp_path / "cut.json").read_text())
    assert [w["name"] for w in kept["workloads"]] == ["forward-full-t9"]
    assert (tmp_path / "cut.md").exists()


def test_command_names_the_workloads_when_none_is_chosen():
    with pytest.raises(SystemExit, match="gradient-full-t9"):
        command.main(["--set", "smoke", "--only", "no such"])


def test_full_holds_the_default_set():
    assert set(SETS["default"]) < set(SETS["full"])
    assert over(9, mask=CAUSAL)[0] in SETS["default"]

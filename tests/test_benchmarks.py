"""The benchmarks tell the truth: FLOPs, the gate, the order of turns, ratios and verdicts."""

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn import masks, scores

pytest.importorskip("flax", reason="the benchmarks measure Flax")
pytest.importorskip("matplotlib", reason="the benchmarks draw plots")
pytest.importorskip("tqdm", reason="the benchmarks show a progress bar")

from benchmarks import __main__ as command
from benchmarks import machine, option_tables, plots, precision, report, run, support
from benchmarks.chance import Pattern
from benchmarks.contenders import COMPAT, JAX_NN, JAXATTN, PLAIN, Built, Contender, JaxContender
from benchmarks.gate import Gate
from benchmarks.masks import Causal, Full, Segments, Window, allowed_ts
from benchmarks.option_plot import Dots
from benchmarks.options import ALiBi, DenseMask, Dropout, Head, RelativeBias, Sinks, SoftCap
from benchmarks.reference import attention_rows, expected
from benchmarks.results import Results, load, save
from benchmarks.sets import (
    ALL_OPTIONS,
    CAUSAL,
    DEFAULT,
    FORWARD,
    FULL,
    GPU,
    OPTIONS,
    PACKED,
    SETS,
    SMOKE,
    with_options,
)
from benchmarks.support_cases import CASES
from benchmarks.targets import verdicts
from benchmarks.timing import Budget, measure, orders, paired_ratio
from benchmarks.workloads import Dtype, Inputs, Kind, Workload, over

QUICK = Budget(seconds=0.0, fewest=5, most=5)
SMALL = Workload(queries=13, keys=13, batch=2, heads=6, kv_heads=3, features=5, value_features=7)


@pytest.mark.parametrize("mask", [Full(), Causal(), Window(left=4), Window(left=40)], ids=str)
@pytest.mark.parametrize("kind", Kind)
def test_flops_match_a_count_of_pairs(mask, kind):
    work = replace(SMALL, mask=mask, kind=kind)
    pairs = 0
    for i, j in itertools.product(range(13), range(13)):
        left = {Full: 13, Causal: 13, Window: getattr(mask, "left", 13)}[type(mask)]
        pairs += isinstance(mask, Full) or i - left <= j <= i
    forward = 2 * pairs * (5 + 7) * 2 * 6
    assert work.pairs == pairs * 2 * 6
    assert work.flops == (forward if kind is Kind.FORWARD else 3.5 * forward)
    assert allowed_ts(mask, 13, 13).sum() == pairs


def test_bytes_count_every_array_once():
    q, k, v, out = 2 * 13 * 6 * 5, 2 * 13 * 3 * 5, 2 * 13 * 3 * 7, 2 * 13 * 6 * 7
    assert SMALL.bytes == 4 * (q + k + v + out)
    gradient = replace(SMALL, kind=Kind.GRADIENT, dtype=Dtype.BFLOAT16)
    assert gradient.bytes == 2 * (2 * (q + k + v) + 2 * out)


@pytest.mark.parametrize("works", SETS.values(), ids=SETS.keys())
def test_names_in_a_set_are_unique(works):
    assert max(Counter(w.name for w in works).values()) == 1


def test_inputs_are_exact_in_their_dtype():
    inputs = replace(SMALL, dtype=Dtype.BFLOAT16).inputs(seed=3)
    assert (inputs.q.astype(Dtype.BFLOAT16.numpy).astype(np.float32) == inputs.q).all()
    assert inputs.q.std() > 0.5


def test_unequal_lengths_with_a_causal_mask_are_refused():
    with pytest.raises(ValueError, match="as many queries as keys"):
        Workload(queries=3, keys=5, mask=Causal())


def test_reference_gradient_matches_finite_differences():
    random = np.random.default_rng(0)
    q, k, v, c = (random.standard_normal((7, d)) for d in (5, 5, 3, 3))
    first, stop = Window(left=2).spans(7, 7)

    def loss(q, k, v):
        return (attention_rows(q, k, v, c, first, stop, gradient=False).out_te * c).sum()

    got = attention_rows(q, k, v, c, first, stop, gradient=True)
    arrays = [q, k, v]
    for which, gradient in enumerate((got.dq_td, got.dk_sd, got.dv_se)):
        step = random.standard_normal(arrays[which].shape)
        above, below = list(arrays), list(arrays)
        above[which], below[which] = arrays[which] + 1e-5 * step, arrays[which] - 1e-5 * step
        slope = (loss(*above) - loss(*below)) / 2e-5
        np.testing.assert_allclose((gradient * step).sum(), slope, rtol=1e-7)


def test_sampled_reference_agrees_with_the_whole_one():
    work = replace(SMALL, kind=Kind.GRADIENT, mask=Causal())
    inputs = work.inputs()
    whole = [np.full(work.shapes[x], np.nan) for x in ("cotangent", "q", "k", "v")]
    for piece in expected(work, inputs):
        whole[piece.output][piece.index] = piece.want
    assert not any(np.isnan(x).any() for x in whole)
    sampled = expected(work, inputs, most_pairs=100)
    assert {p.output for p in sampled} == {0, 1, 2, 3}
    assert sum(p.want.size for p in sampled) < sum(x.size for x in whole)
    for piece in sampled:
        np.testing.assert_allclose(piece.want, whole[piece.output][piece.index], rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_turns_are_balanced(count):
    rounds = list(orders(count, 2 * count))
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

        return Built(one, lambda got: None, lambda got: [], lambda: None, 0)

    names = ("a", "b", "c")
    budget = Budget(0.0, fewest=6, most=6, sample_seconds=1e-9)
    timed = measure({x: contender(x) for x in names}, budget)
    assert {len(x.seconds) for x in timed.values()} == {6}
    if lasts:
        assert ran == [names[i] for order in orders(3, 6) for i in order]
        assert all(lasts <= x for samples in timed.values() for x in samples.seconds)
    else:  # before each sample an untimed call
        assert ran[-36:] == [names[i] for order in orders(3, 6) for i in order for _ in "12"]


def test_paired_ratio_ignores_a_drift_that_both_share():
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert paired_ratio([3 * x for x in drift], drift) == 3
    with pytest.raises(ValueError, match="same rounds"):
        paired_ratio([1.0], drift)


def _off(factor: float) -> JaxContender:
    """`jax.nn` times a factor."""
    return _times(JAX_NN, factor)


def _times(contender: JaxContender, factor: float) -> JaxContender:
    attention = lambda *given: contender.attention(*given) * factor
    return replace(contender, name=f"{contender.name} x {factor}", attention=attention)


class _Broken:
    name = "broken"

    def asked(self, work: Workload, /) -> Workload | None:
        return work

    def supports(self, work: Workload, /) -> str | None:
        return None

    def build(self, work: Workload, inputs: Inputs) -> Built:
        raise NotImplementedError("this shape\nand more")


class _Refusing(_Broken):
    name = "refusing"

    def supports(self, work: Workload, /) -> str | None:
        return "no such mask"


class _Greedy(_Broken):
    name = "greedy"

    def build(self, work: Workload, inputs: Inputs) -> Built:
        return replace(JAX_NN.build(work, inputs), needs_bytes=2**60)


@pytest.mark.parametrize("kind", Kind)
def test_a_wrong_contender_gets_no_time(kind):
    work = replace(SMALL, kind=kind, mask=Window(left=3), features=8, value_features=8)
    others: list[Contender] = [
        _off(1 + 3e-6),
        _off(float("nan")),
        _Broken(),
        _Refusing(),
        _Greedy(),
    ]
    records = run.measure_workload(work, [JAX_NN, *others], QUICK)["contenders"]
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
    work = replace(SMALL, kind=Kind.GRADIENT, mask=Causal())
    inputs = work.inputs()
    gate = Gate(work, inputs, most_pairs=100)
    right = [np.zeros(work.shapes[x], np.float32) for x in ("cotangent", "q", "k", "v")]
    for piece in expected(work, inputs):
        right[piece.output][piece.index] = piece.want
    assert not any(e.too_large for e in gate.errors(right))
    wrong = [*right[:3], right[3] * 1.1]
    samples = {"a": right, "b": right, "c": wrong}
    found = gate.dissenters({name: gate.sample(x) for name, x in samples.items()})
    assert set(found) == {"c"}
    assert found["c"].output == "dv"


def _synthetic(
    seconds: Callable[[Workload, str], float],
    temp: Callable[[Workload, str], int],
    works: Sequence[Workload] = DEFAULT,
    names: Sequence[str] = ("jaxattn", "jax.nn", "torch SDPA"),
) -> dict[str, Any]:
    """Results of the default set, as if these had been measured."""
    drift = (1.0, 1.5, 0.75, 2.0, 1.25)

    def record(work: Workload, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "status": "timed",
            "reason": None,
            "samples_s": [seconds(work, name) * x for x in drift],
        }
        if name != "torch SDPA":
            found |= {"temp_bytes": temp(work, name), "compile_s": 0.5}
        if work.queries == 16384 and name == "jax.nn":
            del found["samples_s"]
            found |= {"status": "does not fit", "reason": "needs 24 GiB"}
        return found

    return {
        "format": 1,
        "name": "made-up",
        "command": "python -m benchmarks",
        "date": "2020-01-01T00:00:00Z",
        "machine": machine.facts(),
        "versions": {"python": "3.11.0", "torch": None},
        "contenders": list(names),
        "peaks": {"float32": {"size": 1000, "samples_s": {"XLA": [0.01], "torch": [0.008, 0.008]}}},
        "workloads": [
            {**work.facts(), "contenders": {name: record(work, name) for name in names}}
            for work in works
        ],
    }


def _fast(work: Workload, name: str) -> float:
    slower = {"jaxattn": 1, "jax.nn": 20 if work.queries >= 512 else 1.2, "torch SDPA": 0.9}
    return work.flops / 100e9 * slower[name]


def _lean(work: Workload, name: str) -> int:
    return work.queries * 2048 if name == "jaxattn" else work.queries**2 * 96


def test_ratios_shares_and_verdicts_follow_from_the_samples():
    results = Results(_synthetic(_fast, _lean))
    long = over((2048,), FORWARD)[0].name
    assert results.seconds(long, "jaxattn") == pytest.approx(2048**2 * 12 * 256 / 100e9 * 1.25)
    assert results.ratio(long, "jax.nn", "jaxattn") == pytest.approx(20)
    assert results.peak("float32") == pytest.approx(250)
    assert results.share(long, "jaxattn") == pytest.approx(100 / 1.25 / 250)
    assert results.ratio("no such workload", "jaxattn", "jax.nn") is None
    judged = verdicts(results)
    assert [v.met for v in judged] == [True] * len(judged)
    assert not any("plain" in v.what or "compat" in v.what for v in judged)


def test_verdicts_say_what_is_not_met_and_what_is_not_known():
    data = _synthetic(lambda work, name: 1.0, lambda work, name: work.queries**2)
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
    data = _synthetic(_fast, _lean)
    save(data, tmp_path / "made-up.json")
    assert load(tmp_path / "made-up.json") == data
    results = Results(data)
    text = report.markdown(results, tuple(plots.plots(results)))
    long = "`forward-full-t2048` | 161 |"
    assert long in text
    assert "3,221 (20.0) | 145 (0.90) | 5 |" in text
    assert "80 (32%)" in text
    assert "`forward-full-t16384`, jax.nn: does not fit: needs 24 GiB" in text
    assert "not met" not in text
    assert "made-up-memory.png" in text
    assert all(line.count("|") == 6 for line in text.splitlines() if line.startswith("| Forward"))
    assert "| forward, causal | 4096 |" in report.headline(results)


def test_report_of_another_device_has_no_targets():
    data = _synthetic(_fast, _lean)
    gpu = [w.facts() | {"contenders": {}} for w in GPU]
    data["workloads"] = gpu
    text = report.markdown(Results(data))
    assert "## Targets" not in text
    assert "## Summary" not in text
    assert "gradient-causal-t8192-b4-h16-d128-bf16" in text


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_plots_are_the_same_bytes_every_time(kind):
    results = Results(_synthetic(_fast, _lean))
    drawn = plots.plots(results)
    assert {*drawn, "options"} == set(report.PLOTS)
    share = drawn["share"]
    assert [panel.title for panel in share.panels] == [
        "forward, full",
        "forward, causal",
        "gradient, full",
        "gradient, causal",
    ]
    assert plots.render(share, kind) == plots.render(share, kind)


def test_plotted_memory_marks_what_was_not_run():
    memory = plots.plots(Results(_synthetic(_fast, _lean)))["memory"]
    assert isinstance(memory, plots.Plot)
    curve = {c.contender: c for c in memory.panels[0].curves}["jax.nn"]
    assert curve.ran[-2:] == (True, False)
    assert curve.values[-1] == 24576


def test_labels_are_pushed_apart_and_no_further():
    assert plots._apart([0, 10, 100], gap=15) == [-2.5, 12.5, 100]
    assert plots._apart([0, 20, 40], gap=15) == [0, 20, 40]
    assert plots._apart([5, 5, 5], gap=10) == [-5, 5, 15]
    assert plots._apart([5, 5, 50], gap=10, floor=3) == [3, 13, 50]


def test_command_measures_and_reports(tmp_path, capsys):
    arguments = ["--set", "smoke", "--only", "forward-full-t9", "--out", str(tmp_path)]
    arguments += ["--name", "tiny", "--seconds", "0.05", "--matrix", "64"]
    assert command.main(arguments) == 0
    assert {x.name for x in tmp_path.iterdir()} == {"tiny.json", "tiny.md"}
    results = Results(load(tmp_path / "tiny.json"))
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

    monkeypatch.setattr(run, "measure_workload", interrupted)
    monkeypatch.setattr(command, "contenders", lambda works: [JAX_NN])
    arguments = ["--set", "smoke", "--out", str(tmp_path), "--name", "cut", "--matrix", "64"]
    assert command.main([*arguments, "--seconds", "0.05"]) == 130
    kept = json.loads((tmp_path / "cut.json").read_text())
    assert [w["name"] for w in kept["workloads"]] == ["forward-full-t9"]
    assert (tmp_path / "cut.md").exists()


def test_command_names_the_workloads_when_none_is_chosen():
    with pytest.raises(SystemExit, match="gradient-full-t9"):
        command.main(["--set", "smoke", "--only", "no such"])


def test_full_holds_the_default_set():
    assert set(DEFAULT) <= set(FULL)
    assert over((9,), CAUSAL)[0] in DEFAULT


ROOT = Path(__file__).parent.parent
TINY = Workload(queries=40, keys=40, heads=4, kv_heads=2, features=8, value_features=8)


def test_segments_are_documents_of_equal_length():
    ids = Segments(3).ids(9)
    assert ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for t in (9, 10, 11):
        ids = Segments(3).ids(t)
        assert (allowed_ts(Segments(3), t, t) == (ids[:, None] == ids)).all()
    assert replace(PACKED, queries=64, keys=64).pairs == 12 * 8 * 8 * 8
    assert replace(PACKED, queries=64, keys=64).name == "forward-segments8-t64"


def test_options_in_arrays_are_what_they_are_named_after():
    random = np.random.default_rng(0)
    slopes = ALiBi().arrays(12, 5, 5, random)["slopes"]
    np.testing.assert_allclose(slopes, ja.alibi_slopes(12), rtol=1e-7)
    added = ALiBi().added(Head({"slopes": slopes}, 1, np.array([2, 4])), 5)
    np.testing.assert_allclose(added, -slopes[1] * np.array([[2, 1, 0, 1, 2], [4, 3, 2, 1, 0]]))
    ahead = np.arange(-200, 201)
    buckets = RelativeBias().bucket(ahead)
    few = {-200: 15, -7: 7, -8: 8, -1: 1, 0: 0, 1: 17, 7: 23, 8: 24, 128: 31, 200: 31}
    assert {k: int(buckets[k + 200]) for k in few} == few
    seen = DenseMask().arrays(12, 64, 64, random)["seen"][0, 0]
    assert seen.diagonal().all()
    assert 0.4 < seen.mean() < 0.6


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=str)
def test_reference_gradient_of_an_option_matches_finite_differences(option):
    random = np.random.default_rng(0)
    q, k, v, c = (random.standard_normal((7, d)) for d in (5, 5, 3, 3))
    q = q * 20  # so that a soft cap bends
    first, stop = Window(left=5).spans(7, 7)
    at = Head(option.arrays(3, 7, 7, random), 1, np.arange(7))
    kept_ts = random.random((7, 7)) < 0.7 if option.rate else None
    given = {"option": option, "at": at, "kept_ts": kept_ts}

    def loss(q, k, v):
        return (attention_rows(q, k, v, c, first, stop, gradient=False, **given).out_te * c).sum()

    got = attention_rows(q, k, v, c, first, stop, gradient=True, **given)
    arrays = [q, k, v]
    for which, gradient in enumerate((got.dq_td, got.dk_sd, got.dv_se)):
        step = random.standard_normal(arrays[which].shape)
        above, below = list(arrays), list(arrays)
        above[which], below[which] = arrays[which] + 1e-5 * step, arrays[which] - 1e-5 * step
        slope = (loss(*above) - loss(*below)) / 2e-5
        np.testing.assert_allclose((gradient * step).sum(), slope, rtol=1e-5, atol=1e-7)


def _without(work: Workload) -> JaxContender:
    """jaxattn, which forgets the option and the segments."""
    attention = lambda q, k, v, asked, extra: JAXATTN.attention(q, k, v, asked.plain, extra)
    return JaxContender("forgetful", attention)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    "work",
    [*with_options(ALL_OPTIONS, TINY), replace(TINY, mask=Segments(8))],
    ids=lambda work: str(work.option if work.has_option else work.mask),
)
def test_the_gate_checks_every_option(work, kind):
    work = replace(work, kind=kind)
    others = [PLAIN, _without(work), _times(JAXATTN, 1 + 2e-5)]
    records = run.measure_workload(work, [JAXATTN, *others], QUICK)["contenders"]
    statuses = [record["status"] for record in records.values()]
    assert statuses == ["timed", "timed", "wrong", "wrong"], records


def test_a_sampled_gate_knows_what_was_dropped():
    work = replace(TINY, option=Dropout(), kind=Kind.GRADIENT)
    inputs = work.inputs()
    built = JAXATTN.build(work, inputs)
    outputs = built.outputs(built.run())
    gate = Gate(work, inputs, most_pairs=1000)
    assert not any(e.too_large for e in gate.errors(outputs, built.read_off))
    outputs[0] = outputs[0] * np.where(np.arange(40) == 3, 1.01, 1)[:, None, None]
    assert [e.too_large for e in gate.errors(outputs, built.read_off)] == [True] + [False] * 3


@pytest.mark.parametrize(
    ("rate", "grown", "passes"),
    [(0.1, True, True), (0.0, True, False), (0.2, True, False), (0.1, False, False)],
)
def test_chances_tell_a_right_dropout_from_a_wrong_one(rate, grown, passes):
    work = replace(FORWARD, queries=256, keys=256, option=Dropout())
    inputs = work.inputs()
    key = jax.random.key(3)
    q, k, v = (jnp.asarray(x) for x in (inputs.q, inputs.k, inputs.v))
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 8)
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    out = jnp.einsum("bhts,bshe->bthe", weights * kept, v) / (1 - rate if grown else 1)
    (found,) = Gate(work, inputs).errors([np.asarray(out)])
    assert found.too_large is not passes, str(found)


def test_a_pattern_that_is_not_random_is_refused():
    random = np.random.default_rng(0)
    first = random.random((1, 3, 50, 50)) < 0.9
    assert Pattern(first, first[0]).complaint(0.1) is None
    assert "not 0.2000" in str(Pattern(first, first[0]).complaint(0.2))
    first[0, 1] = first[0, 0]
    assert "two heads" in str(Pattern(first, first[0]).complaint(0.1))


def test_who_takes_part_and_why_not():
    soft, sinks = (replace(FORWARD, queries=64, keys=64, option=o) for o in (SoftCap(), Sinks()))
    assert "no soft cap" in str(JAX_NN.supports(soft))
    assert "no sinks" in str(JAX_NN.supports(sinks))
    assert PLAIN.asked(soft) == replace(soft, option=soft.plain.option)
    assert PLAIN.asked(soft.plain) is None
    assert COMPAT.asked(soft) is None
    assert COMPAT.asked(replace(soft, option=DenseMask())) is not None
    assert COMPAT.asked(over((512,), FORWARD)[0]) is None


def test_the_smoke_set_has_every_option():
    assert {type(w.option) for w in SMOKE} >= {type(option) for option in ALL_OPTIONS}
    assert any(isinstance(w.mask, Segments) for w in SMOKE)


def _options(work: Workload, name: str) -> float:
    """Half of plain's time with an option, an eighth with segments; jax.nn takes ten times that."""
    plain = work.plain.flops / 1e11
    share = 1 / 8 if isinstance(work.mask, Segments) else 0.5 if work.has_option else 1
    return plain * {PLAIN.name: 1, "jax.nn": 10 * share}.get(name, share)


def test_verdicts_and_tables_of_the_options_set(tmp_path):
    names = ("jaxattn", PLAIN.name, COMPAT.name, "jax.nn")
    data = _synthetic(_options, lambda work, name: work.queries * 2048, OPTIONS, names)
    results = Results(data)
    by_name = {v.what: v for v in verdicts(results)}
    assert by_name["Forward, ALiBi, T = 4096, time over plain's"].measured == "0.500"
    assert by_name["Gradient, 8 segments, T = 8192, time over plain's"].measured == "0.125"
    assert by_name["compat, forward, T = 9 to 128, time over jax.nn's"].measured == "0.100"
    assert all(v.met for what, v in by_name.items() if "plain" in what or "compat" in what)
    table = option_tables.options(results)
    assert len(table.splitlines()) == 2 + sum(w.plain != w for w in OPTIONS)
    assert "| 8 segments | gradient | 8192 |" in table
    assert "| causal |" in option_tables.drop_in(results)
    drawn = plots.plots(results)
    assert set(drawn) == {"options"}
    dots = drawn["options"]
    assert isinstance(dots, Dots)
    forward, gradient = dots.panels
    assert [row.label for row in forward.rows] == [row.label for row in gradient.rows]
    assert forward.title == "forward, 4,096 tokens"
    assert dict(forward.rows[0].values) == pytest.approx({"jaxattn": 0.125, "jax.nn": 1.25})
    assert plots.render(dots, "png") == plots.render(dots, "png")


def test_precision_holds_what_it_claims(tmp_path, capsys):
    assert precision.main(["--tokens", "64", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("holds") == 3
    written = json.loads((tmp_path / "precision.json").read_text())
    assert {row["dtype"] for row in written["rows"]} == set(precision.DTYPES)
    assert "| float64: no error above 1e-12 |" in (tmp_path / "precision.md").read_text()


def test_precision_says_what_does_not_hold():
    good, bad = precision.Error(1e-3, 1e-3), precision.Error(2e-3, 1e-3)
    rows = [
        precision.Row(dtype, 64, "normal", "out", ours, its)
        for dtype, ours, its in (
            ("float64", good, good),
            ("bfloat16", bad, good),
            ("float16", good, bad),
        )
    ]
    assert [holds for _, holds, _ in precision.claims(rows)] == [False, False, True]


def _readme_table() -> str:
    return (ROOT / "README.md").read_text().partition(support.START)[2].partition(support.END)[0]


def test_the_table_of_support_has_every_mask_and_score():
    named = set(re.findall(r"\w+", _readme_table()))
    public = {*masks.__all__, *scores.__all__}
    public -= {"And", "END", "Everything", "Mask", "Not", "Or", "Score", "alibi_slopes"}
    assert public <= named, "run python -m benchmarks.support --write README.md"


def test_a_disagreement_is_no_tick():
    wrong = replace(CASES[1], name="wrong", written=lambda a: {})
    found = support.agreeing(wrong)
    assert set(found) == set(support.TRANSFORMS)
    assert not any(found.values())
    assert "✓" not in support.markdown({"wrong": found})


def test_a_failing_transformation_does_not_hide_the_others(capsys):
    def score(a):
        def function(logit, at):
            return jax.pure_callback(lambda x: x, logit, logit)

        return {"score": function}

    found = support.agreeing(replace(CASES[0], name="opaque", options=score))
    assert not found["grad"]
    assert "opaque, Reference(), grad: NotImplementedError" in capsys.readouterr().err


def test_the_table_goes_between_its_markers():
    text = support.put("| a |", f"before\n{support.START}\nold\n{support.END}\nafter")
    assert text == f"before\n{support.START}\n| a |\n{support.END}\nafter"
    with pytest.raises(ValueError, match="put both where it goes"):
        support.put("| a |", "no markers")


@pytest.mark.long
def test_the_table_of_support_is_what_is_found():
    assert support.make().strip() == _readme_table().strip()

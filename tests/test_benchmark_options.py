"""The benchmarks of options tell the truth: references, gates, chances, tables, support."""

import json
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import QUICK, synthetic, times

import jaxattn as ja
from benchmarks import plots, precision, report, run, support
from benchmarks.contenders import DROP_IN, JAXATTN, JAXATTN_PLAIN, XLA, Contender, attend, compiled
from benchmarks.gate import Gate, Pattern
from benchmarks.options import (
    ALIBI,
    COMPAT,
    DENSE_MASK,
    DROPOUT,
    OPTIONS,
    PLAIN,
    SINKS,
    SOFT_CAP,
    Mask,
    bucket,
)
from benchmarks.results import FOLDER, Results
from benchmarks.sets import PACKED, SETS, over
from benchmarks.targets import verdicts
from benchmarks.timing import Built
from benchmarks.workloads import Workload
from jaxattn import masks, scores

SUPPORT = (FOLDER / "support.md").read_text()
TINY = Workload(queries=40, keys=40, heads=4, kv_heads=2, features=8, value_features=8)


def test_segments_are_documents_of_equal_length():
    three = Mask(documents=3)
    ids = three.ids(9)
    assert ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for t in (9, 10, 11):
        ids = three.ids(t)
        assert (three.allowed(t, t) == (ids[:, None] == ids)).all()
    (work,) = over(64, mask=PACKED)
    assert work.pairs == 12 * 8 * 8 * 8
    assert work.name == "forward-segments8-t64"


def test_options_in_arrays_are_what_they_are_named_after():
    random = np.random.default_rng(0)
    arrays = ALIBI.arrays(over(5)[0], random)
    slopes = arrays["slopes"]
    np.testing.assert_allclose(slopes, ja.alibi_slopes(12), rtol=1e-7)
    assert ALIBI.added is not None
    ahead = np.arange(5) - np.array([[2], [4]])
    added = ALIBI.added(ALIBI.of(arrays, slice(1, 2), np.array([2, 4])), ahead)
    np.testing.assert_allclose(added, -slopes[1] * np.array([[[2, 1, 0, 1, 2], [4, 3, 2, 1, 0]]]))
    ahead = np.arange(-200, 201)
    buckets = bucket(ahead)
    few = {-200: 15, -7: 7, -8: 8, -1: 1, 0: 0, 1: 17, 7: 23, 8: 24, 128: 31, 200: 31}
    assert {k: int(buckets[k + 200]) for k in few} == few
    seen = DENSE_MASK.arrays(over(64)[0], random)["seen"][0, 0]
    assert seen.diagonal().all()
    assert 0.4 < seen.mean() < 0.6


def _forgetful(q, k, v, asked, extra):
    """jaxattn, without the option and the documents."""
    return attend(ja, q, k, v, asked.plain, extra)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize(
    "work",
    [*(replace(TINY, option=x) for x in OPTIONS), replace(TINY, mask=PACKED)],
    ids=lambda work: work.name,
)
def test_the_gate_checks_every_option(work, gradient):
    work = replace(work, gradient=gradient)
    forgetful = Contender("forgetful", partial(compiled, _forgetful))
    others = [JAXATTN_PLAIN, forgetful, times(JAXATTN, 1 + 2e-5)]
    records = run.measure_workload(work, [JAXATTN, *others], QUICK)["contenders"]
    statuses = [record["status"] for record in records.values()]
    assert statuses == ["timed", "timed", "wrong", "wrong"], records


def test_a_sampled_gate_knows_what_was_dropped():
    work = replace(TINY, option=DROPOUT, gradient=True)
    inputs = work.inputs()
    built = JAXATTN.build(work, inputs)
    outputs = built.outputs(built.run())
    built = replace(built, outputs=list)
    gate = Gate(work, inputs, most_pairs=1000)
    assert not any(finding.wrong for finding in gate.check(built, outputs))
    outputs[0] = outputs[0] * np.where(np.arange(40) == 3, 1.01, 1)[:, None, None]
    wrong = [finding.output for finding in gate.check(built, outputs) if finding.wrong]
    assert wrong == ["out"]


@pytest.mark.parametrize(
    ("rate", "grown", "passes"),
    [(0.1, True, True), (0.0, True, False), (0.2, True, False), (0.1, False, False)],
)
def test_chances_tell_a_right_dropout_from_a_wrong_one(rate, grown, passes):
    (work,) = over(256, options=[DROPOUT])
    inputs = work.inputs()
    key = jax.random.key(3)
    q, k, v = (jnp.asarray(x) for x in (inputs.q, inputs.k, inputs.v))
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 8)
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape)
    out = jnp.einsum("bhts,bshe->bthe", weights * kept, v) / (1 - rate if grown else 1)
    (found,) = Gate(work, inputs).check(Built(lambda: out), [np.asarray(out)])
    assert found.wrong is not passes, str(found)


def test_a_pattern_that_is_not_random_is_refused():
    random = np.random.default_rng(0)
    first = random.random((1, 3, 50, 50)) < 0.9
    assert not Pattern(first, first[0]).finding(0.1).wrong
    assert "dropped 0.096 (0.2 ±" in str(Pattern(first, first[0]).finding(0.2))
    first[0, 1] = first[0, 0]
    assert "same heads 1 (0 ±" in str(Pattern(first, first[0]).finding(0.1))


def test_who_takes_part_and_why_not():
    soft, sinks = over(64, options=(SOFT_CAP, SINKS))
    assert "no soft cap" in str(XLA.limits(soft))
    assert "no sinks" in str(XLA.limits(sinks))
    assert JAXATTN_PLAIN.asked(soft) == replace(soft, option=soft.plain.option)
    assert JAXATTN_PLAIN.asked(soft.plain) is None
    assert DROP_IN.asked(soft) is None
    assert DROP_IN.asked(replace(soft, option=DENSE_MASK)) is not None
    assert DROP_IN.asked(over(512)[0]) is None


def test_the_smoke_set_has_every_option():
    assert {w.option for w in SETS["smoke"]} >= set(OPTIONS)
    assert any(w.mask.documents for w in SETS["smoke"])


def _options(work: Workload, name: str) -> float:
    """Half of plain's time with an option, an eighth with segments; jax.nn takes ten times that."""
    plain = work.plain.flops / 1e11
    share = 1 / 8 if work.mask.documents else 1 if work.plain == work else 0.5
    return plain * {PLAIN: 1, "jax.nn": 10 * share}.get(name, share)


def test_verdicts_and_tables_of_the_options_set(tmp_path):
    names = ("jaxattn", PLAIN, COMPAT, "jax.nn")
    data = synthetic(_options, lambda work, name: work.queries * 2048, SETS["options"], names)
    results = Results(data)
    by_name = {v.what: v for v in verdicts(results)}
    assert by_name["Forward, ALiBi, T = 4096, time over plain's"].measured == "0.500"
    assert by_name["Gradient, 8 segments, T = 8192, time over plain's"].measured == "0.125"
    assert by_name["compat, forward, T = 9 to 128, time over jax.nn's"].measured == "0.100"
    assert all(v.met for what, v in by_name.items() if "plain" in what or "compat" in what)
    table = report.options(results)
    assert len(table.splitlines()) == 2 + sum(w.plain != w for w in SETS["options"])
    assert "| 8 segments | gradient | 8192 |" in table
    assert "| causal |" in report.drop_in(results)
    drawn = plots.plots(results)
    assert set(drawn) == {"options"}
    dots = drawn["options"]
    forward, gradient = dots.panels.values()
    assert list(forward) == list(gradient)
    assert next(iter(dots.panels)) == "forward, 4,096 tokens"
    first = next(iter(forward.values()))
    assert first == pytest.approx({"jaxattn": 0.125, "jax.nn": 1.25})
    assert plots.render(dots, "png") == plots.render(dots, "png")


def test_precision_holds_what_it_claims(tmp_path, capsys):
    assert precision.main(["--tokens", "64", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("holds") == 3
    written = json.loads((tmp_path / "precision.json").read_text())
    assert {row["dtype"] for row in written["rows"]} == set(precision.DTYPES)
    assert "| float64: no error above 1e-12 |" in (tmp_path / "precision.md").read_text()


def test_precision_says_what_does_not_hold():
    good, bad = {"max": 1e-3, "rms": 1e-3}, {"max": 2e-3, "rms": 1e-3}
    about = {"tokens": 64, "inputs": "normal", "array": "out"}
    rows = [
        {**about, "dtype": dtype, "jaxattn": ours, "jax_nn": its}
        for dtype, ours, its in (
            ("float64", good, good),
            ("bfloat16", bad, good),
            ("float16", good, bad),
        )
    ]
    assert [line.holds for line in precision.claims(rows)] == [False, False, True]


def test_the_table_of_support_has_every_mask_and_score():
    named = set(re.findall(r"\w+", SUPPORT))
    public = {*masks.__all__, *scores.__all__}
    public -= {"And", "Everything", "Mask", "Not", "Or", "Score", "alibi_slopes"}
    public -= {"BoundMask", "BoundScore"}
    assert public <= named, "run python -m benchmarks.support"


def test_a_disagreement_is_no_tick():
    found = support.agreeing("wrong", support.CASES["`Causal`"]._replace(allowed=True))
    assert set(found) == set(support.TRANSFORMS)
    assert not any(found.values())
    assert "| ✓ |" not in support.report({"wrong": found})


def test_a_failing_transformation_does_not_hide_the_others(capsys):
    itself = jax.custom_vjp(lambda logit: logit)
    itself.defvjp(lambda logit: (logit, None), lambda _, cotangent: (cotangent,))
    found = support.agreeing("one way", support.Case({"score": lambda logit, at: itself(logit)}))
    assert found["vmap"]
    assert not found["jvp"]
    assert "one way, Reference(), jvp: TypeError" in capsys.readouterr().err


@pytest.mark.long
def test_the_table_of_support_is_what_is_found():
    assert support.report(support.find()) == SUPPORT

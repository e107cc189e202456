"""The benchmarks of options tell the truth: references, gates, chances, tables, support."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import QUICK, assert_reference_gradient, synthetic, times

import jaxattn as ja
from benchmarks import option_tables, plots, precision, run, support
from benchmarks.chance import Pattern
from benchmarks.contenders import COMPAT, JAX_NN, JAXATTN, PLAIN, JaxContender
from benchmarks.gate import Gate
from benchmarks.masks import Segments, allowed_ts
from benchmarks.option_plot import Dots
from benchmarks.options import ALiBi, DenseMask, Dropout, Head, RelativeBias, Sinks, SoftCap
from benchmarks.results import Results
from benchmarks.sets import ALL_OPTIONS, FORWARD, OPTIONS, PACKED, SMOKE, with_options
from benchmarks.support_cases import CASES
from benchmarks.targets import verdicts
from benchmarks.workloads import Kind, Workload, over
from jaxattn import masks, scores

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
    random = np.random.default_rng(1)
    at = Head(option.arrays(3, 7, 7, random), 1, np.arange(7))
    kept_ts = random.random((7, 7)) < 0.7 if option.rate else None
    given = {"option": option, "at": at, "kept_ts": kept_ts}
    steep = 20  # so that a soft cap bends
    assert_reference_gradient(left=5, factor=steep, rtol=1e-5, atol=1e-7, **given)


def _without(work: Workload) -> JaxContender:
    """jaxattn, which forgets the option and the segments."""
    attention = lambda q, k, v, asked, extra: JAXATTN.attention(q, k, v, asked.plain, extra)
    return JaxContender("forgetful", attention)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    "work",
    [*with_options(ALL_OPTIONS, TINY), replace(TINY, mask=Segments(8))],
    ids=lambda work: str(work.option if work.has_option else work.mask),
)
def test_the_gate_checks_every_option(work, kind):
    work = replace(work, kind=kind)
    others = [PLAIN, _without(work), times(JAXATTN, 1 + 2e-5)]
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
    data = synthetic(_options, lambda work, name: work.queries * 2048, OPTIONS, names)
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


def _table() -> str:
    text = (ROOT / "benchmarks" / "results" / "support.md").read_text()
    return text.partition(support.START)[2].partition(support.END)[0]


def test_the_table_of_support_has_every_mask_and_score():
    named = set(re.findall(r"\w+", _table()))
    public = {*masks.__all__, *scores.__all__}
    public -= {"And", "Everything", "Mask", "Not", "Or", "Score", "alibi_slopes"}
    assert public <= named, "run python -m benchmarks.support --write benchmarks/results/support.md"


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
    assert support.make().strip() == _table().strip()

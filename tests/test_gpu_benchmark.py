"""The benchmark of a GPU: what crashes or hangs costs itself only, and what is wrong is told."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import facts, peers, report, right, times
from benchmarks.gpu.child import Setting
from benchmarks.gpu.parent import Stage
from benchmarks.gpu.programs import Call, work
from benchmarks.gpu.table import TARGETS, table
from benchmarks.options import CAUSAL, SOFT_CAP

ROOT = Path(__file__).parent.parent
STAGES = """
import os, signal, time
from benchmarks.gpu.child import Case

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def hang(setting):
    with setting.alone():
        time.sleep(600)

def wrong():
    raise AssertionError("out is off, see /some/where/else/file.py")

def printing():
    print("not a record")
    return {"answer": 42}

def cases(setting):
    found = {"before": printing, "crashes": crash, "hangs": lambda: hang(setting)}
    found |= {"is wrong": wrong, "after": printing}
    return [Case(name, run, limit=1.0) for name, run in found.items()]

def slow(setting):
    return [Case(f"slow {i}", lambda: time.sleep(600) or {}, limit=500.0) for i in range(2)]

def broken(setting):
    raise ImportError("no such thing")
"""


@pytest.fixture
def dry(tmp_path):
    return Setting(True, 5, str(tmp_path / "lock"), lambda **said: None)


@pytest.fixture
def found(tmp_path, monkeypatch, capfd):
    """From stages of the module above to the results, and what was printed."""
    (tmp_path / "made_up.py").write_text(STAGES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def run(*stages, seconds="100"):
        arguments = [str(tmp_path), "--dry", "--seconds", seconds]
        status = command.main(arguments, [Stage(*x) for x in stages])
        data = json.loads((tmp_path / "gpu-dry.json").read_text())
        assert (tmp_path / "gpu-dry.md").read_bytes() == report(data)["gpu-dry.md"]
        return status, data["records"], capfd.readouterr().out

    return run


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_crash_and_a_hang_cost_one_case_each(lanes, found):
    right, last = ("right", "made_up:cases", 90, lanes), ("plain", "made_up:broken", 30)
    status, records, printed = found(right, last)
    cases = {x["case"]: x for x in records if "case" in x}
    assert status == 1
    assert cases["before"]["answer"] == cases["after"]["answer"] == 42
    assert cases["crashes"]["status"] == cases["hangs"]["status"] == "ended"
    assert "status -11" in cases["crashes"]["reason"]
    assert "it hangs" in cases["hangs"]["reason"]
    assert cases["is wrong"]["reason"] == "AssertionError: out is off, see file.py"
    stages = {x["stage"]: x["state"] for x in records if "case" not in x}
    assert stages["right"] == "done"
    assert "ImportError: no such thing" in stages["plain"]
    shown = printed[printed.index("Beside others") :]
    for what in (
        "ENDED right, crashes: status -11",
        "ENDED right, hangs: it hangs",
        "2 of 5 right",
    ):
        assert what in shown
    assert "no number here is a result" in shown.lower()


def test_what_there_was_no_time_for_is_named(found):
    slow = ("plain", "made_up:slow", 3)
    _, records, printed = found(slow, ("sweep", "made_up:slow", 6), seconds="2")
    assert [x.get("status") for x in records] == ["ended", "left out", None, None]
    assert "time was up" in records[0]["reason"]
    assert records[-1]["state"] == "left out: no time"
    assert "sweep: left out" in printed


def test_the_program_runs_without_a_gpu(tmp_path):
    """Through the shell, the first stage."""
    given = ["sh", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), "--dry", "--only", "facts"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(given, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "gpu-dry.json").read_text())
    assert data["dry"]
    assert [x["case"] for x in data["records"] if "case" in x] == [
        "software",
        "first call",
        "product",
    ]
    assert done.stdout.count("not measured: ") == len(TARGETS)
    assert len(table(data).splitlines()) <= 60


def test_the_table_is_short_and_has_every_target(tmp_path):
    """Of all cases of a real run, as if each had been measured."""
    real = Setting(False, 5, str(tmp_path / "lock"), lambda **said: None)
    stages = {"facts": facts.facts, "right": right.right, "plain": times.plain}
    stages |= {"options": times.options, "peers": peers.peers, "sweep": times.sweep}
    kinds = "forward", "backward", "observed", "other forward", "other backward"
    one = {"tflops": 1.0, "share": 0.5, "ms": 1.0, "compile_s": 1.0}
    ratios = {f"{a} / {b}": 1.1 for a in kinds for b in kinds}
    records = []
    for stage, of in stages.items():
        cases = of(real)
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            who = case.name.rpartition(", ")[0]
            found = {
                "times": dict.fromkeys((*kinds, "jaxattn", who), one),
                "who": who,
                "ratio": 0.5,
            }
            found |= {"status": "done", "worst": 0.1, "tiles": 0.04, "ratios": ratios}
            records.append({"stage": stage, "case": case.name, **found})
        records.append({"stage": stage, "state": "done", "seconds": 1.0})
    data = {"name": "made-up", "date": "now", "seed": 5, "dry": False, "records": records}
    shown = table(data)
    assert len(shown.splitlines()) <= 60
    assert len(shown) < 10_000
    assert "is missing" not in shown
    assert "not measured" not in shown
    assert shown.count("MISSED: ") + shown.count("met: ") == len(TARGETS)
    assert "met: forward causal alibi d128 t8192, times of plain: 1.100 <= 1.250" in shown


def test_a_wrong_mask_is_found(dry):
    rule = replace(right.RULES["window"], t=70)
    assert right.check(dry, rule)["worst"] < 1
    one_more = lambda i, j: (i - 71 <= j) & (j <= i + 1)
    with pytest.raises(AssertionError, match="out is off"):
        right.check(dry, replace(rule, allowed=one_more))


def test_the_check_before_timing_sees_queries_and_keys(dry):
    call = Call(work(dry, 8192, 64, CAUSAL, SOFT_CAP), dry)
    forward, backward = call.forward(), call.backward()
    assert 0 < call.check(forward, backward) < 1
    assert backward.flops == 2.5 * forward.flops
    for which, name in enumerate(["dq", "dk", "dv"]):
        scaled = lambda *x, which=which: [
            y * (1.2 if i == which else 1) for i, y in enumerate(backward.run(*x))
        ]
        with pytest.raises(AssertionError, match=f"{name} is off"):
            call.check(forward, backward._replace(run=scaled))
    other = replace(call.work, option=replace(SOFT_CAP, cap=1.0))
    call.work = other
    with pytest.raises(AssertionError, match="out is off"):
        call.check(forward)


def test_programs_repeat_what_they_time(dry):
    call = Call(work(dry, 8192, 64, CAUSAL), dry)
    got, want = call.forward().built.result(), call.attend(*call.arrays[:3])
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


def test_kernels_stay_in_the_loop_that_is_timed(tmp_path):
    """The compiler takes none out, knows how often it goes round, and copies nothing in it."""
    h100 = pytest.importorskip("test_h100")
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    real = Setting(False, 5, str(tmp_path / "lock"), lambda **said: None)
    call, there = Call(work(real, 1024, 64, CAUSAL, batch=1), real), h100.device()
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
    call.shapes = [place(x) for x in call.shapes]
    card = AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
        programs = call.forward(), call.backward()
    for program, kernels in zip(programs, (1, 2), strict=True):
        text = program.run.as_text()  # pyright: ignore[reportFunctionMemberAccess]
        loops = [part for part in text.split("\n\n") if part.startswith("%region")]
        found = [part for part in loops if "mosaic_gpu" in part]
        assert text.count('custom_call_target="mosaic_gpu') == kernels
        assert [part.count('custom_call_target="mosaic_gpu') for part in found] == [kernels]
        assert " copy(" not in found[0]
        assert f'"known_trip_count":{{"n":"{program.calls}"}}' in text

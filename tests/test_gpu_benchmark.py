"""The benchmark of a GPU: what crashes or hangs costs itself only, and what is wrong is told."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bench  # noqa: F401
import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import report, right
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

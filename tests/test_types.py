"""Annotations: true at run time, and enough for a strict type checker outside the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CALLS = HERE / "typed_calls.py"

HOOKED = """
import runpy
from jaxtyping import install_import_hook
with install_import_hook("jaxattn", "beartype.beartype"):
    import jaxattn
    from jaxattn import compat, models, nn, plot, sharded, steps, viewer
    from jaxattn._value import Value
try:
    jaxattn.alibi_slopes("8")
except Exception as error:
    assert "alibi_slopes" in str(error), error
else:
    raise AssertionError("annotations are not checked")
made, check = set(), Value.__post_init__
Value.__post_init__ = lambda self: made.add(type(self)) or check(self)
runpy.run_path({calls!r}, run_name="__main__")


def kinds(cls):
    return {{cls}}.union(*map(kinds, cls.__subclasses__()))


values = {{x for x in kinds(Value) if vars(x).get("__dataclass_fields__")}}
assert values <= made, f"not made, so not checked: {{values - made}}"
"""


def run(*command, cwd):
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_annotations_hold_while_everything_runs(tmp_path):
    """Those of functions, and of the fields of every class of values, as given and as bound."""
    done = run(sys.executable, "-c", HOOKED.format(calls=str(CALLS)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_strict_type_checker_outside_the_package_has_nothing_to_say(tmp_path):
    """But for members of JAX, whose own types are partly unknown."""
    (tmp_path / "calls.py").write_text(CALLS.read_text())
    settings = {
        "include": ["calls.py"],
        "extraPaths": [str(HERE.parent)],
        "typeCheckingMode": "strict",
        "reportUnknownMemberType": False,
        "pythonVersion": "3.11",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    pyright = (sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson")
    done = run(*pyright, cwd=tmp_path)
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except json.JSONDecodeError:
        pytest.skip(f"pyright cannot run here: {done.stderr[-200:]}")
    assert [f"{x['range']['start']['line'] + 1}: {x['message']}" for x in found] == []

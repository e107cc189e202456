"""What is wrong with a checkpoint, a text or a file is told in one line, and ends with 1."""

import json
import shutil

import pytest
from small_checkpoints import POSITIONS, make_gpt2
from typer.testing import CliRunner

from jaxattn.cli.app import app


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors") / "gpt2"
    make_gpt2(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "gpt2")


def told(*arguments, **options):
    done = CliRunner().invoke(app, list(map(str, arguments)), **options)
    assert done.exit_code == 1, (done.stdout, done.stderr, done.exception)
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("jaxattn: ")
    return line


@pytest.mark.parametrize("command", ["see", "heads", "generate"])
def test_no_folder(command):
    assert "a package nothing_of_the_kind is not installed" in told(
        command, "nothing-of-the-kind", "text"
    )
    assert "a package json has no checkpoint in it" in told(command, "json", "text")


def test_a_file_for_a_folder(folder):
    assert "pass the folder it is in" in told("see", folder / "config.json", "text")


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in told("see", folder, "text")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in told("see", folder, "text")


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in told("see", folder, "text")


def test_an_unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    line = told("heads", folder, "text")
    assert "'mamba'" in line
    assert "gpt2" in line


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_text(folder, text, tmp_path):
    assert "at least one word" in told("see", folder, text)
    assert "standard input" in told("see", folder, input=text)
    (tmp_path / "empty").write_text(text)
    assert "empty" in told("heads", folder, "--text-file", tmp_path / "empty")
    assert "--text-b" in told("see", folder, "text", "--text-b", text)


def test_a_text_that_is_not_utf_8(folder, tmp_path):
    (tmp_path / "latin").write_bytes("Größe".encode("latin-1"))
    assert "a byte at 2" in told("heads", folder, "--text-file", tmp_path / "latin")


def test_a_file_that_is_not_there(folder, tmp_path):
    assert "nothing.txt" in told("heads", folder, "--text-file", tmp_path / "nothing.txt")


@pytest.mark.parametrize("head", [(2, 0), (0, 3)])
def test_a_head_that_is_not_there(folder, head, tmp_path):
    line = told("see", folder, "text", "--layer", head[0], "--head", head[1])
    assert ("layers 0 to 1" in line) if head[0] else ("heads 0 to 2" in line)


def test_a_text_that_is_too_long(folder, tmp_path):
    long = " ".join(["the"] * (POSITIONS + 1))
    assert f"positions for {POSITIONS} tokens" in told(
        "see", folder, long, "--steps", "--layer", 0, "--head", 0
    )
    assert "ask for fewer" in told("generate", folder, "the cat", "--tokens", POSITIONS)


def test_a_query_that_is_not_there(folder, tmp_path):
    text = " ".join(["the cat"] * 20)
    out = tmp_path / "a.html"
    assert "from 0 to 41" in told("see", folder, text, "--query", 999, "--html", out)


def test_steps_of_many_tokens(folder):
    text = " ".join(["the cat"] * 20)
    assert "at most 32" in told("see", folder, text, "--steps", "--layer", 0, "--head", 0)


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_a_place_that_is_not_there(folder, tmp_path, option):
    wrong = tmp_path / "no" / "page"
    assert f"make the folder {wrong.parent}" in told("see", folder, "text", option, wrong)
    assert "is a folder" in told("see", folder, "text", option, tmp_path)

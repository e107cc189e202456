"""`import jaxattn` is light, its names exist, and its modules import one way."""

import ast
import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import jaxattn as ja

PACKAGE = Path(ja.__file__).parent


def modules_after(statement):
    """Every module that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def loaded():
    return modules_after("import jaxattn")


@pytest.mark.parametrize(
    "name",
    ["flax", "optax", "matplotlib", "torch", "safetensors", "tqdm", "jax.experimental.pallas"],
)
def test_import_leaves_out(loaded, name):
    assert "jaxattn" in loaded
    assert name not in loaded


def test_import_adds_nothing_but_itself(loaded):
    def top(modules):
        return {name.partition(".")[0] for name in modules}

    assert top(loaded) - top(modules_after("import jax, jaxtyping")) == {"jaxattn"}


def test_import_looks_for_no_device():
    """That is slow, and settles choices that belong to the user. Here no device can be found."""

    def run(program):
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "JAX_PLATFORMS": "nowhere"},
            capture_output=True,
        )

    assert run("import jaxattn").returncode == 0
    assert run("import jax; jax.devices()").returncode != 0


def test_every_public_name_exists_once():
    assert ja.__all__
    assert len(set(ja.__all__)) == len(ja.__all__)
    for name in ja.__all__:
        assert hasattr(ja, name), name


def test_public_functions_and_classes_are_documented():
    for name in ja.__all__:
        value = getattr(ja, name)
        if callable(value) and not isinstance(value, ja.Mask):
            assert value.__doc__, name


def test_package_is_typed():
    assert resources.files("jaxattn").joinpath("py.typed").is_file()


def imports_of(path):
    """The modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxattn"):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("jaxattn")}
    return found


def modules_of(layer):
    return [*(PACKAGE / layer).rglob("*.py"), *PACKAGE.glob(f"{layer}.py")]


LAYERS = (
    *(
        "_jaxpr",
        "_varying",
        "_lowering",
        "_serial",
        "_axes",
        "_content",
        "_value",
        "_function",
        "_batched",
        "positions",
        "_finite",
        "_softmax",
    ),
    *("_rope_angles", "_rope_scaling", "_rope_config", "rope", "steps"),
    *(
        "_trace",
        "_mask",
        "_band",
        "masks",
        "_score",
        "scores",
        "dropout",
        "_observation",
        "_problem",
    ),
    *("_linear", "_mesh", "merge"),
    *("backends/protocol", "backends/rule", "backends/reference"),
    *("backends/blockwise", "backends/hopper", "backends/splash", "backends/select"),
    *("_solve", "sharded", "attend", "observe", "recipes", "explain", "compat", "cache", "nn"),
    *("models",),
    *("viewer", "plot", "cli"),
)
"""From the bottom up: a file imports from its own layer and from those before it."""


def test_every_file_is_in_a_layer():
    inside = {path for layer in LAYERS for path in modules_of(layer)}
    rest = {path for path in PACKAGE.rglob("*.py") if path not in inside}
    assert {str(path.relative_to(PACKAGE)) for path in rest} == {
        "__init__.py",
        "__main__.py",
        "backends/__init__.py",
    }


def test_imports_point_one_way():
    for rank, layer in enumerate(LAYERS):
        above = [f"jaxattn.{name.replace('/', '.')}" for name in LAYERS[rank + 1 :]]
        for path in modules_of(layer):
            for name in imports_of(path):
                bad = [x for x in above if name == x or name.startswith(f"{x}.")]
                assert not bad, f"{path} imports {name}"


def test_a_backend_imports_no_other():
    """But `Blockwise`, whose rule of derivatives is everybody's."""
    for path in (*modules_of("backends/blockwise"), *modules_of("backends/hopper")):
        assert not any("reference" in name for name in imports_of(path)), path

"""`jax.shard_map` with its default check of what varies: see shard_map_cases.py."""

import os
import subprocess
import sys

import pytest
import shard_map_cases

FLAGS = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "JAX_PLATFORMS": "cpu",
}


def run(names):
    code = f"import shard_map_cases; [shard_map_cases.run(name) for name in {names!r}]"
    folder, environment = os.path.dirname(__file__), {**os.environ, **FLAGS}
    environment["XLA_FLAGS"] += " " + os.environ.get("XLA_FLAGS", "")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)


def test_inside_shard_map():
    """Some, in one process."""
    run(shard_map_cases.USUAL)


@pytest.mark.long
@pytest.mark.parametrize("name", shard_map_cases.NAMES)
def test_every_case(name):
    run([name])

"""One sequence over 8 devices: see sharded_cases.py."""

import os
import subprocess
import sys

import pytest
import sharded_cases

FLAGS = "--xla_force_host_platform_device_count=8"


def run(names):
    code = f"import sharded_cases; [sharded_cases.run(name) for name in {names!r}]"
    flags = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    folder = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)


@pytest.mark.parametrize("half", [0, 1])
def test_sequences_over_devices(half):
    """Some, in two processes."""
    run(sharded_cases.USUAL[half::2])


@pytest.mark.long
@pytest.mark.parametrize("name", sharded_cases.NAMES, ids=lambda name: name.replace(":", "/"))
def test_every_case(name):
    run([name])

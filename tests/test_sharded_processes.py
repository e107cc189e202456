"""Real processes under `jax.distributed`, over the loopback: see sharded_process.py."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 100  # until a process that has not ended is stopped


def start(count, todo):
    """Processes, and how each ended: (exit status, what it said)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = str(Path(__file__).with_name("sharded_process.py"))
    running = [
        subprocess.Popen(
            [sys.executable, program, str(number), str(count), str(port), todo],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [one.communicate(timeout=SECONDS)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    return [(one.returncode, text) for one, text in zip(running, said, strict=True)]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_agree_with_one_device(count):
    for status, said in start(count, "attend"):
        assert status == 0, said
        assert "agrees" in said


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_process_that_dies_ends_the_others(count):
    """In the time of a heartbeat, in start and shutdown; JAX says which it was."""
    begin = time.monotonic()
    *others, (last, _) = start(count, "die")
    assert time.monotonic() - begin < 60
    assert last == 3
    for status, said in others:
        assert status not in (0, 3), said
    told = "\n".join(said for _, said in others)
    assert re.search(rf"stopped sending heartbeats\):\s*{count - 1}\b", told), told

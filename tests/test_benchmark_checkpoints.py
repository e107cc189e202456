"""What the benchmark of checkpoints measures of whole processes."""

import pytest

from benchmarks.checkpoints import process
from benchmarks.results import MIB


def test_memory_is_that_of_the_process_alone():
    hold = "x = bytes(1)" + " * (300 << 20)"
    mine = bytes(1) * (500 * MIB)  # which a process that is started from here would begin with
    (seconds, small), (_, large) = process("-c", "pass"), process("-c", hold)
    del mine
    assert 0 < seconds < 60
    assert small < 100 * MIB
    assert 300 * MIB < large < 400 * MIB


def test_a_process_that_fails_is_an_error():
    with pytest.raises(ValueError, match="ended with"):
        process("-c", "raise SystemExit(3)")

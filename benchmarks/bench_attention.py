"""The smoke set under pytest-benchmark: `pytest benchmarks/bench_attention.py`.

Here each contender is timed by itself, one after another; for ratios that can be trusted to a few
percent use `python -m benchmarks`, which lets contenders take turns.
"""

import pytest

from benchmarks import machine
from benchmarks.contenders import contenders
from benchmarks.gate import Gate
from benchmarks.sets import SMOKE


@pytest.mark.parametrize("work", SMOKE, ids=str)
@pytest.mark.parametrize("contender", contenders(SMOKE), ids=lambda contender: contender.name)
def bench_attention(benchmark, work, contender):
    asked = contender.asked(work)
    if asked is None:
        pytest.skip(f"{contender.name} does not take part in this workload")
    reason = contender.supports(asked)
    if reason is not None:
        pytest.skip(f"{contender.name}: {reason}")
    inputs = asked.inputs()
    built = contender.build(asked, inputs)  # compile time is recorded apart
    got = built.run()
    built.wait(got)
    errors = Gate(asked, inputs).errors(built.outputs(got), built.read_off)
    wrong = [e for e in errors if e.too_large]
    assert not wrong, f"{contender.name} is wrong and gets no time: {wrong[0]}"

    benchmark.group = work.name
    benchmark.extra_info.update(
        flops=asked.flops,
        bytes=asked.bytes,
        compile_s=built.compile_seconds,
        temp_bytes=built.temp_bytes(),
        **machine.facts(),
    )
    rounds = {"rounds": 30, "warmup_rounds": 3}
    benchmark.pedantic(lambda: built.wait(built.run()), **rounds)
    if benchmark.enabled:
        benchmark.extra_info["gflops"] = asked.flops / benchmark.stats.stats.median / 1e9

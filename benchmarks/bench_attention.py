"""The smoke set under pytest-benchmark: `pytest benchmarks/bench_attention.py`.

Here each contender is timed by itself, one after another; for ratios that can be trusted to a few
percent use `python -m benchmarks`, which lets contenders take turns.
"""

import pytest

from benchmarks import machine
from benchmarks.contenders import contenders
from benchmarks.gate import Gate
from benchmarks.workloads import SMOKE


@pytest.mark.parametrize("work", SMOKE, ids=str)
@pytest.mark.parametrize("contender", contenders(), ids=lambda contender: contender.name)
def bench_attention(benchmark, work, contender):
    reason = contender.supports(work)
    if reason is not None:
        pytest.skip(f"{contender.name}: {reason}")
    inputs = work.inputs()
    built = contender.build(work, inputs)  # compile time is recorded apart
    got = built.run()
    built.wait(got)
    wrong = [e for e in Gate(work, inputs).errors(built.outputs(got)) if e.too_large]
    assert not wrong, f"{contender.name} is wrong and gets no time: {wrong[0]}"

    benchmark.group = work.name
    benchmark.extra_info.update(
        flops=work.flops,
        bytes=work.bytes,
        compile_s=built.compile_seconds,
        temp_bytes=built.temp_bytes(),
        **machine.facts(),
    )
    rounds = {"rounds": 30, "warmup_rounds": 3}
    benchmark.pedantic(lambda: built.wait(built.run()), **rounds)
    if benchmark.enabled:
        benchmark.extra_info["gflops"] = work.flops / benchmark.stats.stats.median / 1e9

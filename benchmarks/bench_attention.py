"""The smoke set under pytest-benchmark: `pytest benchmarks/bench_attention.py`.

Here each contender is timed by itself, one after another; for ratios that can be trusted to a few
percent use `python -m benchmarks`, which lets contenders take turns.
"""

import pytest

from benchmarks import machine
from benchmarks.contenders import contenders
from benchmarks.gate import Gate
from benchmarks.run import admit
from benchmarks.sets import SETS


@pytest.mark.parametrize("work", SETS["smoke"], ids=str)
@pytest.mark.parametrize(
    "contender", contenders(SETS["smoke"]), ids=lambda contender: contender.name
)
def bench_attention(benchmark, work, contender):
    asked = contender.asked(work)
    if asked is None:
        pytest.skip(f"{contender.name} does not take part in this workload")
    if reason := contender.limits(asked):
        pytest.skip(f"{contender.name}: {reason}")
    inputs = asked.inputs()
    record, passed = admit(lambda: contender.build(asked, inputs), Gate(asked, inputs).check)
    assert passed is not None, f"{contender.name} gets no time: {record['reason']}"
    built, _ = passed

    benchmark.group = work.name
    facts = {x: record[x] for x in ("compile_s", "temp_bytes") if x in record}
    benchmark.extra_info.update(flops=asked.flops, bytes=asked.bytes, **facts, **machine.facts())
    benchmark.pedantic(built.result, rounds=30, warmup_rounds=3)
    if benchmark.enabled:
        benchmark.extra_info["gflops"] = asked.flops / benchmark.stats.stats.median / 1e9

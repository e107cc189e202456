"""The stages that time jaxattn's kernels, each case after its check against float64."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import numpy as np

import jaxattn as ja
from benchmarks.gpu.child import Case, Setting
from benchmarks.gpu.programs import Call, Program, ratio, timed, work
from benchmarks.options import ALIBI, CAUSAL, DROPOUT, EVERY_PAIR, SOFT_CAP, Mask, window
from benchmarks.workloads import Workload

MASKS = {"full": EVERY_PAIR, "causal": CAUSAL}
PACKED = Mask(documents=8)


def name(its: Workload) -> str:
    option = "" if its.option.name == "plain" else f" {its.option.name}"
    return f"{its.mask}{option} d{its.features} t{its.queries}"


def measured(
    setting: Setting,
    make: Callable[[], tuple[dict[str, Program], Callable[[], float]]],
    ratios: Sequence[tuple[str, str]] = (),
    busy: bool = False,
) -> dict[str, Any]:
    """Builds, checks and times. make: programs, and their check. busy: building takes the device,
    for what XLA tries out."""
    with setting.alone() if busy else contextlib.nullcontext():
        programs, check = make()
    with setting.alone():
        worst = check()
        facts = timed(programs, setting)
    found = {f"{a} / {b}": ratio(facts, a, b) for a, b in ratios}
    return {"worst": worst, "ratios": found, "times": facts}


def both(call: Call, backward: bool = True) -> tuple[dict[str, Program], Callable[[], float]]:
    """The forward and the backward pass of a call."""
    programs = {"forward": call.forward()} | ({"backward": call.backward()} if backward else {})
    return programs, lambda: call.check(**programs)


def beside(
    setting: Setting, its: Workload, other: Workload, passes: Sequence[str], backend: Any = None
) -> dict[str, Any]:
    """A workload beside another one, or beside itself by another backend."""

    def make() -> tuple[dict[str, Program], Callable[[], float]]:
        calls = Call(its, setting), Call(other, setting, backend)
        (mine, check), (theirs, their_check) = (both(x, "backward" in passes) for x in calls)
        programs = mine | {f"other {x}": its for x, its in theirs.items()}
        return programs, lambda: max(check(), their_check())

    ratios = [(x, f"other {x}") for x in passes]
    return measured(setting, make, ratios, busy=backend is not None) | {"tiles": _tiles(its)}


def _tiles(its: Workload, size: int = 128) -> float:
    """The share of tiles of 128 x 128 that the mask does not hide whole."""
    first, stop = its.mask.spans(its.queries, its.keys)
    starts = range(0, its.queries, size)
    each = [
        -(-stop[i : i + size].max() // size) - first[i : i + size].min() // size for i in starts
    ]
    return float(sum(each) / (len(starts) * -(-its.keys // size)))


def plain(setting: Setting) -> list[Case]:
    """Full and causal attention, at the sizes of the targets first."""
    sizes = [(d, 8192) for d in (128, 64)]
    sizes += [(d, t) for d in (128, 64) for t in (16384, 4096, 1024)]
    sizes += [(256, t) for t in (16384, 4096, 1024, 8192)]
    cases = []
    for d, t in sizes:
        for mask in MASKS.values():
            its = work(setting, t, d, mask)
            backward = d <= 128 or t == 8192  # else it is Blockwise's
            make = lambda its=its, backward=backward: both(Call(its, setting), backward)
            cases.append(Case(name(its), partial(measured, setting, make, busy=d > 128)))
    return cases


def options(setting: Setting) -> list[Case]:
    """What masks and options cost: beside the plain call, and beside `Blockwise`."""
    two = ("forward", "backward")
    wide = work(setting, 32768, 128, window(setting.size(1024, 32)))
    full = work(setting, 32768, 128, EVERY_PAIR)
    causal = {d: work(setting, 8192, d, CAUSAL) for d in (64, 128)}
    of = lambda its, other, passes=two: Case(
        name(its), partial(beside, setting, its, other, passes), limit=90
    )
    cases = [of(wide, full)]
    cases += [of(work(setting, 8192, 128, CAUSAL, x), causal[128]) for x in (SOFT_CAP, ALIBI)]
    cases.append(
        Case(f"observed {name(causal[128])}", partial(observed, setting, causal[128]), limit=90)
    )
    cases.append(of(work(setting, 8192, 64, CAUSAL, DROPOUT), causal[64]))
    cases.append(of(work(setting, 8192, 128, PACKED), work(setting, 8192, 128, EVERY_PAIR)))
    cases += [of(work(setting, 8192, 64, CAUSAL, x), causal[64]) for x in (SOFT_CAP, ALIBI)]
    for mask in MASKS.values():
        its = work(setting, 8192, 128, mask)
        run = partial(beside, setting, its, its, two, ja.Blockwise())
        cases.append(Case(f"Blockwise {name(its)}", run, limit=120))
    for t in (1, 64):
        few = work(setting, 8192, 128, EVERY_PAIR, queries=t, kv_heads=setting.size(4, 1))
        run = partial(beside, setting, few, few, ("forward",), ja.Blockwise())
        cases.append(Case(f"{t} queries, {few.keys} keys, d128", run))
    small = work(setting, 256, 64, CAUSAL, batch=1)
    run = partial(beside, setting, small, small, two, ja.Blockwise())
    return [*cases, Case(f"one sequence, {name(small)}", run)]


def observed(setting: Setting, its: Workload) -> dict[str, Any]:
    """A map, what keys receive, the largest logit and the entropy beside the plain call."""
    seen = ja.observe
    wanted = {"map": seen.Map(setting.size(256, 16)), "received": seen.Received()}
    wanted |= {"max": seen.MaxLogit(), "entropy": seen.Entropy()}
    call = Call(its, setting)

    def attend(*qkv: jax.Array) -> Any:
        got = ja.attend(*qkv, mask=ja.Causal(), observe=wanted, backend=call.backend)
        return {"out": got.out, **got.observed}

    def make() -> tuple[dict[str, Program], Callable[[], float]]:
        programs = {"forward": call.forward()}
        programs["observed"] = call.program(attend, slower=2)

        def check() -> float:
            """Every query gives 1 in all; the values themselves are for the tests."""
            got = programs["observed"].built.result()
            plain = programs["forward"].built.result()
            assert np.array_equal(got["out"], plain), "looking changes the result"
            given = np.asarray(got["received"].mass, np.float32).sum(1)
            assert np.allclose(given, its.queries, rtol=1e-3), f"received {given}"
            return call.check(programs["forward"])

        return programs, check

    return measured(setting, make, [("observed", "forward")], busy=True)


# Queries and keys of a tile that fit in shared memory, by features.
PLAIN = [(128, 128, "plain"), (256, 64, "plain"), (256, 128, "plain"), (128, 128, "ping-pong")]
PLANS = {
    128: [*PLAIN, (128, 128, "overlap"), (128, 64, "overlap")],
    64: [*PLAIN, (128, 128, "overlap"), (128, 192, "plain"), (256, 192, "plain")],
}


def sweep(setting: Setting) -> list[Case]:
    """Other plans than the one that `Hopper` chooses."""
    cases = []
    for d, plans in PLANS.items():
        for mask, plan in product(MASKS.values(), plans):
            its = work(setting, 8192, d, mask)
            backend = None if setting.dry else ja.Hopper(*plan)
            make = lambda its=its, backend=backend: both(Call(its, setting, backend), False)
            run = partial(measured, setting, make)
            block_q, block_kv, schedule = plan
            cases.append(Case(f"{name(its)} {block_q}x{block_kv},{schedule}", run))
    return cases[: setting.size(len(cases), 1)]

"""`python -m benchmarks.versions CHECKOUT`: this version of jaxattn against another, in turn.

CHECKOUT is a folder with the other version, such as one made by `git worktree add`. Both are loaded
into this process, checked against float64, and timed in the same rounds; a ratio below 1 says that
this version is faster. What seems to be more than 5 % slower is timed twice again, and the median
of the three counts: most of it is noise.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median
from types import ModuleType
from typing import Any
from unittest import mock

import jax
from tqdm import tqdm

import jaxattn.nn
from benchmarks import contenders, flax_models, machine, run, tables
from benchmarks.observing import ENTROPY, MASKS, PLAIN, SEEN, TOP, checking, inputs, observed
from benchmarks.results import MIB, parser, save, write_report
from benchmarks.sets import SETS
from benchmarks.timing import Budget, build, paired_ratio

BEFORE, AFTER = "before", "after"
SLOWER, RUNS = 1.05, 3


def load_other(checkout: Path) -> ModuleType:
    """jaxattn of another checkout, and its modules, beside those of this one."""
    if not (checkout / "jaxattn" / "__init__.py").is_file():
        sys.exit(f"a checkout holds the folder jaxattn, got {checkout}; see git worktree add")
    # `jax.export` takes each name once, and has taken this version's.
    registers = "register_namedtuple_serialization", "register_pytree_node_serialization"
    nothing: Any = {name: lambda cls, **_: cls for name in registers}
    with (
        mock.patch.dict(sys.modules),
        mock.patch.object(sys, "path", [str(checkout), *sys.path]),
        mock.patch.multiple(jax.export, **nothing),
    ):
        for name in [name for name in sys.modules if name.partition(".")[0] == "jaxattn"]:
            del sys.modules[name]
        importlib.import_module("jaxattn.nn")
        return sys.modules["jaxattn"]


def works(
    name: str, versions: Mapping[str, ModuleType], tokens: Sequence[int], budget: Budget
) -> Iterator[tuple[str, Callable[[], dict[str, run.Record]]]]:
    """Each workload of a set by name, and what measures both versions of it in turn."""
    if name == "observing":
        for t, (mask, causal) in product(tokens, MASKS.items()):
            arrays = inputs(t)
            check = checking(arrays, causal)
            for what in (PLAIN, SEEN, TOP, ENTROPY):
                calls = {who: partial(observed, ja, what, causal) for who, ja in versions.items()}
                pair = {who: (partial(build, f, *arrays), check) for who, f in calls.items()}
                yield f"{what}, {t} tokens, {mask}", partial(run.measure_all, pair, budget)
    elif name == "flax":
        fns = {who: ja.nn.attention_fn() for who, ja in versions.items()}
        for task, pair in flax_models.swapped(fns, BEFORE).items():
            yield task, partial(run.measure_all, pair, budget)
    else:
        pair = [contenders.by_jaxattn(ja, who) for who, ja in versions.items()]
        measure = lambda work: run.measure_workload(work, pair, budget)["contenders"]
        yield from ((work.name, partial(measure, work)) for work in SETS[name])


def settled(measure: Callable[[], dict[str, run.Record]]) -> dict[str, Any]:
    """Ratio and records; of the middle one of several runs where the first seems slower."""
    runs: list[dict[str, Any]] = []
    while not runs or (runs[0]["ratio"] > SLOWER and len(runs) < RUNS):
        jax.clear_caches()  # else what is built again compiles in no time
        records = measure()
        assert all(its["status"] == "timed" for its in records.values()), records
        ratio = paired_ratio(records[AFTER]["samples_s"], records[BEFORE]["samples_s"])
        runs.append({"ratio": ratio, "contenders": records})
    runs.sort(key=lambda its: its["ratio"])
    return {**runs[len(runs) // 2], "ratios": [its["ratio"] for its in runs]}


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name: every workload, and the geometric mean of each set."""
    ms = lambda work, who: f"{1e3 * median(work['contenders'][who]['samples_s']):.2f}"
    both = lambda work, key: [work["contenders"][x].get(key) or math.nan for x in (BEFORE, AFTER)]
    runs = lambda work: ", ".join(f"{x:.3f}" for x in work["ratios"])
    columns: tables.Columns = {
        "workload": lambda w: w["name"],
        "before, ms": lambda w: ms(w, BEFORE),
        "after, ms": lambda w: ms(w, AFTER),
        "ratio": lambda w: f"{w['ratio']:.3f}" + (f" ({runs(w)})" if len(w["ratios"]) > 1 else ""),
        "temporary, MiB": lambda w: " → ".join(f"{x / MIB:.1f}" for x in both(w, "temp_bytes")),
        "compiling, s": lambda w: " → ".join(f"{x:.2f}" for x in both(w, "compile_s")),
    }
    parts = [
        "# This version against the one before",
        machine.about_times(data),
        f"- Before: {data['before']}. A ratio below 1: this version is faster. Of a ratio above "
        f"{SLOWER} the median of {RUNS} runs, which are all there.",
    ]
    for name in dict.fromkeys(work["set"] for work in data["workloads"]):
        its = [work for work in data["workloads"] if work["set"] == name]
        ratios = [work["ratio"] for work in its]
        mean, worst = geometric_mean(ratios), max(ratios)
        found = f"Geometric mean of the ratios {mean:.3f}, the largest {worst:.3f}."
        parts += [f"## {name}", found, tables.table(its, columns, left=1)]
    return {"versions.md": ("\n\n".join(parts) + "\n").encode()}


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.versions", __doc__, seconds=2.0)
    options.add_argument("checkout", type=Path, help="folder with the other version")
    sets = ["default", "options", "observing", "flax"]
    options.add_argument("--set", nargs="+", default=sets, metavar="SET")
    options.add_argument("--tokens", type=int, nargs="+", default=(1024, 2048, 4096), metavar="T")
    options.add_argument("--before", default="", help="what to call the other version")
    chosen = options.parse_args(given)
    given = ["CHECKOUT", *(x for x in given if x != str(chosen.checkout))]
    data: dict[str, Any] = {
        **machine.header("benchmarks.versions", given),
        "before": chosen.before or chosen.checkout.name,
        "workloads": [],
    }
    versions = {BEFORE: load_other(chosen.checkout.resolve()), AFTER: jaxattn}
    assert versions[BEFORE] is not jaxattn
    for name in chosen.set:
        found = works(name, versions, chosen.tokens, Budget(chosen.seconds))
        for work, measure in tqdm(found, desc=name, unit="workload"):
            data["workloads"].append({"set": name, "name": work, **settled(measure)})
        save(data, chosen.out / "versions.json")
        write_report(data, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

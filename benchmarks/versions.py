"""`python -m benchmarks.versions CHECKOUT`: this version of jaxattn against another, in turn.

CHECKOUT is a folder with the other version, such as one made by `git worktree add`. Both are loaded
into this process, checked against float64, and timed in the same rounds; a ratio below 1 says that
this version is faster. What seems to be more than 5 % slower is timed twice again, and the median
of the three counts: most of it is noise.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from types import ModuleType
from typing import Any

import jax
import jax.export
from tqdm import tqdm

import jaxattn
from benchmarks import calls, header, machine, observing, run
from benchmarks.built import Built
from benchmarks.contenders import JaxContender
from benchmarks.results import FOLDER, paired_ratio, save_report
from benchmarks.sets import SETS
from benchmarks.timing import Budget, measure
from benchmarks.workloads import Workload

BEFORE, AFTER = "before", "after"
SLOWER, RUNS = 1.05, 3
Row = dict[str, Any]


def load_other(checkout: Path) -> dict[str, ModuleType]:
    """The modules of another checkout's jaxattn by name, beside those of this one."""
    if not (checkout / "jaxattn" / "__init__.py").is_file():
        sys.exit(f"a checkout holds the folder jaxattn, got {checkout}; see git worktree add")
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_jaxattn(name)}
    sys.path.insert(0, str(checkout))
    try:
        with _registering_nothing():
            importlib.import_module("jaxattn.compat")
        return {name: module for name, module in sys.modules.items() if _is_jaxattn(name)}
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if _is_jaxattn(name)]:
            del sys.modules[name]
        sys.modules.update(ours)


@contextmanager
def _registering_nothing() -> Iterator[None]:
    """`jax.export` takes each name once, and has taken this version's."""
    names = "register_namedtuple_serialization", "register_pytree_node_serialization"
    saved = {name: getattr(jax.export, name) for name in names}
    try:
        for name in names:
            setattr(jax.export, name, lambda cls, **_: cls)
        yield
    finally:
        for name, register in saved.items():
            setattr(jax.export, name, register)


def _is_jaxattn(name: str) -> bool:
    return name.partition(".")[0] == "jaxattn"


def with_jaxattn(module: ModuleType, other: Mapping[str, ModuleType]) -> ModuleType:
    """A module of the benchmarks again, with another version of jaxattn in it."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_jaxattn(name)}
    sys.modules.update(other)
    try:
        name = f"{module.__name__}_{BEFORE}"
        spec = importlib.util.spec_from_file_location(name, str(module.__file__))
        assert spec is not None
        assert spec.loader is not None
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
        return again
    finally:
        for name in other:
            sys.modules.pop(name, None)
        sys.modules.update(ours)


def rows_of_set(name: str, other: Mapping[str, ModuleType], seconds: float, say: Any) -> list[Row]:
    """Every workload of a set, both versions in turn."""
    before = with_jaxattn(calls, other)
    pair = tuple(
        JaxContender(who, module.jaxattn, kept=module.jaxattn_kept)
        for who, module in ((BEFORE, before), (AFTER, calls))
    )
    found = []
    for work in tqdm(SETS[name], desc=name, unit="workload"):

        def once(work: Workload = work) -> Row:
            record = run.measure_workload(work, pair, run.budget(seconds), say)["contenders"]
            wrong = {who: its for who, its in record.items() if its["status"] != "timed"}
            if wrong:
                raise AssertionError(f"{work.name}: {wrong}")
            samples = {who: its["samples_s"] for who, its in record.items()}
            compiles = {who: its["compile_s"] for who, its in record.items()}
            memory = {who: its["temp_bytes"] for who, its in record.items()}
            return _row(name, work.name, samples, compiles, memory)

        found.append(_settled(once))
    return found


def rows_of_observing(
    other: Mapping[str, ModuleType], tokens: Sequence[int], seconds: float
) -> list[Row]:
    """What is measured of observing, both versions in turn."""
    versions = {BEFORE: with_jaxattn(observing, other), AFTER: observing}
    found = []
    for t, causal in tqdm([(t, c) for t in tokens for c in (False, True)], desc="observing"):
        arrays, head = observing.inputs(t), 5
        want = observing.truth(arrays, causal, head)
        for what in (observing.PLAIN, observing.SEEN, observing.TOP, observing.ENTROPY):
            built: dict[str, Built] = {}
            for who, module in versions.items():
                function = partial(module.jaxattn, module.OURS[what], causal)
                built[who] = observing.build(function, *arrays)
                got = built[who].run()
                built[who].wait(got)
                off = observing.errors(got, want, head)
                if not all(value <= observing.LIMITS[key] for key, value in off.items()):
                    raise AssertionError(f"{who}, {what} at {t} tokens: off by {off}")
            name = f"{what}, {t} tokens, {'causal' if causal else 'full'}"

            def once(name: str = name, built: dict[str, Built] = built) -> Row:
                times = measure(built, Budget(seconds))
                samples = {who: list(its.seconds) for who, its in times.items()}
                compiles = {who: its.compile_seconds for who, its in built.items()}
                memory = {who: its.temp_bytes() for who, its in built.items()}
                return _row("observing", name, samples, compiles, memory)

            found.append(_settled(once))
    return found


def _settled(once: Callable[[], Row]) -> Row:
    """A row; the one in the middle of several where the first seems slower."""
    first = once()
    if first["ratio"] <= SLOWER:
        return first | {"ratios": [first["ratio"]]}
    rows = sorted((first, *(once() for _ in range(RUNS - 1))), key=lambda row: row["ratio"])
    return rows[RUNS // 2] | {"ratios": [row["ratio"] for row in rows]}


def _row(where: str, name: str, samples: Any, compiles: Any, memory: Any) -> Row:
    return {
        "set": where,
        "name": name,
        "seconds": samples,
        "compile_seconds": compiles,
        "temp_bytes": memory,
        "ratio": paired_ratio(samples[AFTER], samples[BEFORE]),
    }


def markdown(data: Mapping[str, Any]) -> str:
    """Every workload, and the geometric mean of each set."""
    lines = ["# This version against the one before", "", header.of_times(data), ""]
    lines += [
        f"- Before: {data['before']}. A ratio below 1: this version is faster. Of a ratio above "
        f"{SLOWER} the median of {RUNS} runs, which are all there.",
        "",
    ]
    for name in dict.fromkeys(row["set"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["set"] == name]
        mean = geometric_mean(row["ratio"] for row in rows)
        worst = max(row["ratio"] for row in rows)
        lines += [
            f"## {name}",
            "",
            f"Geometric mean of the ratios {mean:.3f}, the largest {worst:.3f}.",
            "",
            "| workload | before, ms | after, ms | ratio | temporary, MiB | compiling, s |",
            "|:--|--:|--:|--:|--:|--:|",
        ]
        lines += [_line(row) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row) -> str:
    before, after = (1e3 * median(row["seconds"][who]) for who in (BEFORE, AFTER))
    memory = [(row["temp_bytes"][who] or math.nan) / 2**20 for who in (BEFORE, AFTER)]
    compiling = [row["compile_seconds"][who] for who in (BEFORE, AFTER)]
    runs = f" ({', '.join(f'{x:.3f}' for x in row['ratios'])})" if len(row["ratios"]) > 1 else ""
    return (
        f"| {row['name']} | {before:.2f} | {after:.2f} | {row['ratio']:.3f}{runs} | "
        f"{memory[0]:.1f} → {memory[1]:.1f} | {compiling[0]:.2f} → {compiling[1]:.2f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("checkout", type=Path, help="folder with the other version")
    parser.add_argument(
        "--set", nargs="+", default=["default", "options", "observing"], metavar="SET"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=(1024, 2048, 4096), metavar="T")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a workload")
    parser.add_argument("--before", default="", help="what to call the other version")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--name", default="versions", help="file name stem")
    chosen = parser.parse_args(given)
    given = [x for x in given if x != str(chosen.checkout)]
    data: dict[str, Any] = {
        **header.of_results("benchmarks.versions", ["CHECKOUT", *given]),
        "load_before": machine.load_average(),
        "before": chosen.before or chosen.checkout.name,
        "rows": [],
    }
    other = load_other(chosen.checkout.resolve())
    assert other["jaxattn"] is not jaxattn
    jax.config.update("jax_enable_compilation_cache", False)
    for name in chosen.set:
        if name == "observing":
            data["rows"] += rows_of_observing(other, chosen.tokens, chosen.seconds)
        else:
            data["rows"] += rows_of_set(name, other, chosen.seconds, lambda phase: None)
        save_report(data, markdown, chosen.out, chosen.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

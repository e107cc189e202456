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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from types import ModuleType
from typing import Any

import jax.export
from tqdm import tqdm

import jaxattn.nn
from benchmarks import contenders, flax_models, machine, observing, run, tables
from benchmarks import observing_report as named
from benchmarks.results import Results, parser, save, write_report
from benchmarks.sets import SETS
from benchmarks.timing import Budget, build, paired_ratio

BEFORE, AFTER = "before", "after"
SLOWER, RUNS = 1.05, 3
Versions = Mapping[str, ModuleType]
"""jaxattn, before and after."""


def load_other(checkout: Path) -> ModuleType:
    """jaxattn of another checkout, and its modules, beside those of this one."""
    if not (checkout / "jaxattn" / "__init__.py").is_file():
        sys.exit(f"a checkout holds the folder jaxattn, got {checkout}; see git worktree add")
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_jaxattn(name)}
    sys.path.insert(0, str(checkout))
    try:
        with _registering_nothing():
            importlib.import_module("jaxattn.nn")
        return sys.modules["jaxattn"]
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


def of_set(name: str, versions: Versions, seconds: float) -> Iterator[dict[str, Any]]:
    """Every workload of a set, both versions in turn."""
    pair = [contenders.by_jaxattn(module, who) for who, module in versions.items()]
    for work in tqdm(SETS[name], desc=name, unit="workload"):
        once = lambda work=work: run.measure_workload(work, pair, Budget(seconds))
        yield _settled(name, work.name, lambda once=once: once()["contenders"])


def of_observing(
    versions: Versions, tokens: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """What is measured of observing, both versions in turn."""
    for t, causal in tqdm([(t, c) for t in tokens for c in (False, True)], desc="observing"):
        arrays = observing.inputs(t)
        check = observing.checking(observing.truth(arrays, causal, observing.CHECKED))
        for what in (named.PLAIN, named.SEEN, named.TOP, named.ENTROPY):
            built = {
                who: (partial(build, partial(observing.observed, ja, what, causal), *arrays), check)
                for who, ja in versions.items()
            }
            name = f"{what}, {t} tokens, {'causal' if causal else 'full'}"
            once = partial(run.measure_all, built, Budget(seconds))
            yield _settled("observing", name, once)


def of_flax(versions: Versions, seconds: float) -> Iterator[dict[str, Any]]:
    """Each task of a Flax model, both versions in turn."""
    fns = {who: ja.nn.attention_fn() for who, ja in versions.items()}
    sizes = flax_models.LAYERS, flax_models.TOKENS
    for task, pair in tqdm(flax_models.swapped(fns, BEFORE, *sizes).items(), desc="flax"):
        built = {who: (lambda b=built: b, check) for who, (built, check) in pair.items()}
        once = partial(run.measure_all, built, Budget(seconds, fewest=5))
        yield _settled("flax", task, once)


def _settled(where: str, name: str, once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A workload of the results; the middle one of several where the first seems slower."""
    runs = [_measured(where, name, once())]
    if runs[0]["ratio"] > SLOWER:
        runs += [_measured(where, name, once()) for _ in range(RUNS - 1)]
        runs.sort(key=lambda work: work["ratio"])
    return runs[len(runs) // 2] | {"ratios": [work["ratio"] for work in runs]}


def _measured(where: str, name: str, records: dict[str, Any]) -> dict[str, Any]:
    if wrong := {who: its for who, its in records.items() if its["status"] != "timed"}:
        raise AssertionError(f"{name}: {wrong}")
    ratio = paired_ratio(*(records[who]["samples_s"] for who in (AFTER, BEFORE)))
    return {"set": where, "name": name, "ratio": ratio, "contenders": records}


def report(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of the report by name: every workload, and the geometric mean of each set."""
    lines = ["# This version against the one before", "", machine.about_times(data), ""]
    lines += [
        f"- Before: {data['before']}. A ratio below 1: this version is faster. Of a ratio above "
        f"{SLOWER} the median of {RUNS} runs, which are all there.",
        "",
    ]
    both = lambda work, key: [work["contenders"][x].get(key) or math.nan for x in (BEFORE, AFTER)]
    ms = lambda work, who: f"{1e3 * median(work['contenders'][who]['samples_s']):.2f}"
    columns: tables.Columns = {
        "workload": lambda work: work["name"],
        "before, ms": lambda work: ms(work, BEFORE),
        "after, ms": lambda work: ms(work, AFTER),
        "ratio": _ratios,
        "temporary, MiB": lambda w: " → ".join(f"{x / 2**20:.1f}" for x in both(w, "temp_bytes")),
        "compiling, s": lambda w: " → ".join(f"{x:.2f}" for x in both(w, "compile_s")),
    }
    works = Results(data).works
    for name in dict.fromkeys(work["set"] for work in works):
        its = [work for work in works if work["set"] == name]
        mean = geometric_mean(work["ratio"] for work in its)
        worst = max(work["ratio"] for work in its)
        found = f"Geometric mean of the ratios {mean:.3f}, the largest {worst:.3f}."
        lines += [f"## {name}", "", found, "", tables.table(its, columns, left=1), ""]
    return {"versions.md": "\n".join(lines).encode()}


def _ratios(work: Mapping[str, Any]) -> str:
    runs = [f"{x:.3f}" for x in work["ratios"]]
    return f"{work['ratio']:.3f}" + (f" ({', '.join(runs)})" if len(runs) > 1 else "")


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser("benchmarks.versions", __doc__, seconds=2.0)
    options.add_argument("checkout", type=Path, help="folder with the other version")
    sets = ["default", "options", "observing", "flax"]
    options.add_argument("--set", nargs="+", default=sets, metavar="SET")
    options.add_argument("--tokens", type=int, nargs="+", default=(1024, 2048, 4096), metavar="T")
    options.add_argument("--before", default="", help="what to call the other version")
    chosen = options.parse_args(given)
    given = [x for x in given if x != str(chosen.checkout)]
    data: dict[str, Any] = {
        **machine.header("benchmarks.versions", ["CHECKOUT", *given]),
        "before": chosen.before or chosen.checkout.name,
        "workloads": [],
    }
    versions = {BEFORE: load_other(chosen.checkout.resolve()), AFTER: jaxattn}
    assert versions[BEFORE] is not jaxattn
    for name in chosen.set:
        found = of_set(name, versions, chosen.seconds)
        if name == "observing":
            found = of_observing(versions, chosen.tokens, chosen.seconds)
        if name == "flax":
            found = of_flax(versions, chosen.seconds)
        data["workloads"] += found
        save(data, chosen.out / "versions.json")
        write_report(data, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

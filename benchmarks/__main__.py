"""`python -m benchmarks`: measures attention on whatever device is here and writes a report."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# torch is measured in this process too: leave it room on a GPU. Must be set before JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from tqdm import tqdm

from benchmarks import header, machine, plots, report, run
from benchmarks.contenders import contenders
from benchmarks.results import FOLDER, Results, load, save, write_atomically
from benchmarks.sets import SETS
from benchmarks.workloads import Workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 130 if it was interrupted (what was measured is kept)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    if options.report is not None:
        results = load(options.report)
        _write_report(results, options.report.parent)
        return 0
    works = _chosen(options.set or _default_set(), options.only)
    name = options.name or machine.slug()
    path: Path = options.out / f"{name}.json"
    kept: dict[str, Any] = {}
    status = 0
    with tqdm(total=len(works), unit="workload", dynamic_ncols=True) as bar:
        bar.set_description(works[0].name)

        def keep(results: dict[str, Any]) -> None:
            kept.update(results)
            save(results, path)
            bar.update()
            if bar.n < len(works):
                bar.set_description(works[int(bar.n)].name)

        try:
            run.run(
                works,
                contenders(works),
                run.budget(options.seconds),
                name=name,
                header=header.of_results("benchmarks", given),
                matrix=options.matrix,
                save=keep,
                say=lambda phase: bar.set_postfix_str(phase, refresh=sys.stderr.isatty()),
            )
        except KeyboardInterrupt:
            status = 130
    if kept:
        _write_report(kept, options.out)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--set", choices=tuple(SETS), help="workloads to run (default: by device, default or gpu)"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="run only workloads whose name contains TEXT; may be given again",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=FOLDER,
        metavar="DIR",
        help="where to write NAME.json, NAME.md and the plots (default: benchmarks/results)",
    )
    parser.add_argument("--name", help="file name stem (default: by device)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="time to spend on the rounds of a workload, at least five of them (default: 3)",
    )
    parser.add_argument(
        "--matrix",
        type=int,
        metavar="N",
        help="rows of the square matrices of the peak measurement (default: by device)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="measure nothing: make the report of this results file again, beside it",
    )
    return parser


def _default_set() -> str:
    return "default" if jax.default_backend() == "cpu" else "gpu"


def _chosen(name: str, only: Sequence[str] | None) -> list[Workload]:
    works = [w for w in SETS[name] if not only or any(text in w.name for text in only)]
    if not works:
        names = ", ".join(w.name for w in SETS[name])
        sys.exit(f"no workload of the set {name} has {only} in its name; it has: {names}")
    return works


def _write_report(data: dict[str, Any], folder: Path) -> None:
    results = Results(data)
    drawn = plots.plots(results)
    for key, plot in drawn.items():
        for kind in ("png", "svg"):
            content = plots.render(plot, kind)
            write_atomically(folder / f"{data['name']}-{key}.{kind}", content)
    text = report.markdown(results, tuple(drawn))
    write_atomically(folder / f"{data['name']}.md", text.encode())


if __name__ == "__main__":
    sys.exit(main())

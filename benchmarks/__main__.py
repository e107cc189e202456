"""`python -m benchmarks`: measures attention on whatever device is here and writes a report."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# torch is measured in this process too: leave it room on a GPU. Must be set before JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from tqdm import tqdm

from benchmarks import machine, run
from benchmarks.contenders import contenders
from benchmarks.results import load, parser, save, write_report
from benchmarks.sets import SETS
from benchmarks.workloads import Workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 130 if it was interrupted (what was measured is kept)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    if options.report is not None:
        write_report(load(options.report), options.report.parent)
        return 0
    works = _chosen(options.set or _default_set(), options.only)
    name = options.name or machine.slug()
    about = {"format": 1, "name": name, **machine.header("benchmarks", given)}
    data: dict[str, Any] = {}
    status = 0
    measured = run.run(works, contenders(works), run.budget(options.seconds), options.matrix)
    bar = tqdm(measured, total=len(works), unit="workload", dynamic_ncols=True)
    try:
        for found in bar:
            data = about | found
            save(data, options.out / f"{name}.json")
            bar.set_description(f"last {found['workloads'][-1]['name']}")
    except KeyboardInterrupt:
        status = 130
    if data:
        write_report(data, options.out)
    return status


def _parser() -> Any:
    found = parser("benchmarks", __doc__, seconds=3.0)
    found.add_argument(
        "--set", choices=tuple(SETS), help="workloads to run (default: by device, default or gpu)"
    )
    found.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="run only workloads whose name contains TEXT; may be given again",
    )
    found.add_argument("--name", help="file name stem (default: by device)")
    found.add_argument(
        "--matrix",
        type=int,
        metavar="N",
        help="rows of the square matrices of the peak measurement (default: by device)",
    )
    found.add_argument(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="measure nothing: make the report of this results file again, beside it",
    )
    return found


def _default_set() -> str:
    return "default" if jax.default_backend() == "cpu" else "gpu"


def _chosen(name: str, only: Sequence[str] | None) -> list[Workload]:
    works = [w for w in SETS[name] if not only or any(text in w.name for text in only)]
    if not works:
        names = ", ".join(w.name for w in SETS[name])
        sys.exit(f"no workload of the set {name} has {only} in its name; it has: {names}")
    return works


if __name__ == "__main__":
    sys.exit(main())

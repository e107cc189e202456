"""`python -m benchmarks`: measures attention on whatever device is here and writes a report."""

import json
import os
import re
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
from benchmarks.results import parser, save, write_report
from benchmarks.sets import SETS
from benchmarks.timing import Budget


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 130 if it was interrupted (what was measured is kept)."""
    usual = "default" if jax.default_backend() == "cpu" else "gpu"
    options = parser("benchmarks", __doc__, seconds=3.0)
    options.add_argument("--set", choices=SETS, default=usual, help=f"default here: {usual}")
    text = "run only workloads whose name contains it"
    options.add_argument("--only", default="", metavar="TEXT", help=text)
    options.add_argument("--name", help="file name stem (default: by device)")
    text = "measure nothing: make the report of this results file again, beside it"
    options.add_argument("--report", type=Path, metavar="FILE.json", help=text)
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = options.parse_args(given)
    if chosen.report is not None:
        write_report(json.loads(chosen.report.read_text()), chosen.report.parent)
        return 0
    works = [w for w in SETS[chosen.set] if chosen.only in w.name]
    if not works:
        names = ", ".join(w.name for w in SETS[chosen.set])
        sys.exit(f"no workload of the set {chosen.set} has {chosen.only} in its name: {names}")
    about = machine.header("benchmarks", given)
    its = about["machine"]
    device = f"{its['platform']} {its['accelerator'] or its['cpu']}"
    name = chosen.name or re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    data: dict[str, Any] = {}
    measured = run.run(works, contenders(works), Budget(chosen.seconds))
    try:
        for found in tqdm(measured, total=len(works), unit="workload", dynamic_ncols=True):
            data = {"name": name, **about, **found}
            save(data, chosen.out / f"{name}.json")
        return 0
    except KeyboardInterrupt:
        return 130
    finally:
        if data:
            write_report(data, chosen.out)


if __name__ == "__main__":
    sys.exit(main())

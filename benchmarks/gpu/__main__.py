"""`benchmarks/gpu.sh`: measures jaxattn on an NVIDIA GPU, in under seven minutes."""

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import parent, report
from benchmarks.gpu.parent import Stage
from benchmarks.gpu.table import table

ROOT = Path(__file__).parent.parent
HERE = "benchmarks.gpu"
STAGES = (  # what matters most first
    Stage("facts", f"{HERE}.facts:facts", 60),
    Stage("right", f"{HERE}.right:right", 110, lanes=6),
    Stage("plain", f"{HERE}.times:plain", 110, lanes=4),
    Stage("options", f"{HERE}.times:options", 110, lanes=4),
    Stage("peers", f"{HERE}.peers:peers", 130, lanes=2),
    Stage("sweep", f"{HERE}.times:sweep", 90, lanes=6),
)


def main(arguments: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Returns 0 if every case has a result, else 1."""
    options = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    where = "folder of the results (default: benchmarks/results; of a dry run build/gpu)"
    options.add_argument("out", type=Path, nargs="?", help=where)
    text = "on a CPU, at tiny sizes, to see that everything runs; never a result"
    options.add_argument("--dry", action="store_true", help=text)
    names = [stage.name for stage in stages]
    options.add_argument("--only", action="append", choices=names, help="a stage; may be repeated")
    text = f"after which no stage begins (default: {parent.BUDGET:g})"
    options.add_argument("--seconds", type=float, default=parent.BUDGET, help=text)
    options.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="of the inputs")
    chosen = options.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu" if chosen.dry else "cuda"
    folder = chosen.out or (ROOT.parent / "build/gpu" if chosen.dry else ROOT / "results")
    card, exclusive = _card()
    data: dict[str, Any] = {
        "name": "gpu-dry" if chosen.dry else f"gpu-{card}",
        "command": f"python -m {HERE}",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "dry": chosen.dry,
        "seed": chosen.seed,
        "records": [],
    }
    path, lock, begin = folder / f"{data['name']}.json", threading.Lock(), time.monotonic()
    print(f"seed {chosen.seed}", flush=True)

    def tell(record: dict[str, Any]) -> None:
        with lock:
            data["records"].append(record)
            parent.save(data, path)
            said = record.get("status") or f"{record['state']}, {record['seconds']} s"
            at = time.monotonic() - begin
            print(f"{at:5.0f} s {record['stage']} {record.get('case', '')}: {said}", flush=True)

    wanted = [x for x in stages if not chosen.only or x.name in chosen.only]
    if exclusive:
        wanted = [replace(x, lanes=1) for x in wanted]
    parent.run(wanted, chosen.dry, chosen.seed, tell, chosen.seconds)
    for name, content in report(data).items():
        (folder / name).write_bytes(content)
    print(f"\n{table(data)}")
    return int(any(x.get("status") in ("failed", "ended") for x in data["records"]))


def _card() -> tuple[str, bool]:
    """Its name, as a part of a file's, and whether it takes only one process at a time."""
    command = ["nvidia-smi", "--query-gpu=name,compute_mode", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except OSError:
        said = ""
    name, _, mode = said.partition("\n")[0].partition(", ")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown", "Exclusive" in mode


if __name__ == "__main__":
    sys.exit(main())

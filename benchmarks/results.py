"""Results files, and what follows from one: medians, ratios, shares."""

import importlib
import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.options import TITLES
from benchmarks.timing import paired_ratio

FOLDER = Path(__file__).parent / "results"
"""Where results go if nothing else is said."""

MIB = 2**20


def parser(program: str, doc: str | None, seconds: float | None = None) -> ArgumentParser:
    """Of the command lines that write results; seconds: what is spent if nothing else is said."""
    found = ArgumentParser(prog=f"python -m {program}", description=doc)
    where = "where to write the results, the report and the plots (default: benchmarks/results)"
    found.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help=where)
    if seconds is not None:
        what = f"time to spend on the rounds of a workload (default: {seconds:g})"
        found.add_argument("--seconds", type=float, default=seconds, help=what)
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """The file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def save(data: Mapping[str, Any], path: Path) -> None:
    """Writes the results as JSON, a workload or row to a line, so that two files compare."""
    lines = []
    for key, value in data.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        lines.append(f'"{key}": {text}')
    write_atomically(path, ("{" + ",\n".join(lines) + "}\n").encode())


def write_report(data: Mapping[str, Any], folder: Path) -> None:
    """Writes what the program that measured the data makes of it, by its function `report`."""
    program = data["command"].split()[2]  # of python -m program
    module = importlib.import_module(f"benchmarks.{program.partition('.')[2] or 'report'}")
    files: Mapping[str, bytes] = module.report(data)
    for name, content in files.items():
        write_atomically(folder / name, content)


def option_of(work: Mapping[str, Any]) -> str:
    """The option of a workload, or its documents, in words; empty for neither."""
    mask = work["mask"] if work["mask"].startswith("segments") else ""
    option = work.get("option") or mask
    return TITLES.get(option, option)


class Results:
    """What follows from a results file; None wherever something was not measured."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.works: Sequence[Mapping[str, Any]] = data["workloads"]
        self.contenders = list(dict.fromkeys(c for work in self.works for c in work["contenders"]))
        self._by_name = {work["name"]: work for work in self.works}

    def record(self, work: str, contender: str) -> Mapping[str, Any]:
        """A contender's record; empty if there is none."""
        return self._by_name.get(work, {"contenders": {}})["contenders"].get(contender, {})

    def samples(self, work: str, contender: str) -> Sequence[float]:
        """Seconds per call by round; empty if it was not timed."""
        return self.record(work, contender).get("samples_s", ())

    def seconds(self, work: str, contender: str) -> float | None:
        """The median."""
        samples = self.samples(work, contender)
        return median(samples) if samples else None

    def ratio(self, work: str, contender: str, other: str) -> float | None:
        """Time over another's time: the median of the rounds' ratios."""
        ours, theirs = self.samples(work, contender), self.samples(work, other)
        return paired_ratio(ours, theirs) if ours and theirs else None

    def temp_bytes(self, work: str, contender: str) -> int | None:
        return self.record(work, contender).get("temp_bytes")

    def compile_seconds(self, work: str, contender: str) -> float | None:
        return self.record(work, contender).get("compile_s")

    def gflops(self, work: str, contender: str) -> float | None:
        """GFLOP/s"""
        seconds = self.seconds(work, contender)
        return self._by_name[work]["flops"] / seconds / 1e9 if seconds else None

    def peak(self, dtype: str) -> float:
        """GFLOP/s of the faster matrix product of this run."""
        facts = self.data["peaks"][dtype]
        return 2 * facts["size"] ** 3 / min(map(median, facts["samples_s"].values())) / 1e9

    def share(self, work: str, contender: str) -> float | None:
        """GFLOP/s as a share of the matrix product's."""
        gflops = self.gflops(work, contender)
        return gflops / self.peak(self._by_name[work]["dtype"]) if gflops else None

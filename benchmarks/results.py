"""Reading and writing a results file, and what follows from one: medians, ratios, shares."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peak import peak_gflops
from benchmarks.timing import interquartile, paired_ratio

FOLDER = Path(__file__).parent / "results"
"""Where results go if nothing else is said."""


def write_atomically(path: Path, content: bytes) -> None:
    """The file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results as JSON, a contender's record to a line, so that two files compare."""
    top = {k: v for k, v in results.items() if k != "workloads"}
    lines = [f'"{k}": {json.dumps(v)}' for k, v in top.items()]
    works = []
    for work in results["workloads"]:
        facts = ", ".join(f'"{k}": {json.dumps(v)}' for k, v in work.items() if k != "contenders")
        records = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps(record)}"
            for name, record in work["contenders"].items()
        )
        works.append(f'  {{{facts}, "contenders": {{\n{records}}}}}')
    lines.append('"workloads": [\n' + ",\n".join(works) + "\n]")
    write_atomically(path, ("{" + ",\n".join(lines) + "}\n").encode())


def save_report(data: Any, markdown: Callable[[Any], str], folder: Path, name: str) -> None:
    """Writes the data as NAME.json, then what `markdown` makes of it as NAME.md."""
    write_atomically(folder / f"{name}.json", (json.dumps(data, indent=1) + "\n").encode())
    write_atomically(folder / f"{name}.md", markdown(data).encode())


def load(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file of another format."""
    results = json.loads(path.read_text())
    if results.get("format") != 1:
        raise ValueError(f"{path} is not a results file of format 1")
    return results


@dataclass(frozen=True)
class Results:
    """What follows from a results file; None wherever something was not measured."""

    data: Mapping[str, Any]

    @property
    def works(self) -> Sequence[Mapping[str, Any]]:
        return self.data["workloads"]

    @property
    def contenders(self) -> Sequence[str]:
        return self.data["contenders"]

    def work(self, name: str) -> Mapping[str, Any] | None:
        return next((w for w in self.works if w["name"] == name), None)

    def record(self, work: str, contender: str) -> Mapping[str, Any]:
        """A contender's record; empty if there is none."""
        found = self.work(work)
        return {} if found is None else found["contenders"].get(contender, {})

    def samples(self, work: str, contender: str) -> Sequence[float]:
        """Seconds per call by round; empty if it was not timed."""
        return self.record(work, contender).get("samples_s", ())

    def seconds(self, work: str, contender: str) -> float | None:
        """The median."""
        samples = self.samples(work, contender)
        return median(samples) if samples else None

    def spread(self, work: str, contender: str) -> float | None:
        """The interquartile range, relative to the median."""
        samples = self.samples(work, contender)
        return interquartile(samples) / median(samples) if samples else None

    def ratio(self, work: str, contender: str, other: str) -> float | None:
        """Time over another's time: the median of the rounds' ratios."""
        ours, theirs = self.samples(work, contender), self.samples(work, other)
        return paired_ratio(ours, theirs) if ours and theirs else None

    def ratio_of_medians(self, work: str, contender: str, other: str) -> float | None:
        ours, theirs = self.seconds(work, contender), self.seconds(work, other)
        return ours / theirs if ours and theirs else None

    def temp_bytes(self, work: str, contender: str) -> int | None:
        return self.record(work, contender).get("temp_bytes")

    def compile_seconds(self, work: str, contender: str) -> float | None:
        return self.record(work, contender).get("compile_s")

    def peak(self, dtype: str) -> float | None:
        """GFLOP/s of the faster matrix product of this run."""
        facts = self.data["peaks"].get(dtype)
        return None if facts is None else peak_gflops(facts["samples_s"], facts["size"])

    def gflops(self, work: str, contender: str) -> float | None:
        seconds, found = self.seconds(work, contender), self.work(work)
        return found["flops"] / seconds / 1e9 if found and seconds else None

    def share(self, work: str, contender: str) -> float | None:
        """GFLOP/s as a share of the matrix product's."""
        found = self.work(work)
        peak = None if found is None else self.peak(found["dtype"])
        gflops = self.gflops(work, contender)
        return gflops / peak if gflops and peak else None

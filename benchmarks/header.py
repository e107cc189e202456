"""How a results file and its report begin: what was run, when, where and with what."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks import machine


def of_results(program: str, given: Sequence[str]) -> dict[str, Any]:
    """`given` are the arguments of `python -m program`."""
    return {
        "command": shlex.join(["python", "-m", program, *given]),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine.facts(),
        "versions": machine.versions(),
    }


def of_report(
    data: Mapping[str, Any], where: str, *more: str, packages: Sequence[str] | None = None
) -> str:
    """Markdown: the machine, the software (all, or these packages), `more`, and the run."""
    versions = data["versions"]
    software = ", ".join(f"{k} {versions[k]}" for k in packages or versions if versions[k])
    run = f"Measured {data['date']} by `{data['command']}`"
    return "\n".join(f"- {x}" for x in (f"Machine: {where}", f"Software: {software}", *more, run))


def of_times(data: Mapping[str, Any]) -> str:
    """`of_report` where `data` holds times: cores and load matter."""
    facts = data["machine"]
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}"
    return of_report(data, f"{where}; load before {data['load_before']}")

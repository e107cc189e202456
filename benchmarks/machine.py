"""What the numbers were measured on: how a results file and its report begin."""

import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jaxattn", "jax", "jaxlib", "flax", "torch", "numpy")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def header(program: str, given: Sequence[str]) -> dict[str, Any]:
    """What was run, when and where. `given` are the arguments of `python -m program`."""
    import psutil  # which a bare machine lacks, as in what follows

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "command": shlex.join(["python", "-m", program, *given]),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": facts(),
        "load_before": round(psutil.getloadavg()[0], 2),
        "versions": versions,
    }


def about(data: Mapping[str, Any], where: str, *more: str, packages: Sequence[str] = ()) -> str:
    """Markdown: the machine, the software (all, or these packages), `more`, and the run."""
    versions = data["versions"]
    software = ", ".join(f"{k} {versions[k]}" for k in packages or versions if versions[k])
    run = f"Measured {data['date']} by `{data['command']}`"
    return "\n".join(f"- {x}" for x in (f"Machine: {where}", f"Software: {software}", *more, run))


def about_times(data: Mapping[str, Any]) -> str:
    """`about` where `data` holds times: cores and load matter."""
    its = data["machine"]
    where = f"{its['cpu']}, {its['cores']} cores, {its['platform']}"
    return about(data, f"{where}; load before {data['load_before']}")


def facts() -> dict[str, Any]:
    """The machine, as a results file records it."""
    import psutil

    device, flags = jax.devices()[0], _cpuinfo("(?:flags|Features)").split()
    return {
        "platform": device.platform,
        "accelerator": None if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_instructions": [x for x in INSTRUCTIONS if x in flags],
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def available_bytes() -> int:
    """Memory free for new arrays on the device now, within a container's limit."""
    device = jax.devices()[0]
    if device.platform != "cpu" and (stats := device.memory_stats()):
        return stats["bytes_limit"] - stats["bytes_in_use"]
    import psutil

    free = [psutil.virtual_memory().available]
    limit, used = (_read(f"/sys/fs/cgroup/memory.{x}").strip() for x in ("max", "current"))
    if limit.isdigit():
        free.append(max(0, int(limit) - int(used)))
    return min(free)


def _cpuinfo(key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""

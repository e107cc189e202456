"""What the numbers were measured on: how a results file and its report begin."""

import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def header(program: str, given: Sequence[str]) -> dict[str, Any]:
    """What was run, when and where. `given` are the arguments of `python -m program`."""
    packages = ("jaxattn", "jax", "jaxlib", "flax", "torch", "numpy")
    return {
        "command": shlex.join(["python", "-m", program, *given]),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": facts(),
        "load_before": load_average(),
        "versions": {"python": platform.python_version()} | {x: _version(x) for x in packages},
    }


def about(
    data: Mapping[str, Any], where: str, *more: str, packages: Sequence[str] | None = None
) -> str:
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
    device, flags = jax.devices()[0], _cpuinfo("(?:flags|Features)").split()
    return {
        "platform": device.platform,
        "accelerator": None if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cpu": cpu_model(),
        "cpu_instructions": [x for x in _INSTRUCTIONS if x in flags],
        "cores": cores(),
        "memory_bytes": _total_bytes(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def _version(package: str) -> str | None:
    """None for what is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def load_average() -> float | None:
    """Runnable processes over the last minute, where the system says."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def available_bytes() -> int:
    """Memory free for new arrays on the device now."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    free = [_meminfo("MemAvailable"), _cgroup_free()]
    return min((x for x in free if x is not None), default=_total_bytes() // 2)


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def slug() -> str:
    """A file name stem for this machine, such as cpu-amd-epyc."""
    device = jax.devices()[0]
    what = cpu_model() if device.platform == "cpu" else device.device_kind
    return f"{device.platform}-{re.sub(r'[^a-z0-9]+', '-', what.lower()).strip('-')}"


def _total_bytes() -> int:
    return _meminfo("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo(key: str) -> int | None:
    found = re.search(rf"^{key}:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _cgroup_free() -> int | None:
    """What a container's limit leaves; None without one."""
    limit, used = (_read(f"/sys/fs/cgroup/memory.{x}").strip() for x in ("max", "current"))
    return max(0, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""

"""The first stage: the card, the versions, and whether the kernels run at all."""

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

import jaxattn as ja
from benchmarks.gpu.child import Case, Setting
from benchmarks.gpu.programs import Call, product, timed, work
from benchmarks.options import CAUSAL

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "numpy", "torch", "triton")
PACKAGES += ("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-nvcc")
CARD = "name,driver_version,memory.total,power.limit,compute_mode"
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


def smi(fields: str) -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    got = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return dict(zip(fields.split(","), got.stdout.splitlines()[0].split(", "), strict=False))


def software() -> dict[str, Any]:
    there = {x.metadata["Name"]: x.version for x in metadata.distributions()}
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "capability": getattr(device, "compute_capability", None),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {x: there[x] for x in PACKAGES if x in there},
    }


def first(setting: Setting) -> dict[str, Any]:
    """One causal call of our kernel, and what `AUTO` would take for it."""
    its = work(setting, 512, 64, CAUSAL, batch=1)
    call = Call(its, setting)
    chosen = " ".join(
        str(ja.explain(*call.arrays[:3], mask=ja.Causal())).partition("\n")[0].split()
    )
    return {"worst": call.check(call.forward()), "auto": chosen}


def products(setting: Setting) -> dict[str, Any]:
    n = setting.size(8192, 64)
    return {"times": timed({x: product(n, x) for x in ("float16", "bfloat16")}, setting)}


def loaded(setting: Setting) -> dict[str, Any]:
    """Clocks while products run."""
    its = product(setting.size(8192, 64))
    for _ in range(20):
        its.built.run()
    got = smi(CLOCKS)
    its.built.result()
    return got


def facts(setting: Setting) -> list[Case]:
    cases = [Case("software", software), Case("first call", lambda: first(setting))]
    cases.append(Case("product", lambda: products(setting)))
    if not setting.dry:
        cases += [Case("card", lambda: smi(CARD)), Case("clocks", lambda: smi(CLOCKS))]
        cases.append(Case("clocks, loaded", lambda: loaded(setting)))
    return cases

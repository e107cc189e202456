"""`python -m benchmarks.gpu.child`: a process that runs cases of a stage, told by `parent`."""

import contextlib
import fcntl
import importlib
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

WAIT = 400.0
"""Seconds that a case may wait for others to be done with the device."""


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[], dict[str, Any]]
    limit: float = 60.0
    """Seconds, of building and of having the device."""


@dataclass(frozen=True)
class Setting:
    """dry: on a CPU, at sizes that say nothing, to see that the programs run."""

    dry: bool
    seed: int
    lock: str
    say: Callable[..., None]

    def size(self, real: int, dry: int) -> int:
        return dry if self.dry else real

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other lane times anything meanwhile."""
        with open(self.lock, "w") as file:
            self.say(limit=WAIT)
            fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it if the process dies
            self.say()
            yield


def scrub(text: str) -> str:
    """In one line, and without folders of the machine."""
    return " ".join(re.sub(r"(?<![\w.])/(?:[^\s/\"']+/)+", "", text).split())


def main() -> int:
    given = json.loads(os.environ["GPU_STAGE"])
    records = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what anybody else prints
    threading.Thread(target=_end_with_parent, daemon=True).start()
    at: dict[str, Any] = {}

    def say(**more: Any) -> None:
        print(json.dumps({"limit": at.get("limit"), "case": at.get("case")} | more), file=records)

    setting = Setting(given["dry"], given["seed"], given["lock"], say)
    module, _, function = given["where"].partition(":")
    cases = getattr(importlib.import_module(module), function)(setting)
    cases = cases[given["lane"] :: given["lanes"]]
    say(cases=[case.name for case in cases], limit=60.0)
    for case in cases:
        if case.name in given["done"]:
            continue
        at.update(case=case.name, limit=case.limit)
        say()
        begin = time.perf_counter()
        try:
            found, failed = {"status": "done", **case.run()}, False
        except Exception as error:
            traceback.print_exc()
            found, failed = {"status": "failed"}, True
            found["reason"] = scrub(f"{type(error).__name__}: {error}")[:2000]
        say(found={**found, "took_s": round(time.perf_counter() - begin, 2)}, limit=60.0)
        if failed and not _is_sound():
            return 1
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # which comes back only then
    os._exit(1)


def _is_sound() -> bool:
    """Whether the device still computes: after an illegal access nothing does."""
    import jax.numpy as jnp

    try:
        return float(jnp.ones(8).sum()) == 8
    except Exception:
        return False


if __name__ == "__main__":
    sys.exit(main())

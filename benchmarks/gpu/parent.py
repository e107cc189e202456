"""Runs stages in processes of their own, and keeps what they say as it comes."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import scrub

BUDGET, GRACE = 390.0, 15.0
"""Seconds: no stage begins later, and what still runs so much later is ended."""

START = 60.0
"""Seconds that a process has to import what it needs, and to name its cases."""

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Stage:
    name: str
    where: str
    """module:function, of a `child.Setting`; it returns the cases."""
    limit: float
    """Seconds."""
    lanes: int = 1
    """Processes that divide the cases; what they time, they time one after another."""


def run(stages: Sequence[Stage], dry: bool, seed: int, tell: Tell, budget: float = BUDGET) -> None:
    """Runs the stages. tell: is called with every record as it comes.

    A record is about a case, {stage, case, status, ...}, or a stage, {stage, state, seconds}.
    """
    begun = time.monotonic()
    for stage in stages:
        start = time.monotonic()
        if start > begun + budget:
            tell({"stage": stage.name, "state": "left out: no time", "seconds": 0.0})
            continue
        until = min(start + stage.limit, begun + budget + GRACE)
        with tempfile.TemporaryDirectory() as folder:
            lock = str(Path(folder) / "device")
            lanes = [_Lane(stage, i, dry, seed, lock, until, tell) for i in range(stage.lanes)]
            threads = [threading.Thread(target=lane.run, daemon=True) for lane in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        state = "; ".join(dict.fromkeys(lane.state for lane in lanes))
        seconds = round(time.monotonic() - start, 1)
        tell({"stage": stage.name, "state": state, "seconds": seconds})


def save(data: Mapping[str, Any], path: Path) -> None:
    """Writes the results, a record to a line; the file is there whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(x)}" for key, x in data.items() if key != "records"]
    records = ",\n".join(map(json.dumps, data["records"]))
    part = path.with_name(f".{path.name}.part")
    part.write_text("{" + ",\n".join([*lines, f'"records": [\n{records}\n]']) + "}\n")
    part.replace(path)


class _Lane:
    """The processes of one lane, one at a time."""

    def __init__(
        self, stage: Stage, lane: int, dry: bool, seed: int, lock: str, until: float, tell: Tell
    ) -> None:
        self.stage, self.until, self._tell = stage, until, tell
        self.given = {"where": stage.where, "lane": lane, "lanes": stage.lanes, "dry": dry}
        self.given |= {"seed": seed, "lock": lock}
        self.cases: list[str] | None = None
        self.done: list[str] = []
        self.state = "done"

    def run(self) -> None:
        try:
            while self._once():
                pass
        except Exception as error:  # whatever it is, the other stages go on
            self.state = f"failed: {type(error).__name__}: {error}"
        for case in self.cases or ():
            if case not in self.done:
                self._record(case, {"status": "left out", "reason": self.state})

    def _record(self, case: str, found: dict[str, Any]) -> None:
        self.done.append(case)
        self._tell({"stage": self.stage.name, "case": case, **found})

    def _once(self) -> bool:
        """One process; whether another has to go on."""
        before = len(self.done)
        with tempfile.TemporaryFile() as log:
            process: Any = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.child"],
                env=os.environ | {"GPU_STAGE": json.dumps(self.given | {"done": self.done})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            try:
                at, why = self._listen(process)
            finally:
                with contextlib.suppress(ProcessLookupError):  # and what it started: compilers
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process.stdin.close()
                process.stdout.close()
            log.seek(max(0, log.tell() - 600))
            said = scrub(log.read().decode(errors="replace"))
        why = why or (f"status {process.returncode}" if process.returncode else None)
        if at is not None:
            why = why or "it ended early"
            self._record(at, {"status": "ended", "reason": f"{why}: {said}"})
        elif self.cases is None or (why and len(self.done) == before):
            self.state = f"failed: {why}: {said[-300:]}"
            return False
        if time.monotonic() > self.until:
            self.state = "cut: no time"
            return False
        return any(case not in self.done for case in self.cases or ())

    def _listen(self, process: Any) -> tuple[str | None, str | None]:
        """(the case that it was at, why it has to be ended), None for none."""
        at, limit, rest = None, time.monotonic() + START, b""
        while True:
            ended = process.poll() is not None  # what it started may hold the pipe open
            ready, *_ = select.select([process.stdout], [], [], 0.0 if ended else 0.2)
            if not ready:
                if ended:
                    return at, None
                if time.monotonic() > min(limit, self.until):
                    return at, "time was up" if limit > self.until else "it hangs, or takes long"
                continue
            if not (got := os.read(process.stdout.fileno(), 2**16)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
                return at, None
            *lines, rest = (rest + got).split(b"\n")
            for said in map(json.loads, lines):
                limit = time.monotonic() + (said["limit"] or START)
                if "cases" in said:
                    self.cases = said["cases"]
                elif "found" in said:
                    self._record(said["case"], said["found"])
                    at = None
                else:
                    at = said["case"]

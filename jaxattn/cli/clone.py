"""`jaxattn bench` and `jaxattn figures`: what a clone has and a wheel has not."""

import os
import subprocess
import sys
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def bench(context: typer.Context) -> None:
    """Runs the benchmarks of a clone: `python -m benchmarks` with the same arguments."""
    _run("benchmarks", context.args)


def figures(context: typer.Context) -> None:
    """Draws the figures of a clone: `python -m figures` with the same arguments."""
    _run("figures", context.args)


def _run(package: str, arguments: list[str]) -> None:
    if not (ROOT / package / "__main__.py").is_file():
        raise FileNotFoundError(
            f"{package} is a part of a clone, not of the installed package; clone the repository "
            f'and there run: pip install -e ".[{package}]" && python -m {package}'
        )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-P", "-m", package, *arguments], env={**os.environ, "PYTHONPATH": path}
    )
    raise typer.Exit(done.returncode)

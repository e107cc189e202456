"""What a terminal gets and a pipe does not: colour, and progress."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
WIDE = 400  # columns of a table in a pipe, which has no edge


def output() -> Console:
    """For results, on standard output: as wide as they are where that is no terminal."""
    plain = not sys.stdout.isatty()
    return Console(file=sys.stdout, width=WIDE if plain else None, no_color=plain, highlight=False)


def follow(things: Iterable[T], what: str, count: int) -> Iterator[T]:
    """The things, with a bar on standard error where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=sys.stderr)
    show = console.is_terminal
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not show
    ) as bar:
        yield from bar.track(things, total=count, description=what)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sign of life on standard error while something takes its time, where it is a terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield

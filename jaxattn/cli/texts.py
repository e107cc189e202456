"""TEXT: an argument, a file, or standard input."""

import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Text: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="Standard input if it is left out.")
]
TextFile: TypeAlias = Annotated[
    Path | None, typer.Option("--text-file", "-f", metavar="FILE", help="The text, in UTF-8.")
]


def read(text: str | None, file: Path | None, what: str = "TEXT") -> str:
    """The text that was given in one way, as it is but for a newline at its end.

    Raises:
      typer.BadParameter: it was given in two ways, or in none.
      ValueError: it is empty, or no UTF-8. OSError: the file cannot be read.
    """
    if file is not None:
        if text is not None:
            raise typer.BadParameter(f"pass {what} or --text-file, not both")
        found, place = _decode(file.read_bytes(), str(file)), f"the file {file}"
    elif text is None or text == "-":
        if sys.stdin.isatty():
            raise typer.BadParameter(f"pass {what}, or a text on standard input")
        found, place = _decode(sys.stdin.buffer.read(), "standard input"), "standard input"
    else:
        found, place = text, what
    found = found.removesuffix("\n").removesuffix("\r")
    if not found.strip():
        raise ValueError(f"a text has at least one word, got nothing from {place}; pass some")
    return found


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a text is UTF-8, got a byte at {error.start} of {place} that is not; convert it"
        ) from None

"""Where the command starts: it says what to install if that is missing."""

import sys


def main() -> None:
    """The command `jaxattn`, with the arguments of this process."""
    try:
        from jaxattn.cli.app import app
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            f'jaxattn: the command line needs {missing.name}: pip install "jaxattn[cli]"',
            file=sys.stderr,
        )
        sys.exit(1)
    app(prog_name="jaxattn")

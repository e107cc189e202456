"""Writes the figures: `python -m figures [--only NAME] [--out DIR] [--list]`.

With --model FOLDER --text TEXT, every head of that checkpoint on that text instead, as model.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from figures.make import FIGURES, write, write_model
from figures.survey import SENTENCE


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes every figure, or those named with --only, as PNG and SVG."""
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="write this figure; may be repeated"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "output",
        metavar="DIR",
        help="the folder to write to (default: figures/output)",
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="draw every head of this checkpoint, or of that in a package of this name",
    )
    parser.add_argument(
        "--text", default=SENTENCE, help="what it reads (default: the sentence of the figures)"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    given = parser.parse_args(arguments)
    if given.list:
        for name, make in FIGURES.items():
            print(f"{name:12} {(make.__doc__ or '').splitlines()[0]}")
        return
    if given.model is not None:
        try:
            print(*write_model(given.model, given.text, given.out), sep="\n")
        except (ValueError, OSError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        return
    names = list(dict.fromkeys(given.only or FIGURES))
    if wrong := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure is called {', '.join(wrong)}; choose from {', '.join(FIGURES)}")
    for name in (bar := tqdm(names, unit="figure")):
        bar.set_description(name)
        for path in write(name, given.out):
            tqdm.write(str(path))


if __name__ == "__main__":
    main()

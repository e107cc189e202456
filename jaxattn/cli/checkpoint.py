"""FOLDER: a checkpoint's folder, or the name of an installed package that has one in it."""

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import typer

CONFIG = "config.json"

Folder: TypeAlias = Annotated[
    str, typer.Argument(metavar="FOLDER", help="A checkpoint, or a package.")
]


class Checkpoint(NamedTuple):
    """name: as people know it. model, tokenizer: of `jaxattn.models`."""

    name: str
    path: Path
    model: Any
    tokenizer: Any


def find(folder: str) -> Path:
    """The folder with the config.

    A folder is taken before a package of that name. The package may have the checkpoint in itself
    or in one folder in it. It is not imported.

    Raises:
      FileNotFoundError: there is neither.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(
            f"a checkpoint is a folder with {CONFIG}, got the file {path}; pass the folder it is in"
        )
    package = folder.replace("-", "_")
    if not package.isidentifier():
        raise FileNotFoundError(f"there is no folder {folder}; check the path")
    spec = importlib.util.find_spec(package)
    inside = (spec.submodule_search_locations or []) if spec is not None else []
    for root in map(Path, inside):
        found = [root, *sorted(x.parent for x in root.glob(f"*/{CONFIG}"))]
        found = [x for x in found if (x / CONFIG).is_file()]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(str, found))
            raise FileNotFoundError(f"the package {package} has several checkpoints: pass {names}")
    what = "has no checkpoint in it" if inside else "is not installed either"
    raise FileNotFoundError(
        f"there is no folder {folder}, and a package {package} {what}; check the name"
    )


def load(folder: str) -> Checkpoint:
    """The tokenizer first: it is small, and what is wrong with it is told at once."""
    path = find(folder)
    from jaxattn import models

    tokenizer = models.load_tokenizer(path)
    name = path.resolve().name if Path(folder).expanduser().is_dir() else folder
    return Checkpoint(name, path, models.load(path), tokenizer)


def ends(path: Path) -> frozenset[int]:
    """The tokens that end a text, by the files of a checkpoint."""
    for name in ("generation_config.json", CONFIG):
        if (path / name).is_file():
            found = json.loads((path / name).read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return frozenset(found if isinstance(found, list) else [found])
    return frozenset()

"""A folder with a checkpoint: its config, and its weights in safetensors files.

The header of such a file names every tensor with its dtype, shape and place. So all that can be
wrong is told from headers alone, before anything large is read. Nothing is ever unpickled. Tensors
are read one by one to where JAX needs no copy of them, at multiples of 64 bytes, which the library
does not promise.

Source: the format, https://github.com/huggingface/safetensors#format.
"""

import json
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.bin")
LARGE = 1 << 20  # bytes
ALIGNED = 64  # bytes: what JAX takes as an array on the CPU without a copy
CHUNK = 1 << 30  # bytes of one read; Linux reads at most 2 GiB at a time

FLOATING: dict[str, Any] = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded: what is wrong, where, and the remedy, in one line."""


class MissingFileError(FileNotFoundError):
    """A file that a checkpoint needs is not in its folder."""


class Tensor(NamedTuple):
    """Where a tensor is. dtype: as the file names it. start: its first byte in the file. size: in
    bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> np.ndarray:
        """Its numbers, in memory that JAX on a CPU takes without a copy."""
        data = _room(self.size)
        with self.file.open("rb", buffering=0) as file:
            at = 0
            while at < self.size:
                file.seek(self.start + at)
                read = file.readinto(data[at : at + CHUNK].data)
                if not read:
                    raise CheckpointError(f"{self.file} ended while it was read; copy it again")
                at += read
        return data.view(FLOATING[self.dtype]).reshape(self.shape)


def _room(size: int) -> np.ndarray:
    """So many bytes of memory, aligned.

    Large ones come from the system as they are: NumPy asks for huge pages, for which Linux may have
    to move what is in memory, and that takes longer than to read a file.
    """
    if size >= LARGE and hasattr(mmap, "MAP_ANONYMOUS"):
        return np.frombuffer(
            mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8
        )
    room = np.empty(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size]


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json says.

    Raises:
      MissingFileError: there is no folder or no such file in it.
      CheckpointError: it is no JSON object.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(
            f"a checkpoint is a folder with {CONFIG} and {WEIGHTS}, got {str(folder)!r}, which is "
            f"no folder; download the model and pass its folder"
        )
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"{path.parent} has no {path.name}; copy it from the model's page")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON or no UTF-8
        raise CheckpointError(f"{path} is no JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, no JSON object")
    return found


def find_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the shards that its index names.

    Raises:
      MissingFileError: there are no such files, or some shards are missing.
      CheckpointError: a header or the length of a file is wrong; the index names other tensors.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickled = next((name for name in PICKLED if (folder / name).is_file()), None)
        if pickled:
            raise MissingFileError(
                f"weights are read from {WEIGHTS}, never from pickles, which may run any code, got "
                f"only {folder / pickled}; convert it where you trust it: transformers' "
                f"AutoModel.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise MissingFileError(f"{folder} has neither {WEIGHTS} nor {INDEX}; download the weights")
    return _read_shards(folder)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(x, str) for x in shards.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map from names to files; copy it")
    found: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX} names {name!r}, a file outside of the folder")
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder} lacks the shard {name}; download it too")
        for tensor, place in read_header(folder / name).items():
            if shards.get(tensor) != name:
                raise CheckpointError(
                    f"{folder / name} holds {tensor!r}, which {INDEX} puts in {shards.get(tensor)};"
                    f" the files are of different checkpoints: copy all of them again"
                )
            found[tensor] = place
    if lost := sorted(shards.keys() - found.keys()):
        raise CheckpointError(
            f"{folder / shards[lost[0]]} lacks {lost[0]!r}, which {INDEX} puts there; copy it again"
        )
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, which safetensors has checked.

    Raises:
      CheckpointError: it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open  # only where one is read

    with path.open("rb") as file:
        length = file.read(8)
        if length == b"version " and b"git-lfs" in file.read(64):
            raise CheckpointError(f"{path} is a pointer of Git LFS; fetch the file: git lfs pull")
        try:
            safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is cut off or no safetensors file of {path.stat().st_size:,} bytes "
                f"({error}); copy it again"
            ) from None
        start = 8 + int.from_bytes(length, "little")
        file.seek(8)
        header = json.loads(file.read(start - 8))  # again: the library tells no places
    header.pop("__metadata__", None)
    tensors = {}
    for name, stated in header.items():
        begin, end = stated["data_offsets"]
        tensors[name] = Tensor(
            path, stated["dtype"], tuple(stated["shape"]), start + begin, end - begin
        )
    return tensors

"""Weights on disk as names, shapes and dtypes: a safetensors file or the shards of an index, read by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from lrd_deploy.errors import InputError, LrdError, StorageError, raise_all
from lrd_deploy.files import read_bytes, storage_errors

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_PICKLED = {b"PK", b"\x80\x02"}  # how files of torch.save begin, the zipped and the older ones

_WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; `dtype` in safetensors' words, such as 'BF16'."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return prod(self.shape) * self.width // 8

    @property
    def width(self) -> int:
        """Bits of one element; all kinds that are not listed have eight."""
        return _WIDTHS.get(self.dtype, 8)

    def read(self) -> Tensor:
        """Returns the tensor in memory of its own: nothing of the file stays mapped.

        Raises:
            StorageError: the file cannot be read.
            InputError: it is no whole safetensors file.
        """
        with _opened(self.file) as file:
            return file.get_tensor(self.name).clone()

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns a range of the first axis, in memory of its own."""
        with _opened(self.file) as file:
            return file.get_slice(self.name)[start:stop].clone()


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Returns every tensor of a file, an index, or a folder that holds one of the two, by name in sorted order.

    Only headers are read. All that is wrong with the shards is told together.

    Raises:
        StorageError: a file cannot be read.
        InputError: a shard is missing or cut short, or the index names a tensor that is not in its shard.
        Problems: several of these.
    """
    if path.is_dir():
        path = _weights_of_folder(path)
    if path.suffix != ".json":
        return dict(sorted(_tensors_of_file(path).items()))
    homes = _read_index(path)
    found: dict[str, StoredTensor] = {}
    problems: list[LrdError] = []
    for shard in sorted(set(homes.values())):
        try:
            found |= _tensors_of_shard(path, shard, {name for name, home in homes.items() if home == shard})
        except (InputError, StorageError) as problem:
            problems.append(problem)
    if problems:
        raise_all(f"reading the weights that '{path}' lists", problems)
    return dict(sorted(found.items()))


def _weights_of_folder(folder: Path) -> Path:
    for name in (INDEX_NAME, SINGLE_NAME):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"looking for weights in '{folder}'",
        found=f"neither {INDEX_NAME} nor {SINGLE_NAME}",
        accepted="a folder made by save_pretrained, with one of the two",
        remedy="check the path, or save the model as safetensors",
    )


def _read_index(path: Path) -> Mapping[str, str]:
    """Tensor names and the file names of their shards."""
    try:
        homes = json.loads(read_bytes(path))["weight_map"]
        if homes and all(isinstance(home, str) and Path(home).name == home for home in homes.values()):
            return homes
        problem = "an empty 'weight_map', or shards outside the folder"
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        problem = f"{type(exc).__name__}: {exc}"
    raise InputError(
        f"reading the index '{path}'",
        found=problem,
        accepted="JSON with a 'weight_map' from tensor names to files beside the index",
        remedy="download or save the checkpoint again",
    )


def _tensors_of_shard(index: Path, shard: str, listed: set[str]) -> dict[str, StoredTensor]:
    """The listed tensors of one shard."""
    doing = f"reading the weights that '{index}' lists"
    if not index.with_name(shard).is_file():
        raise InputError(
            doing,
            found=f"no file '{shard}' beside it, for {len(listed)} tensors",
            accepted="every shard that the index names, in the index's folder",
            remedy="copy or download the missing shard",
        )
    held = _tensors_of_file(index.with_name(shard))
    absent = sorted(listed - held.keys())
    if absent:
        raise InputError(
            doing,
            found=f"'{absent[0]}' is not in '{shard}'" + (f", nor are {len(absent) - 1} more" if absent[1:] else ""),
            accepted="an index that belongs to these shards",
            remedy="download index and shards again, from one version of the model",
        )
    return {name: held[name] for name in listed}


def _tensors_of_file(path: Path) -> dict[str, StoredTensor]:
    with _opened(path) as file:
        slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118, it is no mapping
        return {name: StoredTensor(name, path, found.get_dtype(), tuple(found.get_shape())) for name, found in slices}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    with storage_errors("reading", path):
        path.open("rb").close()  # safe_open's own message leaves out the path
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as exc:
            with path.open("rb") as stream:
                is_pickled = stream.read(2) in _PICKLED
            raise InputError(
                f"loading weights from '{path}'",
                found="a file of torch.save" if is_pickled else str(exc),
                accepted="a whole safetensors file",
                remedy="write it with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
                if is_pickled
                else "save or download it again",
            ) from exc

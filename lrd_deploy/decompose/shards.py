"""Output shards: laid out before the first tensor is computed, then written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lrd_deploy.files import write_whole
from lrd_deploy.models.stored_tensors import StoredTensor

_LARGEST_BYTES = 256 << 20  # of a shard, unless one piece is larger
_FEWEST = 16  # shards of a small checkpoint, so that several processes find work and little is done twice
_CHUNK_BYTES = 64 << 20  # copied at a time


@dataclass(frozen=True)
class Piece:
    """One tensor of the source and what it becomes: itself, possibly renamed, or two factors of a rank."""

    source: StoredTensor
    name: str
    rank: int | None = None

    @cached_property
    def outputs(self) -> tuple[StoredTensor, ...]:
        """The tensors that are written; their `file` is still the source's."""
        s = self.source
        if self.rank is None:
            return (StoredTensor(self.name, s.file, s.dtype, s.shape),)
        out_channels, in_channels = s.shape
        shapes = {"down": (self.rank, in_channels), "up": (out_channels, self.rank)}
        return tuple(StoredTensor(f"{self.name}.{f}.weight", s.file, s.dtype, shape) for f, shape in shapes.items())

    @property
    def cost(self) -> float:
        """What it takes, in multiply–accumulates: a Gram matrix, its eigenvectors, two products; or a copy."""
        if self.rank is None:
            return float(self.source.size_bytes)
        smaller, larger = sorted(self.source.shape)
        return smaller * larger * (smaller + 2.0 * self.rank) + 4.0 * smaller**3


@dataclass(frozen=True)
class Shard:
    """One output file: its pieces in order, so that its bytes do not depend on who writes it or when."""

    file: str
    pieces: tuple[Piece, ...]

    @property
    def cost(self) -> float:
        """Of all pieces."""
        return sum(piece.cost for piece in self.pieces)

    @property
    def outputs(self) -> tuple[StoredTensor, ...]:
        """The tensors of the file in the order of their bytes."""
        return tuple(chain.from_iterable(piece.outputs for piece in self.pieces))


def laid_out(pieces: Sequence[Piece]) -> tuple[Shard, ...]:
    """Returns the shards, in the order of the pieces, none above 256 MiB unless a single piece is."""
    sizes = [sum(output.size_bytes for output in piece.outputs) for piece in pieces]
    largest = min(_LARGEST_BYTES, -(-sum(sizes) // _FEWEST))
    groups: list[list[Piece]] = []
    room = 0
    for piece, size in zip(pieces, sizes, strict=True):
        if size > room or not groups:
            groups.append([])
            room = largest
        groups[-1].append(piece)
        room -= size
    # Wide elements first: then each tensor starts at a multiple of its element's size, as readers want it.
    ordered = (sorted(group, key=lambda piece: -piece.source.width) for group in groups)
    return tuple(
        Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for number, group in enumerate(ordered, 1)
    )


def write_shard(path: Path, outputs: Sequence[StoredTensor], tensors: Iterator[Tensor]) -> None:
    """Writes a safetensors file, whole or not at all, while holding no more than one of its tensors.

    Args:
        path: the file.
        outputs: names, dtypes and shapes, in the order of `tensors`.
        tensors: the data; a tensor may come as several, cut along the first axis.

    Raises:
        StorageError: the folder or the disk refuses.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.write(_header(outputs))
            for tensor in tensors:
                _write_data(stream, tensor)

    write_whole(path, write)


def copied(tensor: StoredTensor) -> Iterator[Tensor]:
    """Yields a stored tensor in pieces of at most 64 MiB along its first axis."""
    if tensor.size_bytes <= _CHUNK_BYTES or not tensor.shape:
        yield tensor.read()
        return
    rows = max(_CHUNK_BYTES * tensor.shape[0] // tensor.size_bytes, 1)
    for start in range(0, tensor.shape[0], rows):
        yield tensor.rows(start, min(start + rows, tensor.shape[0]))


def _header(outputs: Sequence[StoredTensor]) -> bytes:
    """The length of the JSON in eight bytes, then the JSON, padded so that the data is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        entries[output.name] = {
            "dtype": output.dtype,
            "shape": output.shape,
            "data_offsets": (offset, offset + output.size_bytes),
        }
        offset += output.size_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_data(stream: BinaryIO, tensor: Tensor) -> None:
    stream.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))

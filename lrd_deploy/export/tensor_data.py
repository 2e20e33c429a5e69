"""What a tensor of an ONNX model holds, in the model's file or in one beside it, which is mapped and never held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from lrd_deploy.files import storage_errors

SMALL_BYTES = 1024  # what shape inference may want to read, and what is not worth a place beside the model
_CHUNK_BYTES = 2**24
_FOLDER = "basepath"  # the key that says, in memory only, which folder a location starts from
_BITS = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
} | {
    getattr(TensorProto, name): bits
    for name, bits in (("INT2", 2), ("UINT2", 2), ("FLOAT6E2M3", 6), ("FLOAT6E3M2", 6))
    if hasattr(TensorProto, name)
}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are: in a file, from an offset on."""

    file: Path
    offset: int
    length: int


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yields every tensor of a model: initializers, those of bodies and functions, and what attributes hold."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields nodes, each followed by those in its bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _bodies(attribute):
                yield from all_nodes(graph.node)


def is_beside(tensor: TensorProto) -> bool:
    """True for a tensor whose values are in a file beside the model."""
    return tensor.data_location == TensorProto.EXTERNAL


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """Returns what a tensor says of its external data, by key."""
    return {entry.key: entry.value for entry in tensor.external_data}


def set_place_(tensor: TensorProto, place: Place, folder: Path | None = None) -> None:
    """Points a tensor at its bytes, and lets go of those that it holds.

    Args:
        tensor: gets the place.
        place: its file relative to the model's folder.
        folder: that the file is in, for a model in memory; None in one that is written.
    """
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": place.file.as_posix(), "offset": place.offset, "length": place.length}
    for key, value in (entries | ({_FOLDER: folder} if folder else {})).items():
        tensor.external_data.add(key=key, value=str(value))


def place_of(tensor: TensorProto) -> Place:
    """Returns where the bytes of a tensor of a model from `read_model` are."""
    entries = external_entries(tensor)
    return Place(Path(entries[_FOLDER], entries["location"]), int(entries["offset"]), int(entries["length"]))


def folder_of(tensor: TensorProto) -> Path:
    """Returns the folder that a tensor's location starts from."""
    return Path(external_entries(tensor)[_FOLDER])


def as_in_file(model: ModelProto) -> ModelProto:
    """Returns a copy of a model in memory whose places are those of a file in the folder that its weights are in."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in all_tensors(copy):
        if is_beside(tensor):
            place = place_of(tensor)
            set_place_(tensor, Place(place.file.relative_to(folder_of(tensor)), place.offset, place.length))
    return copy


def tensor_values(tensor: TensorProto) -> NDArray[np.generic]:
    """Returns what a tensor holds; a file beside the model is mapped, so that only what is looked at is read.

    Raises:
        StorageError: the file is gone.
    """
    if not is_beside(tensor):
        return numpy_helper.to_array(tensor)
    if tensor.data_type in _BITS:
        held = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=b"".join(tensor_bytes(tensor)))
        return numpy_helper.to_array(held)
    place, dtype = place_of(tensor), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if not place.length:
        return np.empty(tuple(tensor.dims), dtype)
    with storage_errors("reading", place.file):
        return np.asarray(np.memmap(place.file, dtype, "r", place.offset, tuple(tensor.dims)))


def tensor_bytes(tensor: TensorProto) -> Iterator[bytes]:
    """Yields the bytes of a tensor of numbers, as raw data has them, a few megabytes at a time where it is in a file.

    Raises:
        StorageError: the file is gone, or was cut short.
    """
    if not is_beside(tensor):
        yield tensor.raw_data if tensor.HasField("raw_data") else _as_raw(tensor)
        return
    place = place_of(tensor)
    with storage_errors("reading", place.file), place.file.open("rb") as stream:
        stream.seek(place.offset)
        left = place.length
        while left:
            chunk = stream.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise OSError(0, "the file was cut short while it was read")
            left -= len(chunk)
            yield chunk


def held_here(tensor: TensorProto) -> TensorProto:
    """Returns a tensor with its values in it, wherever they are; the tensor itself where it has them."""
    if not is_beside(tensor):
        return tensor
    raw = b"".join(tensor_bytes(tensor))
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)


def byte_count(tensor: TensorProto) -> int:
    """Returns how many bytes a tensor of numbers takes as raw data, by its type and dimensions."""
    count = prod(tensor.dims)
    bits = _BITS.get(tensor.data_type)
    if bits:
        return -(-count * bits // 8)
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def tensor_fault(tensor: TensorProto) -> str | None:
    """Returns what a tensor says of itself that does not fit what it holds, or None; a file beside is not looked at."""
    if tensor.data_type not in onnx.helper.get_all_tensor_dtypes() or tensor.data_type == TensorProto.UNDEFINED:
        return f"type {tensor.data_type}, which ONNX does not have"
    if any(dim < 0 for dim in tensor.dims):
        return f"dimensions {list(tensor.dims)}"
    if tensor.HasField("segment"):
        return "a segment of a tensor"
    if tensor.data_type == TensorProto.STRING:
        return _count_fault(tensor, "strings", len(tensor.string_data)) if not is_beside(tensor) else "text beside it"
    if is_beside(tensor):
        return None
    if tensor.HasField("raw_data"):
        expected, found = byte_count(tensor), len(tensor.raw_data)
        return f"{found} bytes where its type and dimensions take {expected}" if found != expected else None
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    return _count_fault(tensor, "values", len(getattr(tensor, field)))


def _count_fault(tensor: TensorProto, what: str, found: int) -> str | None:
    expected = prod(tensor.dims)
    if tensor.data_type in _BITS:
        expected = -(-expected // max(8 // _BITS[tensor.data_type], 1))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        expected *= 2
    return f"{found} {what} where its dimensions take {expected}" if found != expected else None


def _as_raw(tensor: TensorProto) -> bytes:
    """What is in a field of its type's own; no weight of any size is stored so."""
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def _tensors_of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)
            for graph in _bodies(attribute):
                yield from _tensors_of_graph(graph)


def _bodies(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs

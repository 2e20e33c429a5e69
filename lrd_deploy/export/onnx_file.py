"""Reading and writing ONNX files of any size: weights that are beside a model stay there until they are wanted."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto

from lrd_deploy.errors import InputError
from lrd_deploy.export.model_check import check_read_, invalid
from lrd_deploy.export.skeleton import in_one_line, is_weight, shell, skeleton
from lrd_deploy.export.tensor_data import Place, all_tensors, byte_count, is_beside, set_place_, tensor_bytes
from lrd_deploy.files import read_bytes, storage_errors, write_with_companions
from lrd_deploy.records import TensorInfo

_LARGEST_FILE = 2**31 - 1  # protobuf's limit
_LARGEST_WRITTEN = 2_000_000_000  # leaves room for what is between the weights
_ALIGNMENT = 4096  # so that weights can be mapped
_PRECISIONS = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def read_model(path: Path) -> ModelProto:
    """Returns the model in a file after a structural check; `tensor_values` reads weights that are beside it.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no valid ONNX model, or its weights lie outside its folder, are missing or cut short.
    """
    with storage_errors("reading", path):
        size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise InputError(
            f"reading the ONNX model '{path}'",
            found=f"{size / 2**30:.1f} GiB in one file",
            accepted="at most 2 GiB, and weights of any size in a file beside it",
            remedy="save it with onnx.save(..., save_as_external_data=True)",
        )
    try:
        model = onnx.load_model_from_string(read_bytes(path))
    except DecodeError as exc:
        raise invalid(path, in_one_line(exc)) from exc
    check_read_(model, path)
    return model


def write_model(model: ModelProto, path: Path) -> Path:
    """Checks a model fully, writes it whole or not at all, and returns the path.

    Weights go into a file beside it where the model was read with such, or is too large for one file. That file is
    called after `path` and its own content: a model that stood at `path` before keeps the weights that it had.

    Raises:
        InputError: the model is invalid.
        StorageError: a file cannot be written.
    """
    try:
        onnx.checker.check_model(skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as exc:
        raise InputError(
            f"checking the ONNX model for '{path}'",
            found=in_one_line(exc),
            accepted="a model that passes ONNX's full check",
            remedy="report this with the model: a valid model was expected here",
        ) from exc
    return write_with_companions(path, lambda staged: _write(model, staged))


def _write(model: ModelProto, path: Path) -> None:
    weights = sum(byte_count(tensor) for tensor in model.graph.initializer if is_weight(tensor))
    if weights <= _LARGEST_WRITTEN and not any(map(is_beside, all_tensors(model))):
        path.write_bytes(model.SerializeToString())
        return
    light = shell(model)
    light.graph.initializer.extend(map(_without_values, model.graph.initializer))
    moved = [
        (source, target)
        for source, target in zip(all_tensors(model), all_tensors(light), strict=True)
        if is_beside(target)
    ]
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as stream:
        offsets, digest = _write_values([source for source, _ in moved], stream)
    data = data.rename(path.with_name(f"{path.name}.{digest[:16]}.data"))
    for (_, target), offset in zip(moved, offsets, strict=True):
        set_place_(target, Place(Path(data.name), offset, byte_count(target)))
    path.write_bytes(light.SerializeToString())


def _without_values(tensor: TensorProto) -> TensorProto:
    """A weight without what it holds, to be given a place; a small tensor as it is."""
    if not is_weight(tensor) or is_beside(tensor):
        return tensor
    bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=tensor.doc_string)
    bare.metadata_props.extend(tensor.metadata_props)
    bare.data_location = TensorProto.EXTERNAL
    return bare


def _write_values(tensors: list[TensorProto], stream: BinaryIO) -> tuple[list[int], str]:
    """Writes what tensors hold, one after the other, and returns where each begins, and the SHA-256 of it all."""
    digest, offsets = hashlib.sha256(), []
    for tensor in tensors:
        _append(bytes(-stream.tell() % _ALIGNMENT), stream, digest)
        offsets.append(stream.tell())
        for chunk in tensor_bytes(tensor):
            _append(chunk, stream, digest)
    return offsets, digest.hexdigest()


def _append(chunk: bytes, stream: BinaryIO, digest: hashlib._Hash) -> None:
    stream.write(chunk)
    digest.update(chunk)


def tensor_info(value: ValueInfoProto) -> TensorInfo:
    """Returns the name, dtype and shape of a graph input or output; an unnamed dimension is named after its place.

    A negative size, by which some exporters mean any, counts as unnamed.
    """
    tensor = value.type.tensor_type
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    known = tensor.elem_type in onnx.helper.get_all_tensor_dtypes()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if known else "unknown"
    return TensorInfo(name=value.name, dtype=dtype, shape=dims)


def graph_inputs(model: ModelProto) -> tuple[TensorInfo, ...]:
    """Returns the inputs a caller must feed: those that are no initializer."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return tuple(tensor_info(value) for value in model.graph.input if value.name not in constants)


def default_opset(model: ModelProto) -> int:
    """Returns the version of ONNX's own operator set, 0 where the model imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)


def weight_precision(model: ModelProto) -> str:
    """Returns "fp32", "fp16", "bf16", "fp64", or "mixed": the dtype of the weights of two dimensions and more."""
    found = [name for name in weight_shares(model) if name != "other"]
    return found[0] if len(found) == 1 else "mixed" if found else "fp32"


def weight_shares(model: ModelProto) -> dict[str, float]:
    """Returns the share of each dtype among the weights of two dimensions and more, by number of values."""
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            name = _PRECISIONS.get(tensor.data_type, "other")
            sizes[name] = sizes.get(name, 0) + prod(tensor.dims)
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()} if total else {}

"""Reading, checking and writing ONNX files."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import uses_external_data

from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, sha256_of, write_bytes
from lrd_deploy.records import TensorInfo

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_PRECISIONS = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def read_model(path: Path) -> ModelProto:
    """Returns the model in a file, its external data included, after a structural check.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no valid ONNX model.
    """
    doing = f"reading the ONNX model '{path}'"
    try:
        model = onnx.load_model_from_string(read_bytes(path))
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as exc:
        raise InputError(
            doing,
            found=" ".join(str(exc).split())[:400] or type(exc).__name__,
            accepted="a valid ONNX model",
            remedy="export it again; a download may have been cut short",
        ) from exc
    if not model.graph.node:
        raise InputError(doing, found="an empty graph", accepted="a graph with nodes", remedy="export it again")
    return model


def write_model(model: ModelProto, path: Path) -> Path:
    """Checks a model fully, writes it whole or not at all, and returns the path.

    Raises:
        InputError: the model is invalid, or above protobuf's 2 GiB.
        StorageError: the file cannot be written.
    """
    if model.ByteSize() > _PROTOBUF_LIMIT_BYTES:
        raise InputError(
            f"writing the ONNX model '{path}'",
            found=f"{model.ByteSize() / 2**30:.1f} GiB in one file",
            accepted="at most 2 GiB",
            remedy="factorise more layers, or export a smaller model",
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise InputError(
            f"checking the ONNX model for '{path}'",
            found=" ".join(str(exc).split())[:400],
            accepted="a model that passes ONNX's full check",
            remedy="report this with the model: a valid model was expected here",
        ) from exc
    return write_bytes(path, model.SerializeToString())


def tensor_info(value: ValueInfoProto) -> TensorInfo:
    """Returns the name, dtype and shape of a graph input or output; an unnamed dimension is named after its place."""
    tensor = value.type.tensor_type
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "unknown"
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


def model_files(path: Path) -> list[Path]:
    """Returns the files that a model consists of: the one given, then those that hold its external data.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no ONNX model, or its data lie outside its folder.
    """
    doing = f"reading the ONNX model '{path}'"
    try:
        model = onnx.load_model_from_string(read_bytes(path))
    except DecodeError as exc:
        raise InputError(
            doing,
            found=str(exc),
            accepted="an ONNX model",
            remedy="export it again; a download may have been cut short",
        ) from exc
    stored = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    names = dict.fromkeys(entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location")
    folder = path.parent.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder):
            raise InputError(
                doing,
                found=f"external data at '{name}'",
                accepted="files in the model's own folder",
                remedy="save the model with its data beside it",
            )
    return [path, *(path.parent / name for name in names)]


def model_sha256(path: Path) -> str:
    """Returns the SHA-256 of a model: its file's, or with external data that of all its files' digests."""
    digests = [sha256_of(file) for file in model_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

"""A graph's inputs and outputs as Triton names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, ValueInfoProto

from lrd_deploy.errors import InputError, LrdError, raise_all
from lrd_deploy.export.onnx_file import tensor_info
from lrd_deploy.records import TensorInfo

# What the backends take, by numpy's name of the type.
_TYPES = {
    "onnxruntime": {
        "bool": "TYPE_BOOL",
        "uint8": "TYPE_UINT8",
        "uint16": "TYPE_UINT16",
        "uint32": "TYPE_UINT32",
        "uint64": "TYPE_UINT64",
        "int8": "TYPE_INT8",
        "int16": "TYPE_INT16",
        "int32": "TYPE_INT32",
        "int64": "TYPE_INT64",
        "float16": "TYPE_FP16",
        "float32": "TYPE_FP32",
        "float64": "TYPE_FP64",
        "object": "TYPE_STRING",
    },
    "tensorrt": {
        "bool": "TYPE_BOOL",
        "uint8": "TYPE_UINT8",
        "int8": "TYPE_INT8",
        "int32": "TYPE_INT32",
        "int64": "TYPE_INT64",
        "float16": "TYPE_FP16",
        "bfloat16": "TYPE_BF16",
        "float32": "TYPE_FP32",
    },
}


@dataclass(frozen=True)
class ServedTensor:
    """An input or output of a request.

    Attributes:
        info: as the graph has it.
        data_type: Triton's name of its type.
        dims: without the batch where the model takes batches; −1 for a size that is free.
        lone_batch: the batch is its only dimension, so that requests need a dimension of 1 which the model lacks.
    """

    info: TensorInfo
    data_type: str
    dims: tuple[int, ...]
    lone_batch: bool


@dataclass(frozen=True)
class ServedGraph:
    """What a server must know of a graph; `batched` when the first dimension of every input and output is the batch."""

    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    batched: bool

    @property
    def has_text(self) -> bool:
        """True when an input is text."""
        return any(tensor.info.dtype == "object" for tensor in self.inputs)


def served_graph(model: ModelProto, backend: str = "onnxruntime", *, may_batch: bool = True) -> ServedGraph:
    """Returns a graph's inputs and outputs as a Triton backend takes them.

    Args:
        model: the graph; weights may be left in their files.
        backend: "onnxruntime" or "tensorrt".
        may_batch: whether a first dimension that is free everywhere is the batch.

    Raises:
        InputError: a value is no tensor, has no stated shape, no dimension, or a type that the backend does not take;
            or there is no input. Several are raised together.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = list(model.graph.output)
    problems = [
        *(problem for value in inputs for problem in _problems("input", value, _TYPES[backend], backend)),
        *(problem for value in outputs for problem in _problems("output", value, _TYPES[backend], backend)),
        *([] if inputs else [_refused("the graph", "no input", "at least one input", "give the model an input")]),
    ]
    if problems:
        raise_all("describing the model to the server", problems)
    infos = [tensor_info(value) for value in (*inputs, *outputs)]
    batched = may_batch and all(isinstance(info.shape[0], str) for info in infos)
    served = [_served(info, _TYPES[backend], batched) for info in infos]
    return ServedGraph(tuple(served[: len(inputs)]), tuple(served[len(inputs) :]), batched)


def _served(info: TensorInfo, types: Mapping[str, str], batched: bool) -> ServedTensor:
    shape = info.shape[1:] if batched else info.shape
    dims = tuple(-1 if isinstance(size, str) else size for size in shape)
    return ServedTensor(info, types[info.dtype], dims or (1,), lone_batch=not dims)


def _problems(role: str, value: ValueInfoProto, types: Mapping[str, str], backend: str) -> list[LrdError]:
    what = f"the {role} '{value.name}'"
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        word = (kind or "value of no type").removesuffix("_type")
        return [_refused(what, f"a {word}", "a tensor", "end the graph before it, and export that")]
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        remedy = "run onnx.shape_inference.infer_shapes on the model and save it"
        return [_refused(what, "a tensor whose shape is not stated", "a stated shape", remedy)]
    if not tensor.shape.dim:
        remedy = "give it a dimension of 1 with Unsqueeze"
        return [_refused(what, "a scalar", "at least one dimension: requests have no scalars", remedy)]
    dtype = tensor_info(value).dtype
    if dtype not in types:
        remedy = "convert it with a Cast node at the edge of the graph"
        return [
            _refused(what, f"values of type {dtype}", f"a type the {backend} backend takes: {_listed(types)}", remedy)
        ]
    return []


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join("text" if name == "object" else name for name in types)


def _refused(what: str, found: str, accepted: str, remedy: str) -> InputError:
    return InputError(f"describing {what} to the server", found=found, accepted=accepted, remedy=remedy)

"""A model without its large weights: all that checks and inference look at, and small however large the model is."""

from __future__ import annotations

from typing import Any

import onnx
from google.protobuf.message import EncodeError
from onnx import GraphProto, ModelProto, TensorProto

from lrd_deploy.errors import InputError
from lrd_deploy.export.tensor_data import SMALL_BYTES, all_tensors, byte_count, held_here, is_beside


def shell(model: ModelProto) -> ModelProto:
    """Returns a copy of a model without the initializers of its graph."""
    copy = ModelProto()
    _copy_fields_(model, copy, but="graph")
    _copy_fields_(model.graph, copy.graph, but="initializer")
    return copy


def skeleton(model: ModelProto) -> ModelProto:
    """Returns a copy whose weights of a kilobyte and more are inputs of their type and shape, and the rest is held."""
    copy = shell(model)
    fed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not is_weight(tensor):
            copy.graph.initializer.append(tensor)
        elif tensor.name not in fed:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for tensor in all_tensors(copy):
        if is_beside(tensor):
            tensor.CopyFrom(held_here(tensor))
    return copy


def is_weight(tensor: TensorProto) -> bool:
    """True for a tensor that is too large to be looked at by shape inference."""
    return tensor.data_type != TensorProto.STRING and byte_count(tensor) >= SMALL_BYTES


def inferred(model: ModelProto, *, strict: bool = False) -> GraphProto:
    """Returns the graph of a model's skeleton with the types and shapes of its values.

    Args:
        model: of any size; left as it is.
        strict: raise where a node cannot be inferred, too.

    Raises:
        InputError: types or shapes contradict each other.
    """
    options = {"check_type": True, "strict_mode": True} if strict else {"data_prop": True}
    try:
        return onnx.shape_inference.infer_shapes(skeleton(model), **options).graph
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError, RuntimeError) as exc:
        raise InputError(
            f"inferring the shapes of the graph '{model.graph.name}'",
            found=in_one_line(exc),
            accepted="a graph whose types and shapes fit together",
            remedy="export it again",
        ) from exc


def infer_shapes_(model: ModelProto) -> None:
    """Infers strictly, and lets the model say what was found of its values and outputs.

    Raises:
        InputError: types or shapes contradict each other.
    """
    found = inferred(model, strict=True)
    del model.graph.value_info[:], model.graph.output[:]
    model.graph.value_info.extend(found.value_info)
    model.graph.output.extend(found.output)


def in_one_line(exc: Exception) -> str:
    """Returns the words of a library's exception, at most 400 characters, for a message of ours."""
    return " ".join(str(exc).split())[:400] or type(exc).__name__


def _copy_fields_(source: Any, target: Any, *, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "ListFields"):
            getattr(target, field.name).CopyFrom(value)
        elif isinstance(value, (str, bytes, int, float)):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend(value)

"""Whether what was read is a model that can be worked with; what libraries would crash on is found here first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto

from lrd_deploy.errors import InputError
from lrd_deploy.export.skeleton import in_one_line, skeleton
from lrd_deploy.export.tensor_data import (
    Place,
    all_nodes,
    all_tensors,
    byte_count,
    external_entries,
    is_beside,
    set_place_,
    tensor_fault,
)
from lrd_deploy.files import storage_errors


def check_read_(model: ModelProto, path: Path) -> None:
    """Checks a model that was read from a file, and makes its places of external data ones that can be read from.

    Args:
        model: as it was parsed.
        path: of its file; data beside it must lie in its folder or below.

    Raises:
        InputError: the model is invalid, or its weights are elsewhere, missing, or not as long as it says.
        StorageError: a file of weights cannot be looked at.
    """
    if not model.graph.node:
        raise invalid(path, "an empty graph", accepted="a graph with nodes")
    fault = next(_faults(model), None)
    if fault:
        raise invalid(path, fault)
    for tensor in all_tensors(model):
        if is_beside(tensor):
            set_place_(tensor, _checked_place(tensor, path), path.parent.absolute())
    try:
        onnx.checker.check_model(skeleton(model))
    except (onnx.checker.ValidationError, EncodeError, ValueError, RuntimeError) as exc:
        raise invalid(path, in_one_line(exc)) from exc


def invalid(path: Path, found: str, *, accepted: str = "a valid ONNX model") -> InputError:
    """Returns the error for a file that holds no model."""
    return InputError(
        f"reading the ONNX model '{path}'",
        found=found,
        accepted=accepted,
        remedy="export it again; a download may have been cut short",
    )


def _faults(model: ModelProto) -> Iterator[str]:
    """What no check of ONNX's own says in words, if it lives to say anything."""
    if _has_undecodable_text(model):
        yield "a name or another text that is not UTF-8"
    for tensor in all_tensors(model):
        if fault := tensor_fault(tensor):
            yield f"a tensor '{tensor.name}' with {fault}"
    given = Counter(tensor.name for tensor in model.graph.initializer)
    given.update(tensor.values.name for tensor in model.graph.sparse_initializer)
    if twice := next((name for name, count in given.items() if count > 1), None):
        yield f"two initializers called '{twice}'"
    declared = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.value_info)}
    for tensor in model.graph.initializer:
        if (kind := declared.get(tensor.name)) and kind != tensor.data_type:
            found, stated = map(_type_name, (tensor.data_type, kind))
            yield f"a weight '{tensor.name}' of {found} that the graph declares to be {stated}"
    if circle := _circle_of_functions(model):
        yield f"functions that call each other in a circle: {circle}"


def _has_undecodable_text(message: Any) -> bool:
    """protobuf hands out text that is not UTF-8 as bytes, and everything that takes names for text breaks."""
    left = [message]
    while left:
        for field, value in left.pop().ListFields():
            many = value if not isinstance(value, (str, bytes, int, float)) and not hasattr(value, "ListFields") else ()
            if field.message_type is not None:
                left.extend(many or [value])
            elif field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in many or [value]):
                return True
    return False


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else f"type {kind}"


def _circle_of_functions(model: ModelProto) -> str | None:
    """ONNX's shape inference would follow it until the stack overflows."""
    functions = {(function.domain, function.name): function for function in model.functions}
    calls = {
        name: {called for node in all_nodes(function.node) if (called := (node.domain, node.op_type)) in functions}
        for name, function in functions.items()
    }
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as circle:
        return " → ".join(name for _, name in circle.args[1])
    return None


def _checked_place(tensor: TensorProto, model: Path) -> Place:
    """Where a tensor's data is, relative to the model's folder; the file is there, and long enough."""
    entries = external_entries(tensor)
    location = entries.get("location", "")
    place, folder = PurePosixPath(location), model.parent.resolve()
    leaves = place.is_absolute() or ".." in place.parts or "\\" in location or "\0" in location or not place.parts
    if leaves or not (folder / place).resolve().is_relative_to(folder):
        raise InputError(
            f"looking for the weights of '{model}'",
            found=f"external data at '{location}'",
            accepted="a file in the model's own folder or below",
            remedy="save the model again with onnx.save(..., save_as_external_data=True), weights beside it",
        )
    with storage_errors("reading", model.parent / place):
        if not (folder / place).is_file():
            raise InputError(
                f"looking for the weights of '{model}'",
                found=f"no file '{location}' beside it",
                accepted="every file of external data that the model refers to",
                remedy="copy the weights together with the model",
            )
        size = (folder / place).stat().st_size
    length = byte_count(tensor)
    try:
        offset, said = int(entries.get("offset", 0)), int(entries.get("length", length))
    except ValueError:
        offset, said = -1, length
    if offset < 0 or said != length or offset + length > size:
        raise InputError(
            f"looking for the weights of '{model}'",
            found=f"{entries.get('length', length)} bytes from {entries.get('offset', 0)} on for '{tensor.name}', "
            f"which takes {length}, in '{location}' of {size} bytes",
            accepted="as many bytes as the tensor takes, within the file",
            remedy="copy the model and its weights again: one of them was cut short, or they are of two exports",
        )
    return Place(Path(place), offset, length)

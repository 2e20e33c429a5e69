"""The files that make up a model: an ONNX file with the weights beside it, or an engine. Weights are never loaded."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, sha256_of, storage_errors

MODEL_NAME, PLAN_NAME = "model.onnx", "model.plan"


@dataclass(frozen=True)
class ModelFiles:
    """Files by the place that they get in a version's folder; every one may be larger than memory."""

    files: dict[str, Path]

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of every file, by its place."""
        return {place: sha256_of(path) for place, path in self.files.items()}

    def copy_to(self, folder: Path) -> None:
        """Copies every file to its place under `folder`.

        Raises:
            StorageError: a file cannot be read, or the disk is full.
        """
        for place, path in self.files.items():
            with storage_errors("copying", path):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / place)


def read_graph(path: Path) -> ModelProto:
    """Returns the graph of an ONNX file, its external weights left on disk, after a structural check.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no valid ONNX model, or its weights lie outside its folder or are missing.
    """
    doing = f"reading the ONNX model '{path}'"
    try:
        model = onnx.load_model_from_string(read_bytes(path))
    except DecodeError as exc:
        raise _invalid(doing, exc) from exc
    if not model.graph.node:
        raise InputError(doing, found="an empty graph", accepted="a graph with nodes", remedy="export it again")
    for location in external_locations(model):
        _check_location(path, location)
    try:
        onnx.checker.check_model(str(path))  # the path, so that weights of any size stay where they are
    except (onnx.checker.ValidationError, ValueError, OSError) as exc:
        raise _invalid(doing, exc) from exc
    return model


def onnx_files(path: Path, model: ModelProto) -> ModelFiles:
    """Returns an ONNX file and those its weights are in; these keep their names, which the model refers to.

    Args:
        path: of the file.
        model: its graph, from `read_graph`.
    """
    places = {PurePosixPath(location).as_posix() for location in external_locations(model)}  # "./w" is "w"
    return ModelFiles({MODEL_NAME: path, **{place: path.parent / place for place in sorted(places)}})


def model_sha256(path: Path) -> str:
    """Returns the SHA-256 of an ONNX model: its file's, or where it has external weights that of all files' digests.

    Raises:
        StorageError, InputError: see `read_graph`.
    """
    digests = onnx_files(path, read_graph(path)).digests
    if len(digests) == 1:
        return digests[MODEL_NAME]
    return hashlib.sha256("\n".join(f"{place} {digest}" for place, digest in digests.items()).encode()).hexdigest()


def external_locations(model: ModelProto) -> tuple[str, ...]:
    """Returns where a model's external weights are, relative to its file, each place once."""
    found = (
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    )
    return tuple(dict.fromkeys(found))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


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
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors_of_graph(graph)


def _check_location(model: Path, location: str) -> None:
    place, folder = PurePosixPath(location), model.parent.resolve()
    leaves = place.is_absolute() or ".." in place.parts or not (folder / place).resolve().is_relative_to(folder)
    clashes = str(place) == MODEL_NAME and model.name != MODEL_NAME
    if leaves or clashes or "\\" in location or not place.parts:
        raise InputError(
            f"looking for the weights of '{model}'",
            found=f"external data at '{location}'",
            accepted=f"a file in the model's own folder or below, not called {MODEL_NAME}",
            remedy="save the model again with onnx.save(..., save_as_external_data=True), weights beside it",
        )
    if not (folder / place).is_file():
        raise InputError(
            f"looking for the weights of '{model}'",
            found=f"no file '{location}' beside it",
            accepted="every file of external data that the model refers to",
            remedy="copy the weights together with the model",
        )


def _invalid(doing: str, exc: Exception) -> InputError:
    return InputError(
        doing,
        found=" ".join(str(exc).split())[:400] or type(exc).__name__,
        accepted="a valid ONNX model",
        remedy="export it again; a download may have been cut short",
    )

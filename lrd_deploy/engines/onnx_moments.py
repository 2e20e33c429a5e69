"""Calibration data through an ONNX model: what the inputs of each of its layers look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from lrd_deploy.engines.backend import Arrays, SessionSettings
from lrd_deploy.engines.onnxruntime import OnnxRuntime
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import graph_inputs
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.metric import InputMoment, MomentSum
from lrd_deploy.records import TensorInfo

_VALUES_PER_PASS = 16  # as many activations of one batch are in memory at a time


def onnx_moments(model: ModelProto, layers: Sequence[Layer], batches: Sequence[Arrays]) -> dict[str, InputMoment]:
    """Returns the second moments of every factorisable layer's inputs, by layer name, as ONNX Runtime computes them.

    The model runs over all batches once for every 16 values that its layers read.

    Args:
        model: as `survey_onnx` saw it; left as it was.
        layers: as `survey_onnx` found them.
        batches: arrays by input name, one mapping per batch.

    Raises:
        InputError: no batch, inputs that are not the model's, values that are NaN, or a layer that has no node.
        BackendError: ONNX Runtime refuses the model.
    """
    check_batches(model, batches)
    sums = {layer.name: MomentSum(layer.name, layer.signature) for layer in layers if layer.may_be_factorised}
    readers = _readers(model, sums)
    for values in passes(readers):
        for value, array in activations(model, values, batches):
            for name in readers[value]:
                sums[name].update(array.astype(np.promote_types(array.dtype, np.float32)))
    return {name: total.moment() for name, total in sums.items()}


def _readers(model: ModelProto, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of the nodes that read a value as their data, by the name of the value."""
    nodes = {node.name: node for node in model.graph.node}
    readers: dict[str, list[str]] = {}
    for name in names:
        if name not in nodes:
            raise InputError(
                f"reading calibration data at the layer '{name}'",
                found=f"no node of this name in the graph '{model.graph.name}'",
                accepted="layers of this very model",
                remedy="survey the model again and pass what that returns",
            )
        readers.setdefault(nodes[name].input[0], []).append(name)
    return readers


def passes(readers: Iterable[str]) -> Iterator[list[str]]:
    """Yields the values to read, as many at a time as one pass may keep."""
    values = iter(readers)
    while chunk := list(islice(values, _VALUES_PER_PASS)):
        yield chunk


def activations(
    model: ModelProto, values: Sequence[str], batches: Sequence[Arrays]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yields, batch by batch, what these values hold: a graph input's is in the batch, the others are computed.

    Raises:
        BackendError: ONNX Runtime refuses the model or a batch.
    """
    fed = {tensor.name for tensor in graph_inputs(model)}
    computed = [value for value in values if value not in fed]
    session = OnnxRuntime().load_in_memory(_giving(model, computed), SessionSettings()) if computed else None
    for batch in batches:
        outputs = session.run(batch) if session else {}
        yield from ((value, batch[value] if value in fed else outputs[value]) for value in values)


def _giving(model: ModelProto, values: Sequence[str]) -> ModelProto:
    """A copy of the model whose outputs are these values; ONNX Runtime drops the nodes that none of them needs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(ValueInfoProto(name=value) for value in values)  # ONNX Runtime infers the types
    return copy


def check_batches(model: ModelProto, batches: Sequence[Arrays]) -> None:
    """Raises `InputError` where a batch cannot be fed to the model."""
    inputs = graph_inputs(model)
    for number, batch in enumerate(batches, 1):
        _check_inputs(inputs, batch, number)


def _check_inputs(inputs: Sequence[TensorInfo], batch: Arrays, number: int) -> None:
    """Raises where a batch cannot be fed to the model; a symbolic dimension takes any size."""
    expected = {tensor.name: tensor.shape for tensor in inputs}
    fits = batch.keys() == expected.keys() and all(_fits(batch[name].shape, shape) for name, shape in expected.items())
    if not fits:
        raise InputError(
            f"reading batch {number} of the calibration data",
            found=_listed({name: array.shape for name, array in batch.items()}),
            accepted=_listed(expected),
            remedy="name the arrays after the model's inputs and give them these shapes",
        )


def _fits(found: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(found) == len(expected) and all(
        isinstance(dim, str) or dim == size for size, dim in zip(found, expected, strict=True)
    )


def _listed(shapes: dict[str, tuple[int | str, ...]]) -> str:
    return ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in shapes.items()) or "no array"

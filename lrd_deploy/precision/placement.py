"""Where a quantised graph rounds its activations, and to which integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from lrd_deploy.precision.values import GraphValues, is_standard
from lrd_deploy.records import ActivationType

LARGEST = 127  # of a magnitude; −128 has no counterpart, and is not used


@dataclass(frozen=True)
class Grid:
    """The integers that a value is rounded to: `levels` steps above `zero_point`."""

    zero_point: np.int8 | np.uint8
    levels: int


@dataclass(frozen=True)
class Placement:
    """Values to round where they are made, because a kernel must give integers out; and who reads what was rounded.

    Attributes:
        at_source: values that are rounded although no quantised node reads them.
        for_all: every node reads what was rounded, not only the quantised ones.
        unsigned: values that are never negative, and are rounded to all of UINT8; None where everything is INT8.
    """

    at_source: frozenset[str] = frozenset()
    for_all: bool = False
    unsigned: frozenset[str] | None = None

    def grid(self, value: str) -> Grid:
        """Returns the integers of a value. The scale is symmetric: UINT8 around 128 has the values of INT8 around 0."""
        if self.unsigned is None:
            return Grid(np.int8(0), LARGEST)
        return Grid(np.uint8(0), 2 * LARGEST + 1) if value in self.unsigned else Grid(np.uint8(128), LARGEST)


def placement(
    model: ModelProto, chosen: Collection[int], magnitudes: Mapping[str, float], activation_type: ActivationType
) -> Placement:
    """Returns where to round for TensorRT ("int8"), which fuses by itself, or for ONNX Runtime ("uint8").

    ONNX Runtime's integer convolutions give integers out, after the Relu where one follows, and its integer sums need
    all their inputs so.

    Args:
        model: the float32 graph.
        chosen: positions of the nodes to quantise.
        magnitudes: by value; one that is always zero is not rounded.
        activation_type: of whom.
    """
    if activation_type == "int8":
        return Placement()
    values = GraphValues.of(model)
    untouched = values.captured | {output.name for output in model.graph.output}
    given = (_given(model.graph.node[place], model) for place in chosen if model.graph.node[place].op_type == "Conv")
    return Placement(
        at_source=frozenset(name for name in given if magnitudes.get(name, 0.0) > 0) - untouched,
        for_all=True,
        unsigned=frozenset(node.output[0] for node in model.graph.node if is_relu(node)),
    )


def is_relu(node: NodeProto) -> bool:
    """True for a Relu."""
    return is_standard(node) and node.op_type == "Relu"


def _given(node: NodeProto, model: ModelProto) -> str:
    """What a node gives out, after the Relu that alone reads it."""
    name = node.output[0]
    readers = [reader for reader in model.graph.node if name in reader.input]
    is_output = any(output.name == name for output in model.graph.output)
    return readers[0].output[0] if len(readers) == 1 and is_relu(readers[0]) and not is_output else name

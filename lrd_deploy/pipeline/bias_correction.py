"""Bias correction: no channel of a factorised layer is to be off on average.

Factors leave out a part of the weight, and inputs have means; together they shift every channel of the layer by a
constant, which the bias can take back. Layers are corrected in the order of the graph, each seeing what the corrected
ones before it give out.

Source: Nagel et al., arXiv 1906.04721, section 4.2, there for quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.onnx_moments import activations
from lrd_deploy.ranks.forms import factor_shapes
from lrd_deploy.records import BiasCorrection, Choice
from lrd_deploy.rewrite.shift_bias import biased_value, shift_bias_

_VALUES_PER_PASS = 16  # as many activations of one batch are in memory at a time
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Mean:
    """Averages of a value over samples and places: per channel, and the root of the mean square over all."""

    channels: Array  # (out,)
    rms: float


def corrected(
    dense: ModelProto, lowrank: ModelProto, choices: Mapping[str, Choice], batches: Sequence[Arrays]
) -> tuple[ModelProto, tuple[BiasCorrection, ...]]:
    """Returns the low-rank model with corrected biases, and what that did to each layer.

    Args:
        dense: the model before.
        lowrank: the same with factors, the last of which gives out what the layer did; left as it was.
        choices: the forms of the factorised layers, by node name.
        batches: calibration data, by input name.

    Raises:
        BackendError: ONNX Runtime refuses a model or a batch.
    """
    model = ModelProto()
    model.CopyFrom(lowrank)
    nodes = [node for node in dense.graph.node if node.name in choices]
    expected = _means(dense, dense, nodes, batches)
    before, reasons = {}, {}
    for node in nodes:
        before |= _means(model, dense, [node], batches)
        shift = expected[node.name].channels - before[node.name].channels
        reasons[node.name] = shift_bias_(model, _last_factor(node.name, choices[node.name]), shift)
    after = _means(model, dense, nodes, batches)
    return model, tuple(
        BiasCorrection(
            node=name,
            mean_error_before=_distance(before[name], expected[name]),
            mean_error_after=_distance(after[name], expected[name]),
            reason=reasons[name],
        )
        for name in reasons
    )


def _last_factor(layer: str, choice: Choice) -> str:
    return f"{layer}.{factor_shapes(1, 1, choice)[-1].name}"


def _means(
    model: ModelProto, dense: ModelProto, nodes: Sequence[NodeProto], batches: Sequence[Arrays]
) -> dict[str, _Mean]:
    """What a model gives out where the dense one has these nodes, on average, by node name."""
    values = {biased_value(dense.graph, node): node for node in nodes}
    sums = {node.name: _Sum(axis=1 if node.op_type == "Conv" else -1) for node in nodes}
    for chunk in _passes(values):
        for value, array in activations(model, chunk, batches):
            sums[values[value].name].update(array.astype(np.float64))
    return {name: total.mean() for name, total in sums.items()}


def _passes(values: Iterable[str]) -> Iterator[list[str]]:
    left = iter(values)
    while chunk := list(islice(left, _VALUES_PER_PASS)):
        yield chunk


@dataclass
class _Sum:
    """Adds up batches of one value, whose channels are on this axis; holds no batch."""

    axis: int
    channels: Array | float = 0.0
    squares: float = 0.0
    places: int = 0

    def update(self, array: Array) -> None:
        rows = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])  # (samples × places, out)
        self.channels = self.channels + rows.sum(0)
        self.squares += float((rows**2).mean(1).sum())
        self.places += len(rows)

    def mean(self) -> _Mean:
        return _Mean(self.channels / self.places, (self.squares / self.places) ** 0.5)


def _distance(found: _Mean, expected: _Mean) -> float:
    """Root of the mean square, over channels, of how far means are apart, against that of the expected values."""
    distance = float(np.sqrt(((found.channels - expected.channels) ** 2).mean()))
    return distance / expected.rms if expected.rms else distance

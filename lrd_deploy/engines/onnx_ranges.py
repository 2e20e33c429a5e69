"""Calibration data through an ONNX model: how large its values become, and which of them FP16 does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.onnx_moments import activations, check_batches, passes
from lrd_deploy.errors import InputError
from lrd_deploy.precision.ranges import Magnitudes
from lrd_deploy.precision.rounding import HalfRounding
from lrd_deploy.records import RangeMethod


def onnx_magnitudes(
    model: ModelProto, values: Sequence[str], batches: Sequence[Arrays], method: RangeMethod, percentile: float
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Returns the largest magnitude to scale each value by, as a method chooses it, and the values it saw too few of.

    Of these it is the largest one seen. The order of batches is nothing.

    The model runs over all batches once for every 16 values, and twice where a histogram is needed.

    Args:
        model: float32; left as it was.
        values: names of graph inputs or of what nodes give out.
        batches: arrays by input name, one mapping per batch.
        method: the largest one seen, a percentile of all, or the least divergence.
        percentile: of the method of that name.

    Raises:
        InputError: no batch, inputs that are not the model's, or values that are NaN or infinite.
        BackendError: ONNX Runtime refuses the model.
    """
    _check(model, batches)
    largest = dict.fromkeys(values, 0.0)
    for name, array in _finite(model, values, batches):
        largest[name] = max(largest[name], float(np.abs(array).max(initial=0.0)))
    if method == "minmax":
        return largest, ()
    histograms = {name: Magnitudes(peak) for name, peak in largest.items()}
    for name, array in _finite(model, values, batches):
        histograms[name].update(array)
    if method == "percentile":
        return {name: found.percentile(percentile) for name, found in histograms.items()}, ()
    clipped = {name: found.least_divergence() for name, found in histograms.items()}
    too_few = tuple(name for name, magnitude in clipped.items() if magnitude is None)
    return {**clipped, **{name: largest[name] for name in too_few}}, too_few


def half_problems(model: ModelProto, values: Sequence[str], batches: Sequence[Arrays]) -> dict[str, str]:
    """Returns, for every value that FP16 does not hold on these batches, why.

    Args:
        model: float32; left as it was.
        values: names of float32 values, graph inputs among them.
        batches: arrays by input name, one mapping per batch.

    Raises:
        InputError: no batch, or inputs that are not the model's.
        BackendError: ONNX Runtime refuses the model.
    """
    _check(model, batches)
    found = {name: HalfRounding() for name in values}
    for name, array in _all(model, values, batches):
        found[name].update(array)
    return {name: reason for name, rounding in found.items() if (reason := rounding.problem())}


def _check(model: ModelProto, batches: Sequence[Arrays]) -> None:
    if not batches:
        raise InputError(
            f"measuring ranges in the graph '{model.graph.name}'",
            found="no calibration data",
            accepted="at least one batch",
            remedy="pass an .npz file with an array per input",
        )
    check_batches(model, batches)


def _all(
    model: ModelProto, values: Sequence[str], batches: Sequence[Arrays]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for chunk in passes(values):
        yield from activations(model, chunk, batches)


def _finite(
    model: ModelProto, values: Sequence[str], batches: Sequence[Arrays]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for name, array in _all(model, values, batches):
        if not np.isfinite(array).all():
            raise InputError(
                f"measuring the range of '{name}'",
                found="values that are NaN or infinite on the calibration data",
                accepted="finite values",
                remedy="look for NaN in the data; a model that computes infinities cannot be quantised",
            )
        yield name, array

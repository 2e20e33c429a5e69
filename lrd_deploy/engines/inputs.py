"""Inputs to run a model on: the user's own, or random ones of the right shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.files import storage_errors
from lrd_deploy.records import TensorInfo

Batch = dict[str, NDArray[np.generic]]


def random_batches(model: Path, batches: Sequence[int]) -> list[Batch]:
    """Returns one random batch per size for an ONNX file: normal floats, zeros for everything else.

    The first dimension is the batch; other symbolic dimensions become 8.

    Raises:
        InputError: the model is invalid, or fixes another batch.
    """
    inputs = graph_inputs(read_model(model))
    random = np.random.default_rng(0)
    return [{tensor.name: _random(tensor, size, random) for tensor in inputs} for size in _allowed(inputs, batches)]


def stored_batches(path: Path, batches: Sequence[int]) -> list[Batch]:
    """Returns batches cut from an .npz file of arrays by input name.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no .npz file of plain arrays.
    """
    with storage_errors("reading", path):
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (ValueError, EOFError, AttributeError) as exc:
            raise InputError(
                f"reading the inputs '{path}'",
                found=str(exc),
                accepted="an .npz file with one array per input, by name",
                remedy="write it with numpy.savez(path, input_name=array)",
            ) from exc
    return [{name: repeated(array, size) for name, array in arrays.items()} for size in batches]


def repeated(array: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """Returns the first `batch` samples, starting over where there are fewer."""
    return np.take(array, range(batch), axis=0, mode="wrap")


def _allowed(inputs: Sequence[TensorInfo], batches: Sequence[int]) -> Sequence[int]:
    """The sizes asked for, or the one that the model fixes."""
    fixed = {tensor.shape[0] for tensor in inputs if tensor.shape and isinstance(tensor.shape[0], int)}
    return (int(fixed.pop()),) if fixed else batches


def _random(tensor: TensorInfo, batch: int, random: np.random.Generator) -> NDArray[np.generic]:
    shape = tuple(8 if isinstance(dim, str) else dim for dim in tensor.shape)
    shape = (batch, *shape[1:]) if shape else shape
    if tensor.dtype.startswith("float"):
        return random.standard_normal(shape).astype(tensor.dtype)
    return np.zeros(shape, tensor.dtype)

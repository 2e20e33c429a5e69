"""One batch to time a model on: sizes that nobody stated are not made up, since the latency would be theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrd_deploy.engines.inputs import Batch, random_batches, stored_batches
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.records import TensorInfo


def timed_batch(model: Path, batch: int, stored: Path | None) -> Batch:
    """Returns one batch of stored inputs, or a random one where the model fixes every size but the batch.

    Args:
        model: an ONNX file.
        batch: how many samples; stored ones are cut, or repeated.
        stored: an .npz file of arrays by input name.

    Raises:
        InputError: the model or the file is invalid, the file lacks an input or has others, or sizes are unknown.
        StorageError: a file cannot be read.
    """
    inputs = graph_inputs(read_model(model))
    if stored is not None:
        (arrays,) = stored_batches(stored, [batch], inputs)
        _check_names(inputs, arrays, stored)
        return arrays
    _check_sizes(inputs, model)
    return random_batches(model, [batch])[0]


def _check_names(inputs: Sequence[TensorInfo], arrays: Batch, stored: Path) -> None:
    wanted = {tensor.name for tensor in inputs}
    if arrays.keys() != wanted:
        raise InputError(
            f"reading the inputs '{stored}'",
            found=f"arrays named {_listed(arrays)}",
            accepted=f"one for each input of the model: {_listed(wanted)}",
            remedy="name the arrays after the inputs, as in numpy.savez(path, input_name=array)",
        )


def _check_sizes(inputs: Sequence[TensorInfo], model: Path) -> None:
    unknown = [
        f"'{dim}' of {tensor.name}[{', '.join(map(str, tensor.shape))}]"
        for tensor in inputs
        for dim in tensor.shape[1:]
        if isinstance(dim, str)
    ]
    if unknown:
        raise InputError(
            f"making inputs to time '{model}' on",
            found=f"sizes that the model does not fix: {'; '.join(unknown)}",
            accepted="fixed sizes after the batch, since the latency depends on them",
            remedy="pass inputs of the size that you deploy: numpy.savez('x.npz', input_name=array), --inputs x.npz",
        )


def _listed(names: object) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "nothing"

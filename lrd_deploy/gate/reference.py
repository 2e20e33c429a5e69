"""What a candidate is compared with: a model file, samples to run it on, and the outputs it should give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.engines.inputs import Batch, random_batches, stored_arrays
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.export.model_files import model_sha256
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.gate.baseline import MANIFEST, age_in_days, is_bundle, read_baseline
from lrd_deploy.records import GateArtefact, TensorInfo

_RANDOM_SAMPLES = 64
_LABELS = "labels"
_STALE_DAYS = 30
Outputs = tuple[NDArray[np.generic], ...]


@dataclass(frozen=True)
class Samples:
    """Inputs by name, and their labels where there are any. All of one length along the first axis."""

    inputs: Batch
    labels: NDArray[np.integer] | None = None

    def __len__(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Reference:
    """A model to compare with. `expected` are its stored outputs on the samples; None: the model itself says."""

    artefact: GateArtefact
    model: Path
    samples: Samples
    expected: Outputs | None = None
    notes: tuple[str, ...] = ()


def open_reference(path: Path, inputs: Path | None) -> Reference | None:
    """Returns a baseline's bundle, or a plain ONNX file, ready to compare with; None for a bundle that is not there.

    Args:
        path: a folder that `baseline promote` made, or an ONNX file.
        inputs: an .npz file of samples, with an array `labels` if wanted; None: the bundle's, or random ones.

    Raises:
        UsageError: the path is neither.
        StorageError: a file cannot be read.
        InputError: a file of the bundle is not what its manifest says; the samples do not fit the model.
    """
    if path.suffix == ".onnx":
        samples = read_samples(inputs, path) if inputs else random_samples(path)
        return Reference(artefact_of(path), path, samples)
    if not path.exists():
        return None
    if not is_bundle(path):
        raise UsageError(
            f"opening the baseline '{path}'",
            found="a stored number or something else" if path.is_file() else f"a folder without {MANIFEST}",
            accepted="a folder that 'lrd-deploy baseline promote' made, or an ONNX file: both sides are measured anew",
            remedy="pass the folder that holds the manifest",
        )
    return _from_bundle(path, inputs)


def _from_bundle(path: Path, inputs: Path | None) -> Reference:
    bundle = read_baseline(path)
    days = age_in_days(bundle.manifest.promotion.promoted_at)
    stale = (f"the baseline '{path}' is {days} days old: promote a newer one",) if days > _STALE_DAYS else ()
    artefact = GateArtefact(name=str(path), sha256=bundle.manifest.promotion.model_sha256)
    if inputs:
        return Reference(artefact, bundle.model, read_samples(inputs, bundle.model), notes=stale)
    expected = tuple(stored_arrays(bundle.outputs).values())
    return Reference(artefact, bundle.model, read_samples(bundle.inputs, bundle.model), expected, stale)


def artefact_of(model: Path) -> GateArtefact:
    """Returns an ONNX file's name and digest."""
    return GateArtefact(name=str(model), sha256=model_sha256(model))


def read_samples(path: Path, model: Path) -> Samples:
    """Returns the samples of an .npz file for a model; an array `labels` that is no input holds the labels.

    Raises:
        StorageError: the file cannot be read.
        InputError: an input is missing or unknown, lengths differ, a value is NaN or infinite, labels are no integers.
    """
    arrays = stored_arrays(path)
    tensors = {tensor.name: tensor for tensor in graph_inputs(read_model(model))}
    names = list(tensors)
    labels = arrays.pop(_LABELS) if _LABELS in arrays and _LABELS not in names else None
    misfits = (_misfit(arrays[name], tensor) for name, tensor in tensors.items())
    problem = _problem(arrays, labels, names) or next(filter(None, misfits), None)
    if problem:
        raise InputError(
            f"reading the samples '{path}' for '{model}'",
            found=problem,
            accepted=f"arrays of one length, in the model's types: {', '.join(names)}; '{_LABELS}' are integers",
            remedy="write them with numpy.savez(path, input_name=array, labels=integers)",
        )
    return Samples({name: arrays[name] for name in names}, labels)


def random_samples(model: Path) -> Samples:
    """Returns random samples in the shape of a model's inputs."""
    return Samples(random_batches(model, [_RANDOM_SAMPLES])[0])


def _misfit(array: NDArray[np.generic], tensor: TensorInfo) -> str | None:
    """What keeps an array from being samples of an input; the first axis may have any length."""
    wanted = f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"
    free = [isinstance(dim, str) or dim == size for dim, size in zip(tensor.shape[1:], array.shape[1:], strict=False)]
    if array.dtype.name == tensor.dtype and array.ndim == len(tensor.shape) and all(free):
        return None
    return f"'{tensor.name}' is {array.dtype.name}[{', '.join(map(str, array.shape))}], the model takes {wanted}"


def _problem(arrays: Mapping[str, NDArray[np.generic]], labels: NDArray | None, names: list[str]) -> str | None:
    if set(arrays) != set(names):
        return f"arrays {', '.join(arrays) or 'none'}"
    lengths = {name: len(array) for name, array in arrays.items()}
    if labels is not None:
        lengths[_LABELS] = len(labels)
    if len(set(lengths.values())) > 1:
        return ", ".join(f"{length} samples of '{name}'" for name, length in lengths.items())
    if labels is not None and (labels.dtype.kind not in "iu" or labels.ndim != 1):
        return f"labels of type {labels.dtype} in {labels.ndim} dimensions"
    sick = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    return f"NaN or infinity in '{sick[0]}'" if sick else None

"""Warm-up inputs as files: raw values that Triton feeds an instance before it serves, and that we check it with.

Triton makes as many requests of one sample as the batch has and feeds each of them the first sample of the file, so the
file may hold more: we keep as many as the largest batch, and check with all of them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.engines.inputs import Batch, repeated
from lrd_deploy.errors import InputError, LrdError, raise_all
from lrd_deploy.files import read_bytes, write_bytes
from lrd_deploy.records import StoredInput, TensorInfo
from lrd_deploy.serving.tensors import ServedGraph, ServedTensor

WARMUP_FOLDER = "warmup"
Array = NDArray[np.generic]
_NAME_ARRAYS = "name the arrays after the model's inputs and give them these types and shapes"


def store_inputs(
    arrays: Mapping[str, Array], graph: ServedGraph, samples: int, folder: Path
) -> tuple[StoredInput, ...]:
    """Writes inputs to the warm-up folder under `folder`; files are named by their content.

    Args:
        arrays: by input name; of a model that takes batches as many samples as there are, else one whole input.
        graph: what the model takes.
        samples: how many are kept where the model takes batches; text is kept once, as Triton reads it.
        folder: of the model.

    Raises:
        InputError: an array is missing, left over, of another type or shape, or holds NaN or infinity.
        StorageError: a file cannot be written.
    """
    _check_arrays(arrays, graph)
    kept = 1 if graph.has_text else samples
    stored = []
    for position, tensor in enumerate(graph.inputs):
        array = repeated(arrays[tensor.info.name], kept) if graph.batched else arrays[tensor.info.name]
        data = _raw(array)
        name = f"input{position}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
        write_bytes(folder / WARMUP_FOLDER / name, data)
        shape = array.shape[1:] if graph.batched else array.shape
        stored.append(
            StoredInput(
                name=tensor.info.name,
                dtype=tensor.info.dtype,
                shape=shape,
                samples=kept if graph.batched else None,
                file=name,
            )
        )
    return tuple(stored)


def stored_batch(folder: Path, inputs: Sequence[StoredInput], batch: int) -> Batch:
    """Returns a batch of stored warm-up inputs, starting over where there are fewer samples.

    Args:
        folder: of the model.
        inputs: which, from its manifest.
        batch: how many samples; without meaning where the model takes no batches.

    Raises:
        StorageError: a file cannot be read.
        InputError: a file does not hold what its record says.
    """
    arrays = {stored.name: _read(folder / WARMUP_FOLDER / stored.file, stored) for stored in inputs}
    batched = all(stored.samples is not None for stored in inputs)
    return {name: repeated(array, batch) if batched else array for name, array in arrays.items()}


def _read(path: Path, stored: StoredInput) -> Array:
    data = read_bytes(path)
    shape = stored.shape if stored.samples is None else (stored.samples, *stored.shape)
    try:
        if stored.dtype == "object":
            return np.array(_texts(data), dtype=object).reshape(shape)  # (samples, …)
        return np.frombuffer(data, np.dtype(stored.dtype).newbyteorder("<")).reshape(shape)  # (samples, …)
    except (ValueError, struct.error) as exc:
        raise InputError(
            f"reading the warm-up input '{path}'",
            found=f"{len(data)} bytes: {exc}",
            accepted=f"{stored.dtype} values of shape {shape}",
            remedy="package the model again",
        ) from exc


def _raw(array: Array) -> bytes:
    if array.dtype.kind in "OUS":
        return b"".join(struct.pack("<I", len(text)) + text for text in map(_as_bytes, array.ravel().tolist()))
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _texts(data: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return texts


def _check_arrays(arrays: Mapping[str, Array], graph: ServedGraph) -> None:
    known = {tensor.info.name for tensor in graph.inputs}
    problems: list[LrdError] = [
        _misfit(name, "an array that is no input of the model", f"the inputs {', '.join(sorted(known))}")
        for name in arrays
        if name not in known
    ]
    problems += [problem for tensor in graph.inputs if (problem := _problem(arrays, tensor))]
    if problems:
        raise_all("checking the warm-up inputs", problems)


def _problem(arrays: Mapping[str, Array], tensor: ServedTensor) -> InputError | None:
    info = tensor.info
    expected = f"{'text' if info.dtype == 'object' else info.dtype} of shape ({', '.join(map(str, info.shape))})"
    if info.name not in arrays:
        return _misfit(info.name, "no array for it", expected)
    array = arrays[info.name]
    if not (array.dtype.kind in "OUS" if info.dtype == "object" else array.dtype.name == info.dtype):
        return _misfit(info.name, f"values of type {array.dtype.name}", expected)
    if not _fits(array.shape, info):
        return _misfit(info.name, f"shape {array.shape}", expected)
    bad = int((~np.isfinite(array)).sum()) if array.dtype.kind == "f" else 0
    if bad:
        found = f"{bad} of {array.size} values NaN or infinite"
        return _misfit(info.name, found, "finite values", "give inputs as the model gets them in service")
    return None


def _fits(shape: tuple[int, ...], info: TensorInfo) -> bool:
    alike = len(shape) == len(info.shape) and all(shape)
    return alike and all(isinstance(size, str) or size == found for size, found in zip(info.shape, shape, strict=True))


def _misfit(name: str, found: str, accepted: str, remedy: str = _NAME_ARRAYS) -> InputError:
    return InputError(f"checking the warm-up input '{name}'", found=found, accepted=accepted, remedy=remedy)

"""Inputs to run a model on: the user's own, or random ones of the right shape."""

from __future__ import annotations

import zipfile
from collections.abc import Container, Mapping, Sequence
from itertools import accumulate
from math import ceil, prod
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.errors import InputError
from lrd_deploy.export.embedding_tables import table_rows
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.files import storage_errors, write_whole
from lrd_deploy.records import TensorInfo

Batch = dict[str, NDArray[np.generic]]
COMPARED_BATCHES = (1, 2, 7)
_MOST_SAMPLES = 32  # in a batch, where all samples are run
_MOST_VALUES = 2**28  # of one random input: 2 GiB while it is drawn


def random_batches(model: Path, batches: Sequence[int]) -> list[Batch]:
    """Returns one random batch per size for an ONNX file: normal floats, ids of the tables that integers are read in.

    Masks let everything through; other integers are zero. The first dimension is the batch; other symbolic dimensions
    become 8.

    Raises:
        InputError: the model is invalid, or fixes another batch.
    """
    graph = read_model(model)
    return random_inputs(graph_inputs(graph), batches, model, table_rows(graph))


def random_inputs(
    inputs: Sequence[TensorInfo], batches: Sequence[int], model: Path, rows: Mapping[str, int] | None = None
) -> list[Batch]:
    """Returns one random batch per size for these inputs, as `random_batches` does for a file.

    Args:
        inputs: of the model.
        batches: sizes.
        model: what to call it in messages.
        rows: of the table that an input's integers are read in, by input, where known; see `table_rows`.

    Raises:
        InputError: an input takes text, or there is none.
    """
    _check_numbers(inputs, model)
    random, sizes, rows = np.random.default_rng(0), allowed_batches(inputs, batches), rows or {}
    return [{tensor.name: _random(tensor, size, random, rows) for tensor in inputs} for size in sizes]


def random_batches_of(
    model: Path, batch: int, count: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[Batch]:
    """Returns so many different random batches of one size, which is the model's own where it fixes one.

    Inputs have these `shapes` where they are given by name, but for the batch: a first dimension that is open, and
    others of that name.

    Raises:
        InputError: the model is invalid, or takes no numbers.
    """
    graph = read_model(model)
    inputs, random, rows = graph_inputs(graph), np.random.default_rng(0), table_rows(graph)
    _check_numbers(inputs, model)
    (size,) = allowed_batches(inputs, (batch,))
    names = {tensor.shape[0] for tensor in inputs if tensor.shape and isinstance(tensor.shape[0], str)}
    shaped = [_sized(tensor, (shapes or {}).get(tensor.name, tensor.shape), names, size) for tensor in inputs]
    return [{tensor.name: _random(tensor, size, random, rows) for tensor in shaped} for _ in range(count)]


def stored_batches(path: Path, batches: Sequence[int], inputs: Sequence[TensorInfo] = ()) -> list[Batch]:
    """Returns batches cut from an .npz file of arrays by input name, in the types of `inputs`.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no .npz file of plain arrays, or an array would lose values in its input's type.
    """
    arrays = stored_arrays(path, inputs)
    return [{name: repeated(array, size) for name, array in arrays.items()} for size in batches]


def one_batch(model: Path, batch: int, samples: Path | None) -> Batch:
    """Returns one batch for an ONNX file: of an .npz file's first samples, or a random one.

    Raises:
        StorageError: a file cannot be read.
        InputError: the model or the .npz file is invalid.
    """
    if samples is None:
        return random_batches(model, (batch,))[0]
    return stored_batches(samples, (batch,), graph_inputs(read_model(model)))[0]


def compared_on(model: Path, samples: Path | None) -> list[Batch]:
    """Returns what to compare an ONNX file's outputs on: all samples of an .npz file, or random ones; in batches.

    Raises:
        StorageError: a file cannot be read.
        InputError: the model or the .npz file is invalid.
    """
    if samples is None:
        return random_batches(model, COMPARED_BATCHES)
    inputs = graph_inputs(read_model(model))
    return sample_batches(stored_arrays(samples, inputs), inputs, COMPARED_BATCHES)


def sample_batches(
    arrays: Mapping[str, NDArray[np.generic]], inputs: Sequence[TensorInfo], sizes: Sequence[int]
) -> list[Batch]:
    """Returns every sample once: batches of these sizes, then of 32, the last one of what is left.

    Where the model fixes its batch all have that size, and the last one starts over at the first sample; so do the
    first ones where there are fewer samples than they take.

    Args:
        arrays: by input name, a sample per row.
        inputs: of the model.
        sizes: that a model of any batch is tried at.
    """
    count = max(map(len, arrays.values()))
    fixed = inputs[0].shape[0] if inputs and inputs[0].shape else None
    if isinstance(fixed, int):
        cuts = [fixed] * ceil(count / fixed)
    else:
        left = max(count - sum(sizes), 0)
        cuts = [*sizes, *[_MOST_SAMPLES] * (left // _MOST_SAMPLES), left % _MOST_SAMPLES]
    ends = accumulate(cuts)
    rows = [range(end - size, end) for end, size in zip(ends, cuts, strict=True) if size]
    return [{name: np.take(array, own, axis=0, mode="wrap") for name, array in arrays.items()} for own in rows]


def stored_arrays(path: Path, inputs: Sequence[TensorInfo] = ()) -> Batch:
    """Returns the arrays of an .npz file by name, each of one sample or more, in the types of the inputs they name.

    Floats become floats of another width, integers become integers that hold them, and other types those that hold all
    of their values, as uint8 becomes float32.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no .npz file of plain arrays, or an array would lose values in its input's type.
    """
    types = {tensor.name: tensor.dtype for tensor in inputs}
    arrays = _read_arrays(path)
    return {name: _cast(array, types.get(name), name, path) for name, array in arrays.items()}


def _read_arrays(path: Path) -> Batch:
    with storage_errors("reading", path):
        with path.open("rb") as stream:
            start = stream.read(len(np.lib.format.MAGIC_PREFIX))
        try:
            if start == np.lib.format.MAGIC_PREFIX:
                raise ValueError("one array without a name, as numpy.save writes it")
            if not zipfile.is_zipfile(path):
                raise ValueError("no .npz archive")
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if not arrays or any(array.ndim == 0 or len(array) == 0 for array in arrays.values()):
                raise ValueError("an array without a sample, or no array at all")
        except (ValueError, EOFError, AttributeError, TypeError, BadZipFile) as exc:
            raise InputError(
                f"reading the inputs '{path}'",
                found=str(exc),
                accepted="an .npz file with one array per input, by name",
                remedy="write it with numpy.savez('samples.npz', input_name=array), a sample per row",
            ) from exc
    return arrays


def _cast(array: NDArray[np.generic], dtype: str | None, name: str, path: Path) -> NDArray[np.generic]:
    if dtype is None or dtype in {"object", "unknown"} or array.dtype == np.dtype(dtype):
        return array
    target = np.dtype(dtype)
    if not _holds(target, array):
        raise InputError(
            f"reading the inputs '{path}'",
            found=f"'{name}' of type {array.dtype}",
            accepted=f"{target}, which the model takes, or a type whose values it holds",
            remedy=f"store it with {name}.astype('{target}'), scaled as in training",
        )
    return array.astype(target)


def _holds(target: np.dtype[np.generic], array: NDArray[np.generic]) -> bool:
    """True where the type has these values, floats rounded to it."""
    if np.can_cast(array.dtype, target, "safe"):
        return True
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(target, np.integer):
        limits = np.iinfo(target)
        return array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)
    if np.issubdtype(array.dtype, np.floating) and np.issubdtype(target, np.floating):
        with np.errstate(over="ignore"):
            return bool((np.isfinite(array.astype(target)) | ~np.isfinite(array)).all())
    return False


def save_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> Path:
    """Writes an .npz file, whole or not at all, and returns its path; equal arrays give equal bytes."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:  # np.savez takes some names for its own arguments
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    return write_whole(path, write)


def repeated(array: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    """Returns the first `batch` samples, starting over where there are fewer."""
    return np.take(array, range(batch), axis=0, mode="wrap")


def allowed_batches(inputs: Sequence[TensorInfo], batches: Sequence[int]) -> Sequence[int]:
    """Returns the sizes asked for, or the one that the first input fixes."""
    first = inputs[0].shape
    return (first[0],) if first and isinstance(first[0], int) else batches


def _check_numbers(inputs: Sequence[TensorInfo], model: Path) -> None:
    if not inputs or any(tensor.dtype in {"object", "unknown"} for tensor in inputs):
        raise InputError(
            f"making inputs for '{model}'",
            found=", ".join(f"{tensor.name} ({tensor.dtype})" for tensor in inputs) or "a model without inputs",
            accepted="at least one input, all of numbers",
            remedy="pass real inputs with --inputs, or take another model",
        )


def _sized(tensor: TensorInfo, shape: Sequence[int | str], batches: Container[int | str], size: int) -> TensorInfo:
    """The tensor in this shape, with the batch wherever its own dimension has one of the batch's names."""
    own = (*tensor.shape, *(0 for _ in shape[len(tensor.shape) :]))
    dims = (size if dim in batches else given for dim, given in zip(own, shape, strict=False))
    return tensor.model_copy(update={"shape": tuple(dims)})


def _random(
    tensor: TensorInfo, batch: int, random: np.random.Generator, rows: Mapping[str, int]
) -> NDArray[np.generic]:
    free = (batch, *(8 for _ in tensor.shape[1:]))
    shape = tuple(size if isinstance(dim, str) else dim for dim, size in zip(tensor.shape, free, strict=False))
    if prod(shape) > _MOST_VALUES:
        raise InputError(
            f"making a random input '{tensor.name}'",
            found=f"a shape of {' × '.join(map(str, shape))}",
            accepted=f"at most {_MOST_VALUES} values",
            remedy="pass real inputs with --inputs, or correct the shape that the graph gives it",
        )
    if tensor.dtype.startswith("float"):
        return random.standard_normal(shape).astype(tensor.dtype)
    if tensor.name in rows:
        return random.integers(rows[tensor.name], size=shape).astype(tensor.dtype)
    lets_through = tensor.dtype == "bool" or "mask" in tensor.name
    return np.full(shape, lets_through, tensor.dtype)

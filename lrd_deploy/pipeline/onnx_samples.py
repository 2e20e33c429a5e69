"""Samples to compress an ONNX file by, and others to judge the result on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.inputs import allowed_batches, random_batches_of, repeated, stored_arrays
from lrd_deploy.engines.profile import shapes_at
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.records import DimensionRange, TensorInfo

FEWEST_SAMPLES = 8  # to calibrate by
_HELD_OUT = 4  # one sample in so many
_RANDOM_BATCHES, _RANDOM_SAMPLES = 8, 64
_BATCH = 8


@dataclass(frozen=True)
class Samples:
    """Batches by input name, how many different samples are in them, and in words where they come from."""

    calibration: tuple[Arrays, ...]
    held_out: tuple[Arrays, ...]
    source: str
    calibration_count: int
    held_out_count: int


def random_samples(model: Path, batch: int, dimensions: Mapping[str, DimensionRange] | None = None) -> Samples:
    """Returns random inputs, for want of real ones: at least 64 samples to calibrate by, and a third of that held out.

    `dimensions` are the sizes of dynamic dimensions but the batch, as `shapes_at` takes them.

    Raises:
        InputError: the model is invalid, or takes no numbers.
        UsageError, Problems: a dynamic dimension has no size; see `shapes_at`.
    """
    shapes = shapes_at(read_model(model), batch, dimensions)
    count = max(_RANDOM_BATCHES, -(-_RANDOM_SAMPLES // batch))
    held_out = -(-count // (_HELD_OUT - 1))
    batches = random_batches_of(model, batch, count + held_out, shapes)
    source = "random inputs, for want of calibration data: errors on real inputs will differ"
    size = _size(batches[0])
    return Samples(tuple(batches[:count]), tuple(batches[count:]), source, count * size, held_out * size)


def stored_samples(path: Path, batch: int, inputs: Sequence[TensorInfo] = ()) -> Samples:
    """Returns the samples of an .npz file of arrays by input name in batches of one size; the last quarter is held out.

    Arrays get the types of the `inputs` that they name; see `stored_arrays`.

    Samples that do not fill a last batch are left out; where none would be full, one starts over.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no .npz file of plain arrays that the inputs take, or holds too few samples.
    """
    whole = _stored(path, inputs)
    count = _size(whole)
    if count < 2:
        raise InputError(
            f"reading the calibration data '{path}'",
            found="1 sample",
            accepted="at least 2: some to calibrate by, and others to judge the result on",
            remedy="store more samples; a few hundred are enough",
        )
    first_held_out = count - max(count // _HELD_OUT, 1)
    parts = [range(first_held_out), range(first_held_out, count)]
    calibration, held_out = (tuple(_batches(whole, part, batch)) for part in parts)
    counts = [len(part) if len(part) < batch else len(part) // batch * batch for part in parts]
    return Samples(calibration, held_out, f"'{path.name}'", *counts)


def samples_of(model: Path, path: Path) -> Samples:
    """Returns the samples of an .npz file in batches of 8, or of the one size that the model takes.

    Raises:
        StorageError: a file cannot be read.
        InputError: the model is invalid; the file is no .npz file of plain arrays, or holds too few samples.
    """
    inputs = graph_inputs(read_model(model))
    return stored_samples(path, allowed_batches(inputs, (_BATCH,))[0] if inputs else _BATCH, inputs)


def check_enough(samples: Samples, doing: str) -> None:
    """Raises `InputError` where there are fewer samples to calibrate by than tell more than chance."""
    if samples.calibration_count < FEWEST_SAMPLES:
        raise InputError(
            doing,
            found=f"{samples.calibration_count} samples to calibrate by",
            accepted=f"at least {FEWEST_SAMPLES} in full batches, beside the quarter that is held out",
            remedy="store more samples; a few hundred are enough",
        )


def refuse_sizes_beside_data(dimensions: Mapping[str, DimensionRange], data: Path | None) -> None:
    """Raises `UsageError` where sizes are given and stored samples too, which have theirs."""
    if dimensions and data is not None:
        raise UsageError(
            f"reading the calibration data '{data}'",
            found=f"--dim for '{next(iter(dimensions))}' beside it",
            accepted="one of the two: layers are timed at the sizes that the arrays have",
            remedy="leave out --dim, or store arrays of the sizes that you deploy",
        )


def _stored(path: Path, inputs: Sequence[TensorInfo]) -> Arrays:
    """All samples of the file, as many as its shortest array has."""
    arrays, known = stored_arrays(path, inputs), {tensor.name for tensor in inputs}
    count = min(len(array) for name, array in arrays.items() if name in known or not known & arrays.keys())
    for name, array in arrays.items():
        if name not in known and len(array) < count:
            raise InputError(
                f"reading the calibration data '{path}'",
                found=f"the array '{name}' of {len(array)} rows, which is no input of the model",
                accepted=f"one array per input ({', '.join(map(repr, sorted(known)))}), a sample per row",
                remedy=f"leave out '{name}', or name it after the input that it is for",
            )
    return {name: array[:count] for name, array in arrays.items()}


def _batches(whole: Arrays, samples: Sequence[int], batch: int) -> list[Arrays]:
    """Full batches of these samples; one that starts over where they do not fill any."""
    chosen = {name: array[samples[0] : samples[-1] + 1] for name, array in whole.items()}
    if len(samples) < batch:
        return [{name: repeated(array, batch) for name, array in chosen.items()}]
    starts = range(0, len(samples) - batch + 1, batch)
    return [{name: array[start : start + batch] for name, array in chosen.items()} for start in starts]


def _size(batch: Arrays) -> int:
    return len(next(iter(batch.values())))

"""Which shapes an engine takes: a size, or a range of sizes, for every dynamic dimension of every input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnx import ModelProto
from pydantic import ValidationError

from lrd_deploy.engines.backend import BuildSettings
from lrd_deploy.errors import InputError, LrdError, UsageError, raise_all
from lrd_deploy.export.onnx_file import graph_inputs
from lrd_deploy.records import DimensionRange, InputProfile, TensorInfo

_DOING = "choosing the shapes of the inputs"
_SIZE = "NAME=SIZE, such as sequence=128, a size of 1 and more"
_RANGE = "NAME=SIZE or NAME=MIN:OPT:MAX, such as sequence=16:128:512, sizes of 1 and more that rise"


def input_profiles(model: ModelProto, settings: BuildSettings) -> tuple[InputProfile, ...]:
    """Returns the shapes that the engine takes, one entry per input.

    A dynamic first dimension is the batch. Every other dynamic dimension must be given: by its name in the graph,
    which holds wherever the name occurs, or as INPUT[AXIS], which holds there alone and comes first.

    Raises:
        UsageError: a dynamic dimension has no sizes, or sizes were given for none that there is.
        InputError: an input has no shape at all.
        Problems: several of these.
    """
    inputs = graph_inputs(model)
    given = _with_batch(inputs, settings)
    problems: list[LrdError] = [_shapeless(name) for name in _without_shape(model, inputs)]
    dynamic = [(tensor, axis) for tensor in inputs for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)]
    problems += [_not_given(tensor, axis) for tensor, axis in dynamic if _given(given, tensor, axis) is None]
    known = {name for tensor, axis in dynamic for name in _names(tensor, axis)}
    problems += [_unknown(name, inputs) for name in settings.dimensions if name not in known]
    if problems:
        raise_all(_DOING, problems)
    return tuple(_profile(tensor, given) for tensor in inputs)


def shapes_at(
    model: ModelProto, batch: int, dimensions: Mapping[str, DimensionRange] | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns the shape that each input has in a deployment of this batch, by name.

    Args:
        model: a size that it fixes holds, its batch too.
        batch: of a dynamic first dimension.
        dimensions: the size of every other dynamic dimension, named as for an engine.

    Raises:
        UsageError: a range where one size is wanted, or a size for the batch.
        InputError, Problems: see `input_profiles`.
    """
    dimensions = dimensions or {}
    ranged = next((name for name, sizes in dimensions.items() if sizes.min != sizes.max), None)
    if ranged is not None:
        raise UsageError(
            _DOING,
            found=f"a range of sizes for '{ranged}'",
            accepted=f"one size, such as {ranged}={dimensions[ranged].opt}: a layer is timed at one",
            remedy="correct --dim",
        )
    _refuse_batch(graph_inputs(model), dimensions)
    settings = BuildSettings(min_batch=batch, opt_batch=batch, max_batch=batch, dimensions=dict(dimensions))
    return {profile.name: profile.opt for profile in input_profiles(model, settings)}


def parse_dimension(text: str, *, ranges: bool = True) -> tuple[str, DimensionRange]:
    """Reads `sequence=128` and `tokens[1]=128`, and where `ranges` may be said `sequence=16:128:512` too.

    Raises:
        UsageError: it is none of these, or its sizes do not rise.
    """
    name, separator, sizes = text.rpartition("=")
    numbers = sizes.split(":")
    lengths, accepted = ((1, 3), _RANGE) if ranges else ((1,), _SIZE)
    if not separator or not name or len(numbers) not in lengths or not all(map(str.isdecimal, numbers)):
        raise UsageError(_DOING, found=f"'{text}'", accepted=accepted, remedy="correct --dim")
    return name, dimension_range([int(number) for number in numbers], f"'{text}'")


def parse_dimensions(texts: Sequence[str], *, ranges: bool = True) -> dict[str, DimensionRange]:
    """Reads several of them, as `parse_dimension` does one.

    Raises:
        UsageError: one is none, or a dimension comes twice.
    """
    found = [parse_dimension(text, ranges=ranges) for text in texts]
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            _DOING,
            found=f"--dim for '{twice[0]}' more than once",
            accepted="one for each",
            remedy="leave the others out",
        )
    return dict(found)


def dimension_range(sizes: Sequence[int], said: str) -> DimensionRange:
    """Returns a range of one size, or of min, opt and max.

    Raises:
        UsageError: the sizes do not rise, or one is below 1; the message quotes what was `said`.
    """
    try:
        return DimensionRange.model_validate(sizes[0] if len(sizes) == 1 else list(sizes))
    except ValidationError as exc:
        raise UsageError(
            _DOING,
            found=said,
            accepted="a size of 1 and more" if len(sizes) == 1 else "sizes of 1 and more, min ≤ opt ≤ max",
            remedy="correct the sizes",
        ) from exc


def batch_range(
    smallest: int | None, tuned: int | None, largest: int | None, *, per_batch: Sequence[int] = ()
) -> dict[str, int]:
    """Returns the range of batches as settings; what was not said is the default, or the nearest that fits.

    Raises:
        UsageError: what was said does not rise, or single batches were said as well.
    """
    said = [each for each in (smallest, tuned, largest) if each is not None]
    if said and per_batch:
        raise UsageError(
            "choosing the batches of the engines",
            found="--per-batch and a range of batches",
            accepted="one of the two",
            remedy="leave --min-batch, --opt-batch and --max-batch out",
        )
    default = BuildSettings()
    low = smallest or min((default.min_batch, *said))
    high = largest or max((default.max_batch, *said))
    opt = tuned or min(max(default.opt_batch, low), high)
    dimension_range([low, opt, high], f"the batches min {low}, opt {opt}, max {high}")
    return {"min_batch": low, "opt_batch": opt, "max_batch": high}


def parse_batches(text: str) -> tuple[int, ...]:
    """Reads `1,8,32`.

    Raises:
        UsageError: it is no list of different batches.
    """
    found = [part.strip() for part in text.split(",")]
    batches = tuple(int(part) for part in found if re.fullmatch(r"[1-9]\d{0,8}", part))
    if len(batches) != len(found) or len(set(batches)) != len(batches):
        raise UsageError(
            "choosing the batches of the engines",
            found=f"'{text}'",
            accepted="different batches of 1 and more with commas between, such as 1,8,32",
            remedy="correct --per-batch",
        )
    return batches


def _with_batch(inputs: Sequence[TensorInfo], settings: BuildSettings) -> dict[str, DimensionRange]:
    """The sizes by name, those of first dimensions included; what was given by name comes first."""
    sizes = (settings.min_batch, settings.opt_batch, settings.max_batch)
    batch = dimension_range(sizes, "the batches min {}, opt {}, max {}".format(*sizes))
    firsts = [tensor.shape[0] for tensor in inputs if tensor.shape]
    return {first: batch for first in firsts if isinstance(first, str)} | dict(settings.dimensions)


def _refuse_batch(inputs: Sequence[TensorInfo], dimensions: Mapping[str, DimensionRange]) -> None:
    dynamic = [(tensor, axis) for tensor in inputs for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)]
    batches = {tensor.shape[0] for tensor, axis in dynamic if axis == 0}
    of_batch = {name for tensor, axis in dynamic if tensor.shape[axis] in batches for name in _names(tensor, axis)}
    if said := [name for name in dimensions if name in of_batch]:
        raise UsageError(
            _DOING,
            found=f"a size for '{said[0]}', which is the batch",
            accepted="sizes of other dynamic dimensions",
            remedy="say --batch instead",
        )


def _names(tensor: TensorInfo, axis: int) -> tuple[str, str]:
    return f"{tensor.name}[{axis}]", str(tensor.shape[axis])


def _given(given: Mapping[str, DimensionRange], tensor: TensorInfo, axis: int) -> DimensionRange | None:
    one, everywhere = _names(tensor, axis)
    return given.get(one) or given.get(everywhere)


def _profile(tensor: TensorInfo, given: Mapping[str, DimensionRange]) -> InputProfile:
    ranges = [
        DimensionRange.model_construct(min=dim, opt=dim, max=dim)
        if isinstance(dim, int)
        else _given(given, tensor, axis)
        for axis, dim in enumerate(tensor.shape)
    ]
    return InputProfile(
        name=tensor.name,
        min=tuple(each.min for each in ranges),
        opt=tuple(each.opt for each in ranges),
        max=tuple(each.max for each in ranges),
    )


def _without_shape(model: ModelProto, inputs: Sequence[TensorInfo]) -> list[str]:
    fed = {tensor.name for tensor in inputs}
    return [
        value.name for value in model.graph.input if value.name in fed and not value.type.tensor_type.HasField("shape")
    ]


def _shapeless(name: str) -> InputError:
    return InputError(
        _DOING,
        found=f"the input '{name}' has no shape, not even a number of dimensions",
        accepted="inputs whose number of dimensions the graph says",
        remedy="export the model again with an example, or set the input's shape in the graph",
    )


def _not_given(tensor: TensorInfo, axis: int) -> UsageError:
    one, everywhere = _names(tensor, axis)
    return UsageError(
        _DOING,
        found=f"the dimension '{everywhere}' of the input '{tensor.name}' (axis {axis}) may have any size",
        accepted="a size or a range for every dynamic dimension but the first",
        remedy=f"say --dim '{everywhere}=SIZE', of an engine also MIN:OPT:MAX; for this input alone --dim '{one}=SIZE'",
    )


def _unknown(name: str, inputs: Sequence[TensorInfo]) -> UsageError:
    dims = dict.fromkeys(dim for tensor in inputs for dim in tensor.shape if isinstance(dim, str))
    return UsageError(
        _DOING,
        found=f"sizes for '{name}', which is no dynamic dimension of an input",
        accepted=f"one of: {', '.join(dims)}; or INPUT[AXIS]" if dims else "none: every input has a fixed shape",
        remedy="correct --dim",
    )

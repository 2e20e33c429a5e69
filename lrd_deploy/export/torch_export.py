"""A PyTorch model in, a checked ONNX file out."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrd_deploy.decompose.surgery import factorised_layers
from lrd_deploy.errors import InputError
from lrd_deploy.export.global_pooling import name_global_pools_
from lrd_deploy.export.names import assign_names_
from lrd_deploy.export.onnx_file import default_opset, read_model, tensor_info, write_model
from lrd_deploy.files import sha256_of
from lrd_deploy.models.example import INPUT, OUTPUT, Example, call, in_form_of, named_inputs, named_outputs
from lrd_deploy.models.fit import run_once
from lrd_deploy.records import ExportedModel

__all__ = ["INPUT", "OUTPUT", "DynamicAxes", "export_onnx"]

# Names of the dimensions that stay open, by input and axis.
DynamicAxes = Mapping[str, Mapping[int, str]]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def export_onnx(
    model: nn.Module, example: Example, path: Path, *, opset: int, dynamic_axes: DynamicAxes | None = None
) -> ExportedModel:
    """Writes a model as ONNX with a dynamic batch, reads the file back and checks it.

    BatchNorm is folded into the convolution before it. The model comes back as it was: mode, device and layout.
    A single tensor is a classifier's: it becomes the input "images", and the logits become the output "logits". Tensors
    by position or by keyword keep the names of `forward`'s parameters, and everything that the model returns comes out.

    Args:
        model: any module that torch.export can trace.
        example: what it is called with, of which two samples are used.
        path: where the file goes; only a file that passed the checks gets there.
        opset: 18 … 25.
        dynamic_axes: names of the dimensions that stay open, by input and axis; None is `default_axes`.

    Raises:
        InputError: the model cannot be exported, or the exporter did not deliver what was asked.
        StorageError: the file cannot be written.
    """
    inputs = named_inputs(model, example)
    axes = default_axes(inputs) if dynamic_axes is None else dynamic_axes
    _check_axes(axes, inputs)
    inputs = _two_samples(inputs, axes)
    was_training = model.training
    try:
        wrapped = _TensorsOnly(model, example).eval()
        names = named_outputs(run_once(model, in_form_of(example, tuple(inputs.values()))), example)
        written = _exported(wrapped, inputs, _apart(tuple(names), inputs), axes, opset)
    finally:
        model.train(was_training)
    name_global_pools_(written)
    origins = assign_names_(written, prefix="module.", factorised=factorised_layers(model).keys())
    _check_delivered(written, axes, opset, path)
    write_model(written, path)
    reread = read_model(path)
    return ExportedModel(
        path=Path(path.name),
        sha256=sha256_of(path),
        opset=default_opset(reread),
        ir_version=reread.ir_version,
        inputs=tuple(tensor_info(value) for value in reread.graph.input),
        outputs=tuple(tensor_info(value) for value in reread.graph.output),
        origins=origins,
    )


def default_axes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Returns the dimensions that stay open unless the caller says otherwise.

    The first is the batch wherever it is as long as the first input's. The second one of tables of integers or
    booleans, as tokens and their masks are, is the sequence; inputs of other lengths have sequences of their own.
    """
    batch = next((len(tensor) for tensor in inputs.values() if tensor.ndim), None)
    names: dict[int, str] = {}
    axes: dict[str, dict[int, str]] = {}
    for name, tensor in inputs.items():
        if tensor.ndim == 0 or len(tensor) != batch:
            continue
        axes[name] = {0: "batch"}
        if tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex():
            axes[name][1] = names.setdefault(tensor.shape[1], f"{name}_sequence" if names else "sequence")
    return axes


class _TensorsOnly(nn.Module):
    """The model as a function from tensors by position to a tuple of tensors."""

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self.module, self.example = module, example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(call(self.module, in_form_of(self.example, tensors)), self.example).values())


def _check_axes(axes: DynamicAxes, inputs: Mapping[str, Tensor]) -> None:
    for name, named in axes.items():
        known = name in inputs
        beyond = [axis for axis in named if known and not 0 <= axis < inputs[name].ndim]
        if beyond or not known:
            raise InputError(
                "reading the dynamic axes of the inputs",
                found=f"axis {beyond[0]} of '{name}'" if known else f"an input '{name}'",
                accepted=", ".join(f"'{name}' of shape {tuple(tensor.shape)}" for name, tensor in inputs.items()),
                remedy="name inputs and axes that the example has, counted from 0",
            )


def _two_samples(inputs: Mapping[str, Tensor], axes: DynamicAxes) -> dict[str, Tensor]:
    """Two samples of each input with an open batch, a single one twice: a tracer takes a length of 1 for a constant."""

    def two(tensor: Tensor) -> Tensor:
        return (tensor[:2] if len(tensor) > 1 else torch.cat([tensor, tensor])).contiguous()

    return {name: two(tensor) if 0 in axes.get(name, {}) else tensor for name, tensor in inputs.items()}


def _apart(outputs: tuple[str, ...], inputs: Mapping[str, Tensor]) -> list[str]:
    """Output names; one that an input has too gets "_out"."""
    return [f"{name}_out" if name in inputs else name for name in outputs]


def _exported(
    model: _TensorsOnly, inputs: Mapping[str, Tensor], outputs: list[str], axes: DynamicAxes, opset: int
) -> ModelProto:
    with _quiet_exporter(), sdpa_kernel(SDPBackend.MATH):  # the others' strides are not those of what is exported
        try:
            program = torch.onnx.export(
                model,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes={"tensors": tuple(dict(axes.get(name, {})) for name in inputs)},
                opset_version=opset,
                dynamo=True,
                optimize=True,  # unoptimised output is refused by TensorRT's parser
                external_data=False,
                verbose=False,
            )
        except Exception as exc:  # the exporter raises whatever its many parts raise
            raise InputError(
                f"exporting {type(model.module).__name__} to ONNX",
                found=_cause_of(exc),
                accepted=f"a model that torch.export can trace with these dimensions open: {_in_words(axes)}",
                remedy="try torch.export.export on the model to see where it stops, or close a dimension: dynamic_axes",
            ) from exc
    return program.model_proto


def _cause_of(exc: BaseException) -> str:
    """What went wrong first: the exporter wraps it in what to report to whom."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return " ".join(_COLOURS.sub("", str(exc)).split())[:400] or type(exc).__name__


def _in_words(axes: DynamicAxes) -> str:
    named = dict.fromkeys(name for open_axes in axes.values() for name in open_axes.values())
    return ", ".join(named) or "none"


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter prints, warns and logs about things that its caller can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        silenced = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(), silenced[0], silenced[1]:
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_delivered(model: ModelProto, axes: DynamicAxes, opset: int, path: Path) -> None:
    """The exporter falls back to another opset, or to a fixed size, and drops inputs, without an error."""
    names = [node.name for node in model.graph.node]
    problem = None
    if default_opset(model) != opset:
        problem = f"opset {default_opset(model)} where {opset} was asked for"
    elif closed := _closed_axis(model, axes):
        problem = closed
    elif len(set(names)) != len(names):
        problem = "node names that are not unique"
    if problem:
        raise InputError(
            f"checking what was exported for '{path.name}'",
            found=problem,
            accepted=f"opset {opset}, dimensions that stay open ({_in_words(axes)}), unique names",
            remedy="choose another 'opset', or look for code in the model that depends on the size of that dimension",
        )


def _closed_axis(model: ModelProto, axes: DynamicAxes) -> str | None:
    """The first dimension that should be open and is not, in words."""
    for value in model.graph.input:
        for axis, name in axes.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.dim_param:
                return f"a {name} fixed at {dim.dim_value} in the input '{value.name}'"
    return None

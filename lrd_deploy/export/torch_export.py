"""A PyTorch model in, a checked ONNX file out."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor, nn

from lrd_deploy.decompose.surgery import factorised_layers
from lrd_deploy.errors import InputError
from lrd_deploy.export.names import assign_names_
from lrd_deploy.export.onnx_file import default_opset, read_model, tensor_info, write_model
from lrd_deploy.files import sha256_of
from lrd_deploy.models.source import logits
from lrd_deploy.records import ExportedModel

INPUT, OUTPUT = "images", "logits"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def export_onnx(model: nn.Module, example: Tensor, path: Path, *, opset: int) -> ExportedModel:
    """Writes a model as ONNX with a dynamic batch, reads the file back and checks it.

    BatchNorm is folded into the convolution before it. The model comes back as it was: mode, device and layout.

    Args:
        model: returns logits, bare or in an object.
        example: a batch of inputs, of which two samples are used.
        path: where the file goes; only a file that passed the checks gets there.
        opset: 18 … 25.

    Raises:
        InputError: the model cannot be exported, or the exporter did not deliver what was asked.
        StorageError: the file cannot be written.
    """
    was_training = model.training
    try:
        written = _exported(_BareLogits(model).eval(), example[:2], opset)
    finally:
        model.train(was_training)
    origins = assign_names_(written, prefix="module.", factorised=factorised_layers(model).keys())
    _check_delivered(written, opset, path)
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


class _BareLogits(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.module, x)


def _exported(model: nn.Module, example: Tensor, opset: int) -> ModelProto:
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                model,
                (example.contiguous(),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"x": {0: "batch"}},
                opset_version=opset,
                dynamo=True,
                optimize=True,  # unoptimised output is refused by TensorRT's parser
                external_data=False,
                verbose=False,
            )
        except Exception as exc:  # the exporter raises whatever its many parts raise
            raise InputError(
                f"exporting {type(model.module).__name__} to ONNX",
                found=" ".join(_COLOURS.sub("", str(exc)).split())[:400],
                accepted="a model that torch.export can trace with a dynamic batch",
                remedy="try torch.export.export on the model to see where it stops",
            ) from exc
    return program.model_proto


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


def _check_delivered(model: ModelProto, opset: int, path: Path) -> None:
    """The exporter falls back to another opset, or to a fixed batch, without an error."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    names = [node.name for node in model.graph.node]
    problem = None
    if default_opset(model) != opset:
        problem = f"opset {default_opset(model)} where {opset} was asked for"
    elif not batch.dim_param:
        problem = f"a batch fixed at {batch.dim_value}"
    elif len(set(names)) != len(names):
        problem = "node names that are not unique"
    if problem:
        raise InputError(
            f"checking what was exported for '{path.name}'",
            found=problem,
            accepted=f"opset {opset}, a dynamic batch, unique names",
            remedy="choose another 'opset', or look for code in the model that depends on the batch size",
        )

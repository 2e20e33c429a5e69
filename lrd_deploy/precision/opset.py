"""Raising a model's opset where a precision needs it: BF16 convolutions came with 22, scales per channel with 13."""

from __future__ import annotations

from onnx import ModelProto, version_converter

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import default_opset
from lrd_deploy.records import Precision
from lrd_deploy.rewrite.apply import copy_metadata

LEAST = {"fp16": 13, "bf16": 22, "int8": 13}
_LEAST_IR = {22: 10, 13: 7}


def raised(model: ModelProto, precision: Precision) -> ModelProto:
    """Returns the model in an opset that has the precision, converted by ONNX where it has not.

    Raises:
        InputError: ONNX cannot convert it.
    """
    least = LEAST[precision]
    if default_opset(model) >= least:
        return model
    before = f"opset {default_opset(model)} of '{model.graph.name}'"
    try:
        after = version_converter.convert_version(model, least)
    except (RuntimeError, ValueError) as exc:  # what the converter's C++ and its Python raise
        raise InputError(
            f"raising {before} to {least}, for {precision.upper()}",
            found=" ".join(str(exc).split())[:300],
            accepted=f"a model that ONNX can convert to opset {least}",
            remedy=f"export it with opset {least}",
        ) from exc
    copy_metadata(model, after)
    after.ir_version = max(model.ir_version, _LEAST_IR[least])
    return after

"""INT8 by ONNX Runtime's own static quantiser: QDQ, per channel, calibrated on training images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from lrd_deploy.export.torch_export import INPUT


class _Batches(CalibrationDataReader):
    def __init__(self, batches: Iterator[NDArray[np.generic]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """Returns the next batch, as the quantiser's own interface wants it."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantize(source: Path, target: Path, calibration: Iterator[NDArray[np.generic]]) -> None:
    """Writes `source` as INT8; unsigned activations, signed weights.

    Limits: on a processor without VNNI, ONNX Runtime's U8S8 kernels can saturate.
    """
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser logs advice to the root
    with TemporaryDirectory(prefix="rank-choice-") as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

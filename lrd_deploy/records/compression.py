"""What post-training compression of an ONNX file did."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lrd_deploy.records.graphs import Skipped
from lrd_deploy.records.measurement import Comparison, Ratio
from lrd_deploy.records.plan import PlannedLayer
from lrd_deploy.records.record import Record
from lrd_deploy.records.run import Pair


class BiasCorrection(Record):
    """How far a factorised layer's channels are off on average, on the calibration data, before and after correction.

    Root mean squares over the channels, against that of the layer's values. `reason` says why a bias was left alone.
    """

    node: str
    mean_error_before: float
    mean_error_after: float
    reason: str | None = None


class CompressedModel(Record):
    """An ONNX file in a faster form. Errors and agreement are of its outputs against the dense model's.

    `output_error` is their relative L2 difference on samples that nothing was fitted to. Biases are corrected only
    where that brings the outputs on the calibration data closer.

    Attributes:
        layers: every layer that was found, and what was chosen for it and why.
        skipped: those that stayed dense.
        data: where the samples come from.
        output_error_uncorrected: what `output_error` is without the correction of biases.
        speedup: of the whole model in fresh processes; the same as in `comparison`.
        data_files: that hold weights and belong to the model; named where a verb prints the record.
    """

    path: Path
    sha256: str
    goal: str
    layers: tuple[PlannedLayer, ...]
    skipped: tuple[Skipped, ...]
    data: str
    calibration_samples: int = Field(ge=1)
    held_out_samples: int = Field(ge=1)
    bias_corrections: tuple[BiasCorrection, ...]
    bias_corrected: bool
    output_error: float
    output_error_uncorrected: float
    output_cosine: float
    top1_agreement: float
    predicted_error: float
    parameters: Pair
    macs: Pair
    speedup: Ratio
    comparison: Comparison
    notes: tuple[str, ...] = ()
    data_files: tuple[Path, ...] = ()

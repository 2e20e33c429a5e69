"""The precision of a graph: what was asked, what was converted, and the ranges that INT8 was scaled by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lrd_deploy.records.graphs import ConvertedShare, OutputDifference, Skipped
from lrd_deploy.records.record import Record

Precision = Literal["fp16", "bf16", "int8"]
RangeMethod = Literal["minmax", "percentile", "entropy"]
ActivationType = Literal["int8", "uint8"]


class PrecisionPolicy(Record):
    """What decides which nodes are converted, and how; both arms of a comparison should have the same.

    Attributes:
        precision: of the converted nodes.
        keep: glob patterns of node names that stay in float32.
        method: how ranges were found; None of FP16 and BF16.
        activation_type: INT8 with zero point 0, as TensorRT takes it, or the same values as UINT8 with zero point 128,
            for which ONNX Runtime has the faster CPU kernels; None of FP16 and BF16.
    """

    precision: Precision
    keep: tuple[str, ...] = ()
    method: RangeMethod | None = None
    activation_type: ActivationType | None = None


class PrecisionMark(Record):
    """What a converted model's metadata says of itself, so that two files can be compared later."""

    policy: PrecisionPolicy
    share: ConvertedShare


class PrecisionReport(Record):
    """A converted file. `kept` are the nodes left in float32, each with the reason; `folded` the normalisations.

    `difference` is None where there was no data to compare outputs on, or nothing here that runs the result.
    `data_files`, which hold weights and belong to the model, are named where a verb prints the record.
    """

    path: Path
    sha256: str
    source_sha256: str
    modified: bool
    policy: PrecisionPolicy
    share: ConvertedShare
    kept: tuple[Skipped, ...]
    folded: tuple[str, ...] = ()
    difference: OutputDifference | None = None
    notes: tuple[str, ...] = ()
    data_files: tuple[Path, ...] = ()


class ActivationRanges(Record):
    """The largest magnitude that each value of a model may have before INT8 clips it.

    Attributes:
        model_sha256: of the file that the samples ran through; ranges of another file do not fit.
        method: how the magnitudes were chosen.
        percentile: of the magnitudes that is not clipped; None of other methods.
        samples: how many were run.
        source: where they come from, in words.
        magnitudes: by value name; 0 of a value that was always zero.
        not_clipped: values of which too few were seen for the method, and whose magnitude is the largest of those.
    """

    schema_version: Literal[1] = 1
    model_sha256: str
    method: RangeMethod
    percentile: float | None = None
    samples: int
    source: str
    magnitudes: dict[str, Annotated[float, Field(ge=0)]]
    not_clipped: tuple[str, ...] = ()


class CalibratedRanges(Record):
    """Ranges that were measured and stored."""

    path: Path
    model_sha256: str
    method: RangeMethod
    samples: int
    values: int
    not_clipped: tuple[str, ...] = ()

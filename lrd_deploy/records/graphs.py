"""ONNX files, rewrites and engines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lrd_deploy.records.engines import InputProfile, Processor, TargetGpu, TimingCacheUse
from lrd_deploy.records.environment import Environment
from lrd_deploy.records.layers import Choice, LayerSignature
from lrd_deploy.records.measurement import Ratio
from lrd_deploy.records.record import Record


class TensorInfo(Record):
    """A graph input or output; a symbolic dimension is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class NodeOrigin(Record):
    """Where a weighted ONNX node came from: the join key from module to node to engine layer."""

    node: str
    module: str
    factor: Literal["dense", "down", "up", "first", "core", "last"]
    op_type: str
    weight_shape: tuple[int, ...]
    weight_sha256: str


class OutputDifference(Record):
    """How far one set of outputs is from another, over all values of all batches tried.

    `passed` when `relative_l2` is at most `tolerance`, which rounding in the given precision explains.
    """

    max_abs: float
    relative_l2: float
    cosine: float
    top1_agreement: float
    tolerance: float
    passed: bool
    batches: tuple[int, ...]


class ExportedModel(Record):
    """An ONNX file that was re-read and checked after writing; `difference` is against the PyTorch model.

    `data_files`, which hold weights and belong to it, are named where a verb prints the record.
    """

    path: Path
    sha256: str
    opset: int
    ir_version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    origins: tuple[NodeOrigin, ...]
    difference: OutputDifference | None = None
    data_files: tuple[Path, ...] = ()


class ExportedPair(Record):
    """Both arms as ONNX, and real inputs to run them on.

    Attributes:
        dense: the file of the dense arm.
        lowrank: that of the low-rank arm.
        inputs: an .npz file of arrays by input name.
        bare_tensor: the PyTorch models take one tensor, without a name; else tensors by keyword.
    """

    dense: ExportedModel
    lowrank: ExportedModel
    inputs: Path
    bare_tensor: bool


class Applied(Record):
    """One rewrite that was done. `relative_error` is what a truncation took from the layer's weight."""

    rule: str
    node: str
    change: str
    relative_error: float | None = None


class Skipped(Record):
    """One rewrite that was not done."""

    rule: str
    node: str
    reason: str


ChainAction = Literal["keep", "pad", "truncate", "merge"]


class ChainOption(Record):
    """One thing that could be done to a factor chain, and what the chain would take then, in one forward pass.

    `latency_ms` is None where the timings would not settle, or the table has none.
    """

    action: ChainAction
    choice: Choice
    latency_ms: float | None
    relative_error: float = 0.0


class ChainDecision(Record):
    """What was done to a factor chain, and the times that decided; no options where it could not be timed.

    `choice` is the form that it was left in, None where that is none that can be timed.
    """

    chain: str
    action: ChainAction
    choice: Choice | None
    signature: LayerSignature | None
    options: tuple[ChainOption, ...]
    reason: str


class RankEnforcement(Record):
    """How the ranks of a graph's factor chains were decided: for which deployment, and on which machine's times."""

    backend: str
    batch: int
    threads: int
    measured_on: Environment | None
    max_error: float | None
    decisions: tuple[ChainDecision, ...]
    notes: tuple[str, ...] = ()


class RewriteReport(Record):
    """What a list of rules did to a graph. The differences are None until the outputs were compared.

    `enforced` is there where measured latencies decided; `speedup`, of the whole model, where a profile did.
    `data_files`, which hold weights and belong to the model, are named where a verb prints the record.
    """

    path: Path
    sha256: str
    modified: bool
    applied: tuple[Applied, ...]
    skipped: tuple[Skipped, ...]
    max_abs_difference: float | None = None
    relative_l2_difference: float | None = None
    enforced: RankEnforcement | None = None
    speedup: Ratio | None = None
    data_files: tuple[Path, ...] = ()


class RewrittenModel(Record):
    """A rewrite, and how far the outputs moved."""

    report: RewriteReport
    difference: OutputDifference


class ConvertedShare(Record):
    """How much of a graph was converted. `macs` and `weights` are shares over the nodes with a constant weight.

    A node counts where it handles float32 values. Sizes of the graph that are not fixed count as one.
    """

    nodes: int
    converted: int
    macs: float = Field(ge=0, le=1)
    weights: float = Field(ge=0, le=1)


class EngineArtifact(Record):
    """A built engine: valid only for the backend version and target it names.

    `external_data` holds the digests of the model's weight files by place, `profile` the shapes that the engine takes
    (empty: any). `weight_shares` and `node_shares` say how much of the graph is of which type; `tf32`, None where it
    does not apply, whether float32 products may be rounded to TF32's 10 bits of mantissa. `built_on` is None where a
    compiler needed no hardware. `warnings` were given in `log`; `layers` is the engine's own description of its
    layers, and `no_layers` why there is none.
    `converted` is there where the graph was converted to `precision` first.
    """

    path: Path
    sha256: str
    source_sha256: str
    backend: str
    backend_version: str
    precision: str
    target: str
    build_seconds: float
    size_bytes: int
    converted: ConvertedShare | None = None
    external_data: dict[str, str] = Field(default_factory=dict)
    profile: tuple[InputProfile, ...] = ()
    weight_shares: dict[str, float] = Field(default_factory=dict)
    node_shares: dict[str, float] = Field(default_factory=dict)
    tf32: bool | None = None
    version_compatible: bool = False
    refittable: bool = False
    compute_capabilities: tuple[str, ...] = ()
    built_on: TargetGpu | Processor | None = None
    timing_cache: TimingCacheUse | None = None
    warnings: int = 0
    log: Path | None = None
    layers: Path | None = None
    no_layers: str | None = None


class BuiltEngines(Record):
    """Engines by "backend arm", and what a backend said where it refused."""

    engines: dict[str, EngineArtifact]
    refused: dict[str, str]


class EngineSet(Record):
    """Engines of one model, one for each batch."""

    engines: tuple[EngineArtifact, ...]

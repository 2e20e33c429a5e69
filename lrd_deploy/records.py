"""The frozen records that stages hand to each other and that `--json` prints.

Units are suffixes (`_ms`, `_per_s`), shares lie in [0, 1], and no number is NaN: what was not measured is `None`.
Paths inside a record are relative to the folder that holds the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, write_text


class Record(BaseModel):
    """An immutable value that survives a round-trip through JSON unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Returns the record as indented JSON."""
        return self.model_dump_json(indent=2)

    def write(self, path: Path) -> Path:
        """Writes the record as JSON, whole or not at all."""
        return write_text(path, self.to_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a record back.

        Raises:
            StorageError: the file cannot be read.
            InputError: it does not hold this record.
        """
        try:
            return cls.model_validate_json(read_bytes(path))
        except ValidationError as exc:
            first = exc.errors()[0]
            raise InputError(
                f"reading '{path}' as {cls.__name__}",
                found=f"{first['msg']} at '{'.'.join(map(str, first['loc'])) or 'the top'}'",
                accepted=f"a {cls.__name__} written by this version",
                remedy="delete the file and run the command that made it again",
            ) from exc


# Layers and what becomes of them ------------------------------------------------------------------------------


class LayerSignature(Record):
    """All that a layer's latency depends on; equal signatures are measured once.

    `spatial` is the input's size without batch and channels: (height, width) of a convolution, (tokens,) or () of a
    linear layer.
    """

    kind: Literal["linear", "conv2d"]
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    spatial: tuple[int, ...] = ()

    @property
    def pointwise(self) -> bool:
        """True where the layer is one matrix: a linear layer or a 1×1 convolution."""
        return self.kernel == (1, 1)

    def __str__(self) -> str:
        size = "×".join(map(str, self.spatial)) or "1"
        kernel = "" if self.kind == "linear" else f" {self.kernel[0]}×{self.kernel[1]}"
        stride = f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        return f"{self.kind}{kernel}{stride} {self.in_channels}→{self.out_channels} at {size}"


class KeepDense(Record):
    """The layer stays as it is."""

    form: Literal["dense"] = "dense"

    def __str__(self) -> str:
        return "dense"


class SVD(Record):
    """Two factors of one rank: `W ≈ up @ down`."""

    form: Literal["svd"] = "svd"
    rank: int = Field(ge=1)

    def __str__(self) -> str:
        return f"svd {self.rank}"


class Tucker2(Record):
    """Three factors: `first` (in → rank_in), `core` (k×k), `last` (rank_out → out)."""

    form: Literal["tucker2"] = "tucker2"
    rank_in: int = Field(ge=1)
    rank_out: int = Field(ge=1)

    def __str__(self) -> str:
        return f"tucker2 {self.rank_in}, {self.rank_out}"


Choice = Annotated[KeepDense | SVD | Tucker2, Field(discriminator="form")]


class PlannedLayer(Record):
    """What a plan decides for one layer, and why. Latencies are of all its `calls` in one forward pass."""

    name: str
    signature: LayerSignature | None
    choice: Choice
    reason: str
    calls: int = Field(default=1, ge=1)
    predicted_error: float = Field(default=0.0, ge=0.0)
    dense_latency_ms: float | None = None
    predicted_latency_ms: float | None = None


class Environment(Record):
    """The machine and the versions that a measurement belongs to. `fingerprint` covers only what is stable."""

    cpu: str
    cores: int
    system: str
    python: str
    packages: dict[str, str]
    fingerprint: str


class RankPlan(Record):
    """One choice for every layer of a model. `macs` and `parameters` count the planned layers, per sample."""

    policy: dict[str, Any]
    layers: tuple[PlannedLayer, ...]
    dense_macs: int
    lowrank_macs: int
    dense_parameters: int
    lowrank_parameters: int
    predicted_speedup: float | None = None
    measured_on: Environment | None = None

    @property
    def factorised(self) -> tuple[PlannedLayer, ...]:
        """The layers that do not stay dense."""
        return tuple(layer for layer in self.layers if not isinstance(layer.choice, KeepDense))


# Training ------------------------------------------------------------------------------------------------------

FrozenGroup = Literal["none", "A", "B"]


class Epoch(Record):
    """One pass over the training data; `frozen` names the factor group that stood still."""

    epoch: int
    frozen: FrozenGroup
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    images_per_s: float


class TrainedModel(Record):
    """Weights on disk, how they came about, and how good they are on the test data.

    `chance` is the accuracy of always answering the most frequent label.
    """

    weights: Path
    sha256: str
    accuracy: float
    chance: float
    accuracy_before: float | None
    parameters: int
    epochs: tuple[Epoch, ...]
    trained_here: bool


# ONNX ----------------------------------------------------------------------------------------------------------


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
    """An ONNX file that was re-read and checked after writing; `difference` is against the PyTorch model."""

    path: Path
    sha256: str
    opset: int
    ir_version: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    origins: tuple[NodeOrigin, ...]
    difference: OutputDifference | None = None


class Applied(Record):
    """One rewrite that was done."""

    rule: str
    node: str
    change: str


class Skipped(Record):
    """One rewrite that was not done."""

    rule: str
    node: str
    reason: str


class RewriteReport(Record):
    """What a list of rules did to a graph. `max_abs_difference` is None until the outputs were compared."""

    path: Path
    sha256: str
    modified: bool
    applied: tuple[Applied, ...]
    skipped: tuple[Skipped, ...]
    max_abs_difference: float | None = None


class RewrittenModel(Record):
    """A rewrite, and how far the outputs moved."""

    report: RewriteReport
    difference: OutputDifference


class EngineArtifact(Record):
    """A built engine: valid only for the backend version and target it names."""

    path: Path
    sha256: str
    source_sha256: str
    backend: str
    backend_version: str
    precision: str
    target: str
    build_seconds: float
    size_bytes: int


# Measurement ---------------------------------------------------------------------------------------------------


class Latency(Record):
    """One arm alone, at deployment settings. A percentile is None where the sample is too small to state it."""

    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    cold_start_ms: float
    throughput_per_s: float
    samples: int


class Ratio(Record):
    """A ratio with its two-sided interval; `demonstrated` when the interval does not hold 1."""

    estimate: float
    low: float
    high: float
    confidence: float
    demonstrated: bool
    launches: int


class Comparison(Record):
    """Baseline against candidate: `speedup` is base over candidate, `control` is base over an identical base."""

    base: Latency
    candidate: Latency
    speedup: Ratio
    control: Ratio
    backend: str
    batch: int
    threads: int
    per_launch_speedup: tuple[float, ...]
    warnings: tuple[str, ...]
    environment: Environment


class TrainingSpeedup(Record):
    """Step time of dense training over step time of fine-tuning, averaged over the phases of the schedule."""

    speedup: Ratio
    dense_step_ms: float
    lowrank_step_ms: dict[FrozenGroup, float]
    batch: int
    threads: int
    per_launch_speedup: tuple[float, ...]
    environment: Environment


# A whole run ---------------------------------------------------------------------------------------------------


class Pair(Record):
    """One quantity of the dense and of the low-rank model."""

    dense: float
    lowrank: float


class RunRecord(Record):
    """What `lrd-deploy run` found, in one object. `artifacts` are relative to the run's folder."""

    schema_version: Literal[1] = 1
    version: str
    recipe: str
    accuracy: Pair
    parameters: Pair
    macs: Pair
    speedup: Ratio
    control: Ratio
    latency: dict[Literal["dense", "lowrank"], Latency]
    training_speedup: Ratio
    layers: dict[str, int]
    predicted_speedup: float | None
    seconds: float
    stages: dict[str, float]
    warnings: tuple[str, ...]
    artifacts: dict[str, Path]
    environment: Environment

"""A model that was packaged for a server: what the bundle holds, where it came from, and whether it answers right."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lrd_deploy.records.environment import Environment
from lrd_deploy.records.graphs import OutputDifference, TensorInfo
from lrd_deploy.records.measurement import Ratio
from lrd_deploy.records.record import Record

Arm = Literal["lowrank", "dense"]


class BundleFile(Record):
    """A file of a bundle; `path` is relative to the model's folder, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


class StoredInput(Record):
    """Warm-up samples of one input in `file`, row after row. dtype `object` is text.

    `shape` is that of one sample where the model takes batches, else that of the whole input; `samples` is None there.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    samples: int | None
    file: str


class BundleSource(Record):
    """What a version was made from: digests by file name, and of a run the recipe's name and the arm."""

    recipe: str | None = None
    arm: Arm | None = None
    digests: dict[str, str]


class PackagedVersion(Record):
    """One version of a served model.

    Attributes:
        number: the name of its folder.
        version: of this package, which wrote it.
        source: what it was made from.
        batches: the batch sizes that were warmed up and checked.
        inputs: the warm-up inputs.
        inputs_from: the run's test data, the user's file, or random numbers.
        answers_file: what the trained model answers to them.
        answers: how far the packaged model's answers are from those; None where it cannot run here.
        unchecked: why not, then.
        accuracy: on the run's test data; None where there is no run.
        speedup: over the dense model, with its interval; None for the dense model and where there is no run.
        environment: where it was packaged.
    """

    number: int = Field(ge=1)
    version: str
    source: BundleSource
    batches: tuple[int, ...]
    inputs: tuple[StoredInput, ...]
    inputs_from: Literal["run", "file", "random"]
    answers_file: str | None
    answers: OutputDifference | None
    unchecked: str | None
    accuracy: float | None
    speedup: Ratio | None
    environment: Environment


class BundleManifest(Record):
    """All that a model's folder holds, but for this record itself. `number` is the version that is served."""

    schema_version: Literal[1] = 1
    version: str
    model: str
    number: int = Field(ge=1)
    backend: Literal["onnxruntime", "tensorrt"]
    files: tuple[BundleFile, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    versions: tuple[PackagedVersion, ...]

    @property
    def latest(self) -> PackagedVersion:
        """The version that is served."""
        return next(version for version in self.versions if version.number == self.number)


class PackagedModel(Record):
    """What became of one model: a new version was written, only its settings changed, or nothing had to be done."""

    name: str
    number: int
    outcome: Literal["written", "updated", "unchanged"]
    manifest: BundleManifest


class NotPackaged(Record):
    """Something that could have been packaged and was not."""

    what: str
    reason: str


class PackageResult(Record):
    """What `lrd-deploy package` left in a model repository."""

    schema_version: Literal[1] = 1
    repository: Path
    models: tuple[PackagedModel, ...]
    skipped: tuple[NotPackaged, ...]
    notes: tuple[str, ...]


class VersionCheck(Record):
    """One version, run again: its answers against the trained model's; None where it cannot run here."""

    number: int
    answers: OutputDifference | None
    unchecked: str | None


class BundleCheck(Record):
    """A bundle whose every file has its digest; `passed` when every version that can run answers right."""

    folder: Path
    model: str
    files: int
    versions: tuple[VersionCheck, ...]
    passed: bool

"""One model made ready for a server: its folder is put together, run by itself in a new process, and described."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import Batch
from lrd_deploy.errors import BackendError, InputError
from lrd_deploy.export.model_files import ModelFiles
from lrd_deploy.files import write_text
from lrd_deploy.records import (
    BundleFile,
    BundleManifest,
    BundleSource,
    OutputDifference,
    PackagedModel,
    PackagedVersion,
    Ratio,
    StoredInput,
)
from lrd_deploy.serving.answers import Answers, answers_in_new_process, compare_answers, store_answers
from lrd_deploy.serving.labels import LABELS_NAME, Labels
from lrd_deploy.serving.manifest import MANIFEST_NAME, described_files, files_of_version
from lrd_deploy.serving.repository import (
    check_can_follow,
    choose_number,
    earlier_manifest,
    put_in_place,
    refuse_foreign,
)
from lrd_deploy.serving.tensors import ServedGraph
from lrd_deploy.serving.triton_config import CONFIG_NAME, Backend, ServingSettings, config_text, model_config
from lrd_deploy.serving.warmup import store_inputs, stored_batch
from lrd_deploy.version import __version__

Trained = Callable[[Batch], Mapping[str, NDArray[np.generic]]]


@dataclass(frozen=True)
class Reference:
    """Whom the packaged model must agree with: the trained model as a function, or the file it was copied from.

    `tolerance` is the largest relative L2 difference that rounding explains.
    """

    trained: Trained | Path
    tolerance: float


@dataclass(frozen=True)
class Served:
    """A model that is to be served.

    Attributes:
        name: of its folder.
        backend: of Triton's that runs it.
        files: what goes into the version's folder.
        graph: what it takes and gives.
        settings: how it is served.
        arrays: warm-up inputs by name.
        inputs_from: where they came from.
        labels: the classes of one output.
        source: what it was made from.
        reference: whom it must agree with, or why it cannot be asked here.
        accuracy: on the run's test data.
        speedup: over the dense model.
    """

    name: str
    backend: Backend
    files: ModelFiles
    graph: ServedGraph
    settings: ServingSettings
    arrays: Mapping[str, NDArray[np.generic]]
    inputs_from: Literal["run", "file", "random"]
    labels: Labels | None
    source: BundleSource
    reference: Reference | str
    accuracy: float | None = None
    speedup: Ratio | None = None


@dataclass(frozen=True)
class StagedModel:
    """A model whose version `number` is ready and checked, not yet in its place."""

    staged: Path
    folder: Path
    number: int
    before: BundleManifest | None
    after: BundleManifest

    def put_in_place(self) -> PackagedModel:
        """Moves it to its place, or leaves alone what is the same."""
        changed = put_in_place(self.staged, self.folder, self.number, self.before, self.after)
        known = self.before is not None and self.number in {version.number for version in self.before.versions}
        outcome = "unchanged" if not changed else "updated" if known else "written"
        return PackagedModel(name=self.after.model, number=self.number, outcome=outcome, manifest=self.after)


def stage(served: Served, staging: Path, repository: Path, wanted: int | None) -> StagedModel:
    """Puts a model's folder together in the staging folder, and checks that it answers as the trained model does.

    Args:
        served: the model.
        staging: the staging folder.
        repository: where the model will go.
        wanted: the number of the version; None is the next one.

    Raises:
        UsageError: the name or the number is taken by something else.
        InputError: the warm-up inputs do not fit the model, or what was packaged earlier is not what it was.
        BackendError: the packaged model does not run, or answers otherwise.
        StorageError: a file cannot be read or written.
        MissingPackage: tritonclient is not installed.
    """
    folder, staged = repository / served.name, staging / served.name
    refuse_foreign(folder)
    number = choose_number(folder, served.files.digests, wanted)
    served.files.copy_to(staged / str(number))
    batches = served.settings.batches(served.graph)
    inputs = store_inputs(served.arrays, served.graph, max(batches), staged)
    if served.labels:
        write_text(staged / LABELS_NAME, served.labels.text)
    config = model_config(served.name, served.backend, served.graph, served.settings, inputs, served.labels)
    write_text(staged / CONFIG_NAME, config_text(config))
    before = earlier_manifest(folder, staged)
    version = _described(served, number, batches, inputs)
    alone = _manifest(served, described_files(staged), version, None)
    _check_copies(served, alone)
    alone.write(staged / MANIFEST_NAME)  # the new process reads it
    if isinstance(served.reference, Reference):
        version = _checked(served.reference, staged, version, served.settings.threads)
    after = _manifest(served, described_files(staged, alone.files), version, before)
    after.write(staged / MANIFEST_NAME)
    if before:
        check_can_follow(folder, before, after)
    return StagedModel(staged, folder, number, before, after)


def _described(
    served: Served, number: int, batches: tuple[int, ...], inputs: tuple[StoredInput, ...]
) -> PackagedVersion:
    return PackagedVersion(
        number=number,
        version=__version__,
        source=served.source,
        batches=batches,
        inputs=inputs,
        inputs_from=served.inputs_from,
        answers_file=None,
        answers=None,
        unchecked=served.reference if isinstance(served.reference, str) else None,
        accuracy=served.accuracy,
        speedup=served.speedup,
        environment=environment(),
    )


def _checked(reference: Reference, staged: Path, version: PackagedVersion, threads: int) -> PackagedVersion:
    expected = _expected(reference, staged, version, threads)
    got = answers_in_new_process(staged, version.number, threads)
    difference = compare_answers(expected, got, tolerance=reference.tolerance, batches=version.batches)
    if not difference.passed:
        raise _answers_otherwise(staged.name, difference)
    return version.model_copy(update={"answers": difference, "answers_file": store_answers(expected, staged)})


def _expected(reference: Reference, staged: Path, version: PackagedVersion, threads: int) -> Answers:
    if isinstance(reference.trained, Path):
        return answers_in_new_process(staged, version.number, threads, model=reference.trained)
    return [dict(reference.trained(stored_batch(staged, version.inputs, batch))) for batch in version.batches]


def _check_copies(served: Served, manifest: BundleManifest) -> None:
    """Raises where a file is not the one whose digest was taken, and compared if it is code, before it was copied."""
    copied = {file.path: file.sha256 for file in manifest.files}
    for place, digest in served.files.digests.items():
        if copied[f"{manifest.number}/{place}"] != digest:
            raise InputError(
                f"copying '{served.files.files[place]}'",
                found="a file that changed while it was copied",
                accepted="files that nobody writes to meanwhile",
                remedy="package the model again",
            )


def _manifest(
    served: Served, staged: Iterable[BundleFile], version: PackagedVersion, before: BundleManifest | None
) -> BundleManifest:
    earlier = [one for one in (before.versions if before else ()) if one.number != version.number]
    kept = {file.path: file for one in earlier for file in files_of_version(one, before.files)}
    files = kept | {file.path: file for file in staged}
    versions = sorted([*earlier, version], key=lambda one: one.number)
    return BundleManifest(
        version=__version__,
        model=served.name,
        number=versions[-1].number,
        backend=served.backend,
        files=tuple(files[path] for path in sorted(files)),
        inputs=tuple(tensor.info for tensor in served.graph.inputs),
        outputs=tuple(tensor.info for tensor in served.graph.outputs),
        versions=tuple(versions),
    )


def _answers_otherwise(name: str, difference: OutputDifference) -> BackendError:
    return BackendError(
        f"checking the packaged model '{name}'",
        found=f"answers that differ from those of what it was made from by {difference.relative_l2:.1e} (relative L2)",
        accepted=f"at most {difference.tolerance:.1e}, which rounding explains",
        remedy="nothing was packaged; report this with the model and the versions that 'lrd-deploy doctor' prints",
    )

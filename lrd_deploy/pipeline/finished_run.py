"""A finished run, opened to be read: its records, and files that are still what its records say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.engines.inputs import Batch, stored_arrays
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.deployment_stages import BuiltEngines, ExportedPair, RewrittenModel, in_pytorch
from lrd_deploy.pipeline.training_stages import build_model
from lrd_deploy.pipeline.workspace import Workspace, stored_recipe
from lrd_deploy.records import Arm, RankPlan, RunRecord, TrainedModel

if TYPE_CHECKING:
    from torch import nn

RUN_NAME = "run.json"


@dataclass(frozen=True)
class FinishedRun:
    """The records of a run whose every stage is done."""

    work: Workspace
    record: RunRecord
    trained: Mapping[Arm, TrainedModel]
    plan: RankPlan
    exported: ExportedPair
    rewritten: RewrittenModel
    built: BuiltEngines

    def model_file(self, arm: Arm) -> Path:
        """Returns the ONNX file of an arm.

        Raises:
            InputError: it is not the file that the run wrote.
            StorageError: it cannot be read.
        """
        digest = self.exported.dense.sha256 if arm == "dense" else self.rewritten.report.sha256
        return self._unchanged(Path(f"{arm}.onnx"), digest)

    def engine_file(self, path: Path, sha256: str) -> Path:
        """Returns an engine that the run built; it is code, and used only where its digest is the recorded one.

        Raises:
            InputError: it is not the file that the run built.
            StorageError: it cannot be read.
        """
        return self._unchanged(path, sha256)

    def inputs(self) -> Batch:
        """Returns test data, by input name."""
        return stored_arrays(self.work.path(str(self.exported.inputs)))

    def digests(self, arm: Arm) -> dict[str, str]:
        """Returns the SHA-256 of what an arm was made from, by file name in the run's folder."""
        names = (RUN_NAME, f"{arm}.onnx", str(self.trained[arm].weights))
        return {name: sha256_of(self.work.path(name)) for name in names}

    def model(self, arm: Arm) -> nn.Module:
        """Returns the trained PyTorch model of an arm.

        Raises:
            LrdError: the model cannot be built here, or its weights are not those that the run trained.
        """
        trained = self.trained[arm]
        self._unchanged(trained.weights, trained.sha256)
        return build_model(self.work, trained.weights, self.plan if arm == "lowrank" else None).eval()

    def _unchanged(self, path: Path, sha256: str) -> Path:
        file = self.work.path(str(path))
        if sha256_of(file) != sha256:
            raise InputError(
                f"reading '{file}'",
                found="other bytes than the run wrote",
                accepted="the file whose digest is in the run's records",
                remedy=f"run 'lrd-deploy run {self.work.folder}', which makes it again",
            )
        return file


def open_finished_run(folder: Path, observer: Observer) -> FinishedRun:
    """Opens the folder of a run; nothing is written, so it may be read-only.

    Raises:
        UsageError: it is no run's folder, or the run is not finished.
        InputError: a record was written by another version.
    """
    stored = stored_recipe(folder)
    if not (folder / RUN_NAME).is_file():
        raise _unfinished(folder, f"no {RUN_NAME} in it")
    record = RunRecord.read(folder / RUN_NAME)
    trained: dict[Arm, TrainedModel] = {
        "dense": TrainedModel.read(folder / "dense.json"),
        "lowrank": TrainedModel.read(folder / "lowrank.json"),
    }
    if (record.accuracy.dense, record.accuracy.lowrank) != (trained["dense"].accuracy, trained["lowrank"].accuracy):
        raise _unfinished(folder, f"models trained since {RUN_NAME} was written")
    return FinishedRun(
        work=Workspace(stored.recipe, stored.recipe_folder, folder, observer),
        record=record,
        trained=trained,
        plan=RankPlan.read(folder / "plan.json"),
        exported=ExportedPair.read(folder / "export.json"),
        rewritten=RewrittenModel.read(folder / "rewrite.json"),
        built=BuiltEngines.read(folder / "build.json"),
    )


def in_pytorch_as(
    model: nn.Module, inputs: Batch, outputs: Sequence[str], *, bare_tensor: bool
) -> Callable[[Batch], dict[str, NDArray[np.generic]]]:
    """Returns a model as a function of arrays by name, its outputs called as in its file.

    Args:
        model: in PyTorch.
        inputs: an example.
        outputs: names, in the model's own order.
        bare_tensor: the model takes the one input without its name; else all by keyword.
    """
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    run = in_pytorch(model, next(iter(tensors.values())) if bare_tensor else tensors)
    return lambda batch: dict(zip(outputs, run(batch).values(), strict=True))


def _unfinished(folder: Path, found: str) -> UsageError:
    return UsageError(
        f"opening the finished run '{folder}'",
        found=found,
        accepted="the folder of a run whose every stage is done",
        remedy=f"finish it with 'lrd-deploy run {folder}'",
    )

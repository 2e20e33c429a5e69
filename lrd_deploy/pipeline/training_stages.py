"""The stages that need PyTorch: dense model, plan, low-rank model. Heavy imports are inside the functions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrd_deploy.bench.environment import environment
from lrd_deploy.files import sha256_of, write_whole
from lrd_deploy.pipeline.local_code import source_digest
from lrd_deploy.pipeline.planning import measures
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.recipe.settings import FineTuning, PythonData, PythonModel, Training, TransformersPretrained
from lrd_deploy.records import Epoch, RankPlan, TrainedModel

if TYPE_CHECKING:
    from torch import nn

    from lrd_deploy.models.data import Data

_WEIGHTS = "model.safetensors"


def dense_stage(work: Workspace) -> TrainedModel:
    """Trains the dense model, or takes it as it comes when it is trained already."""
    recipe = work.recipe
    depends_on = {**sources(work), "dense": _json(recipe.dense)}
    return work.stage("dense", TrainedModel, depends_on, lambda key: _make_dense(work, key), together=True)


def plan_stage(work: Workspace, dense: TrainedModel) -> RankPlan:
    """Chooses ranks; policies that measure are tied to this machine, the others are not."""
    recipe = work.recipe
    depends_on = {
        **sources(work),
        "dense": dense.sha256,
        "ranks": _json(recipe.ranks),
        "skip": recipe.skip,
        "calibration": _json(recipe.calibration),
        **(_conditions(work) if measures(recipe.ranks) else {}),
    }
    return work.stage("plan", RankPlan, depends_on, lambda _key: _make_plan(work, dense))


def lowrank_stage(work: Workspace, dense: TrainedModel, plan: RankPlan) -> TrainedModel:
    """Decomposes the dense model by the plan and fine-tunes it."""
    depends_on = {
        **sources(work),
        "dense": dense.sha256,
        "layers": [layer.model_dump(mode="json", include={"name", "choice"}) for layer in plan.layers],
        "calibration": _json(work.recipe.calibration),
        "fine_tune": _json(work.recipe.fine_tune),
    }
    return work.stage(
        "lowrank", TrainedModel, depends_on, lambda key: _make_lowrank(work, dense, plan, key), together=True
    )


def build_model(work: Workspace, weights: Path | None = None, plan: RankPlan | None = None) -> nn.Module:
    """Returns the recipe's model: dense or with a plan's layers, with its own weights or those of a stage."""
    from lrd_deploy.decompose.surgery import load_lowrank_
    from lrd_deploy.models.source import load_model, load_weights_, make_importable

    make_importable(work.recipe_folder)
    module = load_model(work.recipe.model).module
    if plan is not None and weights is not None:
        return load_lowrank_(module, plan, work.path(str(weights)))
    return load_weights_(module, work.path(str(weights))) if weights is not None else module


def build_data(work: Workspace) -> Data:
    """Returns the recipe's data."""
    from lrd_deploy.models.data import load_data
    from lrd_deploy.models.source import make_importable

    make_importable(work.recipe_folder)
    return load_data(work.recipe.data, seed=work.recipe.seed)


def _make_dense(work: Workspace, key: str) -> tuple[TrainedModel, list[Path]]:
    from lrd_deploy.models.fit import check_fit
    from lrd_deploy.models.source import load_model

    recipe = work.recipe
    data = build_data(work)  # which makes the recipe's folder importable
    _seed(work)  # new weights are random, and the same every time
    loaded = load_model(recipe.model)
    check_fit(loaded.module, data)
    if loaded.trained or recipe.dense is None:
        return _stored(work, "dense", loaded.module, data)
    epochs = _trained(work, "dense", key, loaded.module, data, recipe.dense)
    return _stored(work, "dense", loaded.module, data, epochs=epochs)


def _make_plan(work: Workspace, dense: TrainedModel) -> tuple[RankPlan, list[Path]]:
    from lrd_deploy.pipeline.planning import plan_model, write_study

    data = build_data(work)
    _seed(work)
    planned = plan_model(work, build_model(work, dense.weights), data)
    return planned.plan, write_study(planned, work.path("plan"))


def _make_lowrank(work: Workspace, dense: TrainedModel, plan: RankPlan, key: str) -> tuple[TrainedModel, list[Path]]:
    from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
    from lrd_deploy.decompose.surgery import decompose_
    from lrd_deploy.models.data import batches
    from lrd_deploy.pipeline.planning import planned_metrics
    from lrd_deploy.train.accuracy import accuracy

    settings, data = work.recipe.fine_tune, build_data(work)
    work.observer.note(f"decomposing {len(plan.factorised)} layers")
    _seed(work)
    model = build_model(work, dense.weights)
    decompose_(model, plan, planned_metrics(work, model, data, plan))
    _seed(work)
    reestimate_batchnorm_(model, islice((inputs for inputs, _ in batches(data.train)), settings.batchnorm_batches))
    before = accuracy(model, data)
    teacher = None if settings.distillation is None else build_model(work, dense.weights)
    epochs = _trained(work, "lowrank", key, model, data, settings, teacher)
    return _stored(work, "lowrank", model, data, epochs=epochs, accuracy_before=before)


def _trained(
    work: Workspace,
    stage: str,
    key: str,
    model: nn.Module,
    data: Data,
    settings: Training,
    teacher: nn.Module | None = None,
) -> tuple[Epoch, ...]:
    from lrd_deploy.train.loop import TrainingJob, train

    job = TrainingJob(
        model=model,
        data=data,
        settings=settings,
        seed=work.recipe.seed,
        checkpoints=work.scratch(stage, key),
        what="fine-tuning" if isinstance(settings, FineTuning) else "training dense",
        teacher=teacher,
        progress=work.recipe.progress,
        log=work.path(stage, "training.jsonl"),
    )
    return train(job, work.observer)


def _stored(
    work: Workspace,
    stage: str,
    model: nn.Module,
    data: Data,
    *,
    epochs: tuple[Epoch, ...] = (),
    accuracy_before: float | None = None,
) -> tuple[TrainedModel, list[Path]]:
    from lrd_deploy.models.source import save_weights
    from lrd_deploy.train.accuracy import accuracy, chance
    from lrd_deploy.train.freezing import factor_groups

    weights = work.path(stage, _WEIGHTS)
    if work.processes.is_main:
        write_whole(weights, lambda target: save_weights(model, target))
    work.processes.wait()
    record = TrainedModel(
        weights=weights.relative_to(work.folder),
        sha256=sha256_of(weights),
        accuracy=accuracy(model, data),
        chance=chance(data),
        accuracy_before=accuracy_before,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=epochs,
        trained_here=bool(epochs),
        groups=factor_groups(model),
    )
    return record, [weights]


def _seed(work: Workspace) -> None:
    from accelerate.utils import set_seed

    set_seed(work.recipe.seed)


def sources(work: Workspace) -> dict[str, Any]:
    """What the model and the data depend on; weights and local code by content, not by path."""
    recipe = work.recipe
    sources: dict[str, Any] = {"model": _json(recipe.model), "data": _json(recipe.data), "seed": recipe.seed}
    weights = getattr(recipe.model, "weights", None)
    if weights is not None:
        sources["model"]["weights"] = sha256_of(weights)
    if isinstance(recipe.model, TransformersPretrained) and Path(recipe.model.transformers).exists():
        sources["model"]["transformers"] = sha256_of(Path(recipe.model.transformers))
    for source in (recipe.model, recipe.data):
        if isinstance(source, (PythonModel, PythonData)):
            sources[f"code of {source.python}"] = source_digest(source.python, work.recipe_folder)
    return sources


def _conditions(work: Workspace) -> dict[str, Any]:
    bench = work.recipe.bench
    return {
        "machine": environment().fingerprint,
        "batch": bench.batch,
        "threads": bench.threads,
        "execution": bench.execution.model_dump(mode="json"),
        "tables": [sha256_of(table) for table in work.recipe.tables],
    }


def _json(settings: Any) -> Mapping[str, Any] | None:
    return None if settings is None else settings.model_dump(mode="json")

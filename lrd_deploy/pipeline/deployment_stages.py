"""The stages after training: export, rewrite, measure. Heavy imports are inside the functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import Batch, repeated, save_arrays, stored_arrays, stored_batches
from lrd_deploy.errors import BackendError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.files import sha256_of, write_with_companions
from lrd_deploy.pipeline.training_stages import build_data, build_model, sources
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.records import (
    BuiltEngines,
    Comparison,
    DimensionRange,
    ExportedModel,
    ExportedPair,
    RankPlan,
    RewrittenModel,
    TrainedModel,
    TrainingSpeedup,
)

if TYPE_CHECKING:
    from torch import nn

    from lrd_deploy.engines import BuildSettings
    from lrd_deploy.models.example import Example
    from lrd_deploy.recipe import Recipe

_INPUTS = "inputs.npz"
_CHECKED_BATCHES = (1, 2, 7)


def export_stage(work: Workspace, dense: TrainedModel, lowrank: TrainedModel, plan: RankPlan) -> ExportedPair:
    """Exports both arms and compares each with its PyTorch model on test data."""
    depends_on = {
        **sources(work),
        "dense": dense.sha256,
        "lowrank": lowrank.sha256,
        "layers": [layer.model_dump(mode="json", include={"name", "choice"}) for layer in plan.layers],
        "export": work.recipe.export.model_dump(mode="json"),
        "batch": work.recipe.bench.batch,
    }
    return work.stage("export", ExportedPair, depends_on, lambda _key: _export_both(work, dense, lowrank, plan))


def rewrite_stage(work: Workspace, exported: ExportedPair) -> RewrittenModel:
    """Pads the low-rank arm's ranks to the quantum and checks that its outputs stay."""
    quantum = work.recipe.padded_to
    depends_on = {"lowrank": exported.lowrank.sha256, "quantum": quantum}

    def make(_key: str) -> tuple[RewrittenModel, list[Path]]:
        from lrd_deploy.pipeline.rewriting import rewrite_model
        from lrd_deploy.rewrite.pad_rank import PadRank

        target = work.path("lowrank.onnx")
        rewritten = rewrite_model(
            work.path("export", "lowrank.onnx"), [PadRank(quantum)], target, _batches(work, exported)
        )
        return rewritten, [target]

    return work.stage("rewrite", RewrittenModel, depends_on, make)


def build_stage(work: Workspace, exported: ExportedPair, rewritten: RewrittenModel) -> BuiltEngines:
    """Builds both arms with every backend that can build on this machine; a refusal is recorded, not raised."""
    from lrd_deploy.engines import BACKENDS

    here = [status for status in (backend.describe() for backend in BACKENDS.values()) if status.builds]
    depends_on = {
        "dense": exported.dense.sha256,
        "lowrank": rewritten.report.sha256,
        "inputs": sha256_of(work.path(str(exported.inputs))),
        "backends": {status.name: status.version for status in here},
        "machine": environment().fingerprint,
        "build": work.recipe.build.model_dump(mode="json"),
        "batch": work.recipe.bench.batch,
    }
    names = [status.name for status in here]
    return work.stage("build", BuiltEngines, depends_on, lambda _key: _build_all(work, names))


def bench_stage(work: Workspace, exported: ExportedPair, rewritten: RewrittenModel) -> Comparison:
    """Measures the low-rank arm against the dense one."""
    settings = work.recipe.bench
    depends_on = {
        "dense": exported.dense.sha256,
        "lowrank": rewritten.report.sha256,
        "inputs": sha256_of(work.path(str(exported.inputs))),
        "bench": settings.model_dump(mode="json", exclude={"training_launches"}),
        "machine": environment().fingerprint,
    }

    def make(_key: str) -> tuple[Comparison, list[Path]]:
        from lrd_deploy.bench.compare import compare
        from lrd_deploy.bench.samples_file import SamplesFile

        (inputs,) = stored_batches(work.path(str(exported.inputs)), [settings.batch])
        samples, arms = work.path("samples.jsonl"), (work.path("dense.onnx"), work.path("lowrank.onnx"))
        comparison, _ = compare(*arms, inputs, settings, work.observer, SamplesFile(samples))
        return comparison, [samples]

    return work.stage("bench", Comparison, depends_on, make)


def training_bench_stage(
    work: Workspace, dense: TrainedModel, lowrank: TrainedModel, plan: RankPlan
) -> TrainingSpeedup:
    """Measures fine-tuning steps against dense ones, where training runs: on the GPU, or on all cores."""
    recipe = work.recipe
    here = environment()
    depends_on = {
        "dense": dense.sha256,
        "lowrank": lowrank.sha256,
        **sources(work),
        "recipe": recipe.model_dump(mode="json", include={"dense", "fine_tune"}),
        "torch": here.packages.get("torch"),
        "launches": recipe.bench.training_launches,
        "machine": here.fingerprint,
    }

    def make(_key: str) -> tuple[TrainingSpeedup, list[Path]]:
        from lrd_deploy.bench.training import TrainingLaunchPlan, compare_training
        from lrd_deploy.train.devices import training_device

        launch = TrainingLaunchPlan(
            recipe=recipe,
            recipe_folder=work.recipe_folder,
            plan=plan,
            dense_weights=work.path(str(dense.weights)).resolve(),
            lowrank_weights=work.path(str(lowrank.weights)).resolve(),
            dense_first=True,
            threads=here.cores,
            device=training_device(),
        )
        return compare_training(launch, recipe.bench.training_launches, work.observer), []

    return work.stage("training_bench", TrainingSpeedup, depends_on, make)


def engine_settings(recipe: Recipe) -> BuildSettings:
    """Returns how a run's engines are built; tuned for the batch of the measurement where the recipe says none."""
    from lrd_deploy.engines import BuildSettings

    wanted, measured = recipe.build, recipe.bench.batch
    return BuildSettings(
        min_batch=wanted.min_batch,
        opt_batch=wanted.opt_batch or max(measured, wanted.min_batch),
        max_batch=wanted.max_batch or max(64, measured, wanted.opt_batch or 0, wanted.min_batch),
        dimensions=wanted.dimensions,
        tf32=wanted.tf32,
    )


def _settings_for(backend: str, work: Workspace) -> BuildSettings:
    """Named GPUs are TensorRT-RTX's alone: TensorRT compiles for the one at hand.

    A dynamic dimension that the recipe gives no sizes may have up to the size that it has in the data.
    """
    settings, data = engine_settings(work.recipe), stored_arrays(work.path("export", _INPUTS))
    inputs = graph_inputs(read_model(work.path("dense.onnx")))
    batches = {tensor.shape[0] for tensor in inputs if tensor.shape}
    sizes = {
        dim: DimensionRange(min=1, opt=size, max=size)
        for tensor in inputs
        for dim, size in zip(tensor.shape[1:], data[tensor.name].shape[1:], strict=True)
        if isinstance(dim, str) and dim not in batches
    }
    named = work.recipe.build.compute_capabilities if backend == "tensorrt-rtx" else ()
    return settings.model_copy(update={"compute_capabilities": named, "dimensions": {**sizes, **settings.dimensions}})


def _build_all(work: Workspace, backends: list[str]) -> tuple[BuiltEngines, list[Path]]:
    from lrd_deploy.engines.artifact import manifest_of
    from lrd_deploy.engines.building import build_engine

    built, refused, files = {}, {}, []
    jobs = [(backend, arm) for backend in backends for arm in ("dense", "lowrank")]
    for number, (backend, arm) in enumerate(jobs):
        model, engine = work.path(f"{arm}.onnx"), work.path("engines", f"{arm}.{backend}")
        engine.parent.mkdir(exist_ok=True)
        try:
            artifact = build_engine(backend, model, engine, _settings_for(backend, work))
        except BackendError as refusal:
            refused[f"{backend} {arm}"] = str(refusal)
            continue
        built[f"{backend} {arm}"] = artifact.model_copy(update={"path": engine.relative_to(work.folder)})
        files += [engine, manifest_of(engine)]
        work.observer.progress("building engines", number + 1, len(jobs))
    return BuiltEngines(engines=built, refused=refused), files


def _export_both(
    work: Workspace, dense: TrainedModel, lowrank: TrainedModel, plan: RankPlan
) -> tuple[ExportedPair, list[Path]]:
    from lrd_deploy.models.example import is_tensor, named_inputs

    example = build_data(work).example()
    inputs = work.path("export", _INPUTS)
    files = {"dense": work.path("dense.onnx"), "lowrank": work.path("export", "lowrank.onnx")}
    models = {
        "dense": build_model(work, dense.weights),
        "lowrank": build_model(work, lowrank.weights, plan),
    }
    named = named_inputs(models["dense"], example)
    save_arrays(inputs, {name: tensor.numpy() for name, tensor in named.items()})
    exported = {}
    for number, name in enumerate(files):
        exported[name] = _export_one(models[name], example, files[name], work.recipe.export.opset)
        work.observer.progress("exporting", number + 1, len(files))
    pair = ExportedPair(
        dense=exported["dense"],
        lowrank=exported["lowrank"],
        inputs=inputs.relative_to(work.folder),
        bare_tensor=is_tensor(example),
    )
    return pair, [*files.values(), inputs]


def _export_one(model: nn.Module, example: Example, path: Path, opset: int) -> ExportedModel:
    from lrd_deploy.engines import SessionSettings, runtime
    from lrd_deploy.engines.difference import compare_outputs, outputs_moved, rounding_tolerance
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.export.torch_export import export_onnx
    from lrd_deploy.models.example import named_inputs

    named, in_torch = named_inputs(model, example), in_pytorch(model.eval(), example)
    batches = [{name: repeated(tensor.numpy(), size) for name, tensor in named.items()} for size in _CHECKED_BATCHES]
    exported = []

    def export_and_compare(target: Path) -> None:
        record = export_onnx(model, example, target, opset=opset)
        session = runtime("onnxruntime").load(target, SessionSettings())
        difference = compare_outputs(in_torch, session.run, batches, rounding_tolerance(read_model(target)))
        if not difference.passed:
            raise outputs_moved(f"exporting to '{path}'", difference)
        exported.append(record.model_copy(update={"path": Path(path.name), "difference": difference}))

    write_with_companions(path, export_and_compare)
    return exported[0]


def in_pytorch(model: nn.Module, example: Example) -> Callable[[Batch], dict[str, NDArray[np.generic]]]:
    """Returns a model as the function of arrays by name that its exported file should be."""
    import torch

    from lrd_deploy.models.example import call, in_form_of, named_inputs, named_outputs

    names = tuple(named_inputs(model, example))

    @torch.no_grad()
    def run(batch: Batch) -> dict[str, NDArray[np.generic]]:
        inputs = in_form_of(example, [torch.from_numpy(np.array(batch[name])) for name in names])
        return {name: tensor.numpy() for name, tensor in named_outputs(call(model, inputs), example).items()}

    return run


def _batches(work: Workspace, exported: ExportedPair) -> list[Batch]:
    return stored_batches(work.path(str(exported.inputs)), _CHECKED_BATCHES)

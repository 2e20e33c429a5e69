"""A whole run: every stage in order, each from the records of those before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrd_deploy.errors import UsageError
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.pipeline.deployment_stages import (
    bench_stage,
    build_stage,
    export_stage,
    rewrite_stage,
    training_bench_stage,
)
from lrd_deploy.pipeline.planning import measures
from lrd_deploy.pipeline.training_stages import dense_stage, lowrank_stage, plan_stage
from lrd_deploy.pipeline.workspace import Workspace, open_workspace
from lrd_deploy.recipe import Recipe
from lrd_deploy.records import (
    BuiltEngines,
    Comparison,
    ExportedPair,
    KeepDense,
    Pair,
    RankPlan,
    RewrittenModel,
    RunRecord,
    TrainedModel,
    TrainingSpeedup,
)
from lrd_deploy.version import __version__

STAGES = ("dense", "plan", "lowrank", "export", "rewrite", "build", "bench", "training_bench", "report")


@dataclass(frozen=True)
class RunResult:
    """The records of the stages that were wanted; None for those after them."""

    folder: Path
    dense: TrainedModel
    plan: RankPlan | None = None
    lowrank: TrainedModel | None = None
    exported: ExportedPair | None = None
    rewritten: RewrittenModel | None = None
    built: BuiltEngines | None = None
    comparison: Comparison | None = None
    training: TrainingSpeedup | None = None
    record: RunRecord | None = None


def run(
    recipe: Recipe,
    folder: Path,
    *,
    recipe_folder: Path | None = None,
    until: str = "report",
    observer: Observer | None = None,
) -> RunResult:
    """Runs a recipe's stages up to `until` in `folder`, where finished stages are taken as they are.

    Args:
        recipe: what to do.
        folder: is made; holds every result.
        recipe_folder: where `python:` factories are looked for first.
        until: the last of `STAGES` that is wanted.
        observer: hears of progress.

    Raises:
        LrdError: any of them; what was finished is kept, and the next run goes on from there.
    """
    if until not in STAGES:
        raise UsageError(
            "choosing how far to run",
            found=f"'{until}'",
            accepted=f"one of: {', '.join(STAGES)}",
            remedy="name a stage",
        )
    _check_early(recipe, STAGES.index(until))
    with open_workspace(recipe, recipe_folder, folder, observer or SilentObserver()) as work:
        return _run(work, STAGES.index(until))


def _check_early(recipe: Recipe, last: int) -> None:
    """Before hours of training: tables that cannot be read, and more threads than cores where something is timed here.

    A plan from tables may be for another machine.
    """
    from lrd_deploy.bench.compare import check_threads
    from lrd_deploy.bench.latency_table import LatencyTable

    if last >= STAGES.index("plan"):
        LatencyTable.read_all(recipe.tables)
    plans_here = last >= STAGES.index("plan") and measures(recipe.ranks) and not recipe.tables
    if plans_here or last >= STAGES.index("bench"):
        check_threads(recipe.bench.threads)


def _run(work: Workspace, last: int) -> RunResult:
    dense = dense_stage(work)
    if last < STAGES.index("plan"):
        return RunResult(work.folder, dense)
    plan = plan_stage(work, dense)
    if last < STAGES.index("lowrank"):
        return RunResult(work.folder, dense, plan)
    lowrank = lowrank_stage(work, dense, plan)
    if last < STAGES.index("export"):
        return RunResult(work.folder, dense, plan, lowrank)
    exported = export_stage(work, dense, lowrank, plan)
    if last < STAGES.index("rewrite"):
        return RunResult(work.folder, dense, plan, lowrank, exported)
    rewritten = rewrite_stage(work, exported)
    if last < STAGES.index("build"):
        return RunResult(work.folder, dense, plan, lowrank, exported, rewritten)
    built = build_stage(work, exported, rewritten)
    if last < STAGES.index("bench"):
        return RunResult(work.folder, dense, plan, lowrank, exported, rewritten, built)
    comparison = bench_stage(work, exported, rewritten)
    if last < STAGES.index("training_bench"):
        return RunResult(work.folder, dense, plan, lowrank, exported, rewritten, built, comparison)
    training = training_bench_stage(work, dense, lowrank, plan)
    finished = RunResult(work.folder, dense, plan, lowrank, exported, rewritten, built, comparison, training)
    return _reported(work, finished)


def _reported(work: Workspace, result: RunResult) -> RunResult:
    from lrd_deploy.report.html import write_report

    record = _record(work, result)
    if work.processes.is_main:
        record.write(work.path("run.json"))
        write_report(work.folder)
    return RunResult(**{**vars(result), "record": record})


def _warnings(result: RunResult) -> tuple[str, ...]:
    refused = (f"{what}: {reason}" for what, reason in result.built.refused.items())
    dense, untrained = result.dense, ()
    if dense.accuracy <= 1.2 * dense.chance:
        untrained = (
            f"the dense model is right in {dense.accuracy:.1%} of the test data, and always answering the most "
            f"frequent label would be in {dense.chance:.1%}: give its trained 'weights', or a section 'dense'",
        )
    return (*untrained, *result.comparison.warnings, *refused)


def _record(work: Workspace, result: RunResult) -> RunRecord:
    dense, lowrank, plan, comparison = result.dense, result.lowrank, result.plan, result.comparison
    kept = sum(isinstance(layer.choice, KeepDense) for layer in plan.layers)
    return RunRecord(
        version=__version__,
        recipe=work.recipe.name,
        accuracy=Pair(dense=dense.accuracy, lowrank=lowrank.accuracy),
        parameters=Pair(dense=dense.parameters, lowrank=lowrank.parameters),
        macs=Pair(dense=plan.dense_macs, lowrank=plan.lowrank_macs),
        speedup=comparison.speedup,
        control=comparison.control,
        latency={"dense": comparison.base, "lowrank": comparison.candidate},
        training_speedup=result.training.speedup,
        layers={"factorised": len(plan.factorised), "dense": kept},
        predicted_speedup=plan.predicted_speedup,
        seconds=sum(work.seconds.values()),
        stages=work.seconds,
        warnings=_warnings(result),
        artifacts={
            "dense_onnx": Path("dense.onnx"),
            "lowrank_onnx": Path("lowrank.onnx"),
            "report_html": Path("report.html"),
            "run_json": Path("run.json"),
            "plan_json": Path("plan.json"),
            "dense_weights": dense.weights,
            "lowrank_weights": lowrank.weights,
            "samples": Path("samples.jsonl"),
            **{f"{name.replace(' ', '_')}_engine": engine.path for name, engine in result.built.engines.items()},
        },
        environment=comparison.environment,
    )

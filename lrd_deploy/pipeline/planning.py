"""Planning a recipe's model: evidence from its data, latencies from this machine or a table, ranks from both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import repeated
from lrd_deploy.errors import UsageError
from lrd_deploy.files import write_text
from lrd_deploy.models.layer import Layer
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.source import BalancedLatency, LatencySource, ModelTimer
from lrd_deploy.recipe import Recipe
from lrd_deploy.recipe.policies import EnergyRank, LatencyRank, PaperRank, Policy, UniformRank
from lrd_deploy.records import Execution, KeepDense, RankPlan, RankStudy

if TYPE_CHECKING:
    from torch import nn

    from lrd_deploy.bench.layer_latency import MeasuredLatency
    from lrd_deploy.models.data import Data
    from lrd_deploy.models.example import Example
    from lrd_deploy.ranks.by_latency import LatencyPlanner
    from lrd_deploy.ranks.metric import Metric


@dataclass(frozen=True)
class Planned:
    """A plan and, of a policy that measures, what it saw on the way."""

    plan: RankPlan
    study: RankStudy | None


def measures(policy: Policy) -> bool:
    """True for the policies whose plans depend on a machine."""
    return isinstance(policy, LatencyRank | PaperRank)


def plan_model(work: Workspace, model: nn.Module, data: Data) -> Planned:
    """Chooses the ranks of a dense model.

    Raises:
        UsageError: the policy's goal is out of reach, or every layer would stay dense.
        InputError: weights or calibration data are not finite, or a table lacks a layer.
    """
    from lrd_deploy.models.example import first_samples
    from lrd_deploy.models.survey import survey
    from lrd_deploy.ranks.choose import check_finite, plan_ranks

    recipe = work.recipe
    layers = survey(model, first_samples(data.example(), 1), skip=recipe.skip)
    check_finite(layers)
    evidence = gather(work, model, data, layers)
    if not isinstance(recipe.ranks, LatencyRank):
        source = _inference(work) if measures(recipe.ranks) else None
        planned = Planned(plan_ranks(layers, recipe.ranks, source, evidence), None)
    else:
        planned = _by_latency(work, model, data, layers, evidence)
    return Planned(checked(with_reasons(planned.plan, evidence)), planned.study)


def gather(work: Workspace, model: nn.Module, data: Data, layers: Sequence[Layer]) -> Evidence:
    """Runs the calibration samples through the model; without any, there is no evidence."""
    from lrd_deploy.decompose.evidence import gather_evidence

    settings = work.recipe.calibration
    if settings.samples == 0:
        return Evidence()
    work.observer.note(f"running {settings.samples} calibration samples")
    return gather_evidence(model, layers, calibration_batches(work, data), damping=settings.damping)


def calibration_batches(work: Workspace, data: Data) -> list[Example]:
    """Returns the first training inputs, as many as the recipe asks for."""
    from lrd_deploy.models.data import batches
    from lrd_deploy.models.example import first_samples

    missing, taken = work.recipe.calibration.samples, []
    for inputs, labels in batches(data.train):
        taken.append(first_samples(inputs, missing))
        missing -= len(labels)
        if missing <= 0:
            break
    return taken


def planned_metrics(work: Workspace, model: nn.Module, data: Data, plan: RankPlan) -> dict[str, Metric]:
    """Returns how to weigh the error of the planned layers, from the calibration samples that the plan saw too."""
    from lrd_deploy.decompose.evidence import input_moments
    from lrd_deploy.models.example import first_samples
    from lrd_deploy.models.survey import survey
    from lrd_deploy.ranks.evidence import metrics_of

    settings = work.recipe.calibration
    if settings.samples == 0:
        return {}
    planned = {layer.name for layer in plan.factorised}
    layers = [layer for layer in survey(model, first_samples(data.example(), 1)) if layer.name in planned]
    return metrics_of(input_moments(model, layers, calibration_batches(work, data)), damping=settings.damping)[0]


def measured_inference(recipe: Recipe, store: Path, observer: Observer) -> MeasuredLatency:
    """Returns latencies on the deployment backend, as the recipe's `bench` section says, kept in `store`.

    Their precision is the latency policy's; float32 under other policies.
    """
    from lrd_deploy.bench.layer_latency import MeasuredLatency, onnxruntime_layers

    bench = recipe.bench
    layers = onnxruntime_layers(bench.execution, getattr(recipe.ranks, "precision", "fp32"))
    return MeasuredLatency(batch=bench.batch, threads=bench.threads, store=store, observer=observer, layers=layers)


def measured_training(recipe: Recipe, data: Data, store: Path, observer: Observer) -> MeasuredLatency:
    """Returns latencies of training steps in PyTorch under the recipe's freezing and precision, kept in `store`.

    They run on the GPU of `bench`; where that says the CPU, where training runs here. CPU threads are all cores, and on
    a GPU, where they do nothing, one: a table fits machines of any number of cores.
    """
    from lrd_deploy.bench.layer_latency import MeasuredLatency
    from lrd_deploy.bench.layer_training import TrainingCalls
    from lrd_deploy.models.data import batches
    from lrd_deploy.train.devices import training_device

    settings, serving = recipe.fine_tune, recipe.bench.execution
    device = training_device() if serving.gpu is None else serving.device
    precision = "fp32" if settings.mixed_precision == "none" else settings.mixed_precision
    execution = Execution(device=device)  # float32 products as PyTorch has them
    return MeasuredLatency(
        batch=len(next(iter(batches(data.train)))[1]),
        threads=environment().cores if execution.gpu is None else 1,
        store=store,
        observer=observer,
        layers=TrainingCalls(settings.freezing, settings.channels_last, execution, precision),
        work="training",
    )


def with_tables(measured: MeasuredLatency, tables: Sequence[Path]) -> LatencySource:
    """Returns the tables where they are of another machine; else measurements that start from what they hold.

    Raises:
        UsageError: this machine, which would measure, has fewer cores than threads are wanted.
        InputError: a table is none, or has no rows for this deployment.
    """
    from lrd_deploy.bench.compare import check_threads
    from lrd_deploy.bench.latency_table import LatencyTable
    from lrd_deploy.bench.stored_latency import StoredLatency, stored_conditions

    if not tables:
        check_threads(measured.threads)
        return measured
    table = LatencyTable.read_all(tables)
    conditions = stored_conditions(table, measured.conditions)
    if conditions == measured.conditions:
        check_threads(measured.threads)
        measured.known = table
        return measured
    return StoredLatency(table, conditions, table.environments[conditions.fingerprint])


def _by_latency(work: Workspace, model: nn.Module, data: Data, layers: Sequence[Layer], evidence: Evidence) -> Planned:
    from lrd_deploy.ranks.by_latency import LatencyPlanner

    policy = work.recipe.ranks
    source = _inference(work)
    if policy.training_weight > 0:
        source = _balanced(source, _training(work, data), layers, policy.training_weight)
    planner = LatencyPlanner(layers, policy, source, evidence)
    here = source.environment is not None and source.environment.fingerprint == environment().fingerprint
    if not here or policy.training_weight > 0 or policy.precision != "fp32":
        plan = planner.plan()
    else:
        with _whole_model(work, model, data) as timer:
            plan = planner.plan(timer)
    return studied(planner, plan)


def studied(planner: LatencyPlanner, plan: RankPlan) -> Planned:
    """Returns a plan with what the planner saw, and where the policies that need no timing would lie."""
    from lrd_deploy.ranks.choose import plan_ranks

    study = planner.study(plan)
    others = [
        planner.front_point(name, plan_ranks(planner.layers, policy, evidence=planner.evidence))
        for name, policy in _compared(planner.quantum)
    ]
    front = (*study.front, *(point for point in others if point is not None))
    return Planned(plan, study.model_copy(update={"front": front}))


def write_study(planned: Planned, folder: Path) -> list[Path]:
    """Writes what a measuring policy saw, as JSON and as pictures, and returns the files; none for other policies."""
    from lrd_deploy.report.plan_figures import pareto_front, staircases

    if planned.study is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"staircases": staircases(planned.study), "front": pareto_front(planned.study, planned.plan)}
    drawn = [write_text(folder / f"{name}.svg", svg) for name, svg in figures.items()]
    return [planned.study.write(folder / "study.json"), *drawn]


def _inference(work: Workspace) -> LatencySource:
    return with_tables(measured_inference(work.recipe, work.path("latency.jsonl"), work.observer), work.recipe.tables)


def _training(work: Workspace, data: Data) -> LatencySource:
    store = work.path("latency.jsonl")
    return with_tables(measured_training(work.recipe, data, store, work.observer), work.recipe.tables)


def _compared(quantum: int) -> list[tuple[str, Policy]]:
    """What a plan is shown beside: the policies that need no timing."""
    return [
        ("uniform, alpha 2", UniformRank(alpha=2)),
        ("uniform, alpha 2, up to 8", UniformRank(alpha=2, round_to=8, rounding="up")),
        (f"uniform, alpha 2, floored to {quantum}", UniformRank(alpha=2, round_to=quantum)),
        (f"energy 90 %, up to {quantum}", EnergyRank(share=0.9, round_to=quantum)),
    ]


def _balanced(
    inference: LatencySource, training: LatencySource, layers: Sequence[Layer], weight: float
) -> BalancedLatency:
    """Both, scaled so that the dense model weighs the same in either."""
    dense = {layer.signature: [KeepDense()] for layer in layers if layer.signature}
    sums = [
        sum(layer.calls * answers[layer.signature, KeepDense()] for layer in layers if layer.signature)
        for answers in (inference.latencies_ms(dense), training.latencies_ms(dense))
    ]
    return BalancedLatency(inference, training, weight, scale=sums[0] / sums[1])


@contextmanager
def _whole_model(work: Workspace, model: nn.Module, data: Data) -> Iterator[ModelTimer]:
    """The dense model as an ONNX file, ready to be rewritten and timed."""
    from lrd_deploy.bench.model_latency import ModelLatency
    from lrd_deploy.export.torch_export import export_onnx
    from lrd_deploy.models.example import named_inputs

    bench, example = work.recipe.bench, data.example()
    work.observer.note("timing the whole model")
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        path = Path(folder, "dense.onnx")
        exported = export_onnx(model, example, path, opset=work.recipe.export.opset)
        nodes: dict[str, list[str]] = {}
        for origin in exported.origins:
            nodes.setdefault(origin.module, []).append(origin.node)
        named = named_inputs(model, example)
        inputs = {name: repeated(tensor.numpy(), bench.batch) for name, tensor in named.items()}
        yield ModelLatency(path, nodes, inputs, bench.threads, execution=bench.execution)


def with_reasons(plan: RankPlan, evidence: Evidence) -> RankPlan:
    """Returns the plan with why a factorised layer was not weighed by its inputs."""
    layers = [
        layer.model_copy(update={"reason": f"{layer.reason}; {evidence.unweighted[layer.name]}"})
        if layer.name in evidence.unweighted and not isinstance(layer.choice, KeepDense)
        else layer
        for layer in plan.layers
    ]
    return plan.model_copy(update={"layers": tuple(layers)})


def checked(plan: RankPlan) -> RankPlan:
    """Returns a plan that factorises something.

    Raises:
        UsageError: every layer would stay dense.
    """
    if plan.factorised:
        return plan
    reasons = sorted({layer.reason for layer in plan.layers})
    raise UsageError(
        "choosing ranks",
        found=f"every layer would stay dense: {'; '.join(reasons[:4])}",
        accepted="a policy that factorises at least one layer",
        remedy="ask for more compression, or for a smaller 'quantum' or 'round_to'",
    )

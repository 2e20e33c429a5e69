"""Planning an ONNX file: no recipe, no PyTorch; the plan is for `decompose_node`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.model_latency import ModelLatency
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.inputs import random_batches_of, stored_arrays
from lrd_deploy.engines.onnx_moments import check_batches, onnx_moments
from lrd_deploy.engines.profile import shapes_at
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.export.onnx_layers import survey_onnx
from lrd_deploy.models.layer import Layer
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.onnx_samples import refuse_sizes_beside_data
from lrd_deploy.pipeline.planning import Planned, checked, studied, with_reasons, with_tables, write_study
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import check_finite
from lrd_deploy.ranks.evidence import Evidence, metrics_of
from lrd_deploy.recipe import LatencyRank
from lrd_deploy.recipe.settings import Bench, Calibration
from lrd_deploy.records import DimensionRange


def plan_onnx(
    model: Path,
    policy: LatencyRank,
    bench: Bench,
    folder: Path,
    observer: Observer,
    *,
    calibration_data: Path | None = None,
    dimensions: Mapping[str, DimensionRange] | None = None,
    tables: Sequence[Path] = (),
) -> Planned:
    """Chooses the ranks of an ONNX file's nodes by their latency in ONNX Runtime.

    Args:
        model: layers are named after its nodes.
        policy: the goal; training is not planned here.
        bench: batch and threads to time for.
        folder: gets `plan.json`, the study with its pictures, and the latencies, which a second call does not repeat.
        observer: hears of progress.
        calibration_data: an .npz file of arrays by input name, to weigh errors by, and whose sizes layers are timed at;
            without it all inputs weigh alike.
        dimensions: without such data, the size of every dynamic dimension but the batch; see `shapes_at`.
        tables: stored latencies, in the place of measurements.

    Raises:
        InputError: the model or the data is invalid, or a table lacks a layer.
        UsageError: the goal is out of reach, or no layer is worth factorising; a dynamic dimension has no size; this
            machine would measure, and has fewer cores than `bench` has threads.
        Problems: several dynamic dimensions have none.
    """
    graph = read_model(model)
    refuse_sizes_beside_data(dimensions or {}, calibration_data)
    measured = MeasuredLatency(
        batch=bench.batch, threads=bench.threads, store=folder / "latency.jsonl", observer=observer
    )
    source = with_tables(measured, tables)
    batches = _batches_of(graph, calibration_data, bench.batch) if calibration_data else []
    if batches:
        check_batches(graph, batches[:1])
        shapes = {name: array.shape for name, array in batches[0].items()}
    else:
        shapes = shapes_at(graph, bench.batch, dimensions)
    layers = survey_onnx(graph, shapes=shapes)
    check_finite([layer for layer in layers if layer.may_be_factorised])
    evidence = Evidence()
    if calibration_data is not None:
        observer.note(f"running the calibration data of '{calibration_data}'")
        evidence = onnx_evidence(graph, layers, batches)
    planner = LatencyPlanner(layers, policy, source, evidence)
    timer = None
    if source is measured:
        timer = model_timer(model, random_batches_of(model, bench.batch, 1, shapes)[0], bench)
    planned = studied(planner, checked(with_reasons(planner.plan(timer), evidence)))
    planned.plan.write(folder / "plan.json")
    write_study(planned, folder / "plan")
    return planned


def onnx_evidence(graph: ModelProto, layers: Sequence[Layer], batches: Sequence[Arrays]) -> Evidence:
    """Returns how to weigh the errors of a graph's layers, by running batches of samples through it.

    Raises:
        InputError: the batches do not fit the graph.
        BackendError: ONNX Runtime refuses it.
    """
    metrics, unweighted = metrics_of(onnx_moments(graph, layers, batches), damping=Calibration().damping)
    return Evidence(metrics=metrics, unweighted=unweighted)


def model_timer(model: Path, inputs: Arrays, bench: Bench) -> ModelLatency:
    """Returns what times a whole ONNX file on one batch, in the form that a plan of its nodes gives it."""
    return ModelLatency(model, {}, inputs, bench.threads)


def _batches_of(graph: ModelProto, path: Path, batch: int) -> list[Arrays]:
    """All samples of an .npz file, in batches; a last one that is not full is left out where there are others."""
    whole = stored_arrays(path, graph_inputs(graph))
    count = min(map(len, whole.values()))
    starts = range(0, max(count - batch, 0) + 1, batch)
    return [{name: array[start : start + batch] for name, array in whole.items()} for start in starts]

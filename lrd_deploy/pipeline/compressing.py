"""Post-training compression: an ONNX file in, a faster one out. No training, and no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from onnx import ModelProto

from lrd_deploy.bench.compare import check_threads, compare
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.decompose.factorize import factors_of
from lrd_deploy.engines import SessionSettings
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import Run, answers, compare_outputs, rounding_tolerance
from lrd_deploy.engines.onnx_moments import check_batches
from lrd_deploy.engines.onnxruntime import OnnxRuntime
from lrd_deploy.errors import UsageError
from lrd_deploy.export.onnx_file import read_model, weight_precision, write_model
from lrd_deploy.export.onnx_layers import survey_onnx
from lrd_deploy.files import check_apart, sha256_of, storage_errors
from lrd_deploy.observer import Observer
from lrd_deploy.pipeline.bias_correction import corrected
from lrd_deploy.pipeline.compression_search import Built, fast_enough, within_error
from lrd_deploy.pipeline.onnx_planning import model_timer, onnx_evidence
from lrd_deploy.pipeline.onnx_samples import Samples, check_enough
from lrd_deploy.pipeline.planning import with_reasons, with_tables
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import check_finite
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.source import LatencySource, ModelTimer
from lrd_deploy.recipe import LatencyRank
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import (
    Choice,
    Comparison,
    CompressedModel,
    KeepDense,
    OutputDifference,
    Pair,
    RankPlan,
    Skipped,
)
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.decompose_node import DecomposeNode


@dataclass(frozen=True)
class Measuring:
    """How a compression measures.

    Attributes:
        latency: of single layers.
        timer: of whole models; None where latencies are another machine's.
        compare: the dense file against another, in fresh processes.
    """

    latency: LatencySource
    timer: ModelTimer | None
    compare: Callable[[Path, Path], Comparison]


def measuring_here(
    model: Path, inputs: Arrays, bench: Bench, store: Path, tables: Sequence[Path], observer: Observer
) -> Measuring:
    """Returns measurements on this machine, on one batch of inputs.

    Args:
        model: the dense file.
        inputs: one batch, by input name.
        bench: the deployment.
        store: keeps latencies of layers, and has those of earlier calls.
        tables: more of them; those of another machine take the place of measurements of layers.
        observer: hears of progress.

    Raises:
        UsageError: there are more threads than cores; what comes out is measured here in any case.
        InputError: a table is none, or has no rows for this deployment.
    """
    check_threads(bench.threads)
    measured = MeasuredLatency(batch=bench.batch, threads=bench.threads, store=store, observer=observer)
    source = with_tables(measured, tables)

    def compared(base: Path, candidate: Path) -> Comparison:
        return compare(base, candidate, inputs, bench, observer)[0]

    return Measuring(source, model_timer(model, inputs, bench) if source is measured else None, compared)


def compress(
    source: Path, target: Path, goal: LatencyRank, samples: Samples, measuring: Measuring, observer: Observer
) -> CompressedModel:
    """Factorises an ONNX file's layers so that it meets a goal, corrects biases, and measures what came out.

    Args:
        source: an ONNX file.
        target: gets the result, whole or not at all.
        goal: a speedup or an error of the outputs.
        samples: to weigh errors and correct biases by, and to judge the outputs on; layers are timed at their sizes.
        measuring: times layers and models.
        observer: hears of progress.

    Raises:
        UsageError: the goal is out of reach, and the message names the nearest that is not; or no plan is faster.
        InputError: the model or the samples are invalid or too few, or no layer can be factorised.
        BackendError: ONNX Runtime refuses a model.
        StorageError: a file cannot be read or written.
    """
    dense = read_model(source)
    _check_writable(target, source)
    check_enough(samples, f"compressing '{source}'")
    check_batches(dense, samples.calibration[:1])
    shapes = {name: array.shape for name, array in samples.calibration[0].items()}
    layers = survey_onnx(dense, shapes=shapes)
    check_finite([layer for layer in layers if layer.may_be_factorised])
    observer.note(f"running {samples.calibration_count} calibration samples")
    evidence = onnx_evidence(dense, layers, samples.calibration)
    planner = LatencyPlanner(layers, goal, measuring.latency, evidence)
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        build = _Workshop(dense, evidence, samples, Path(folder), observer, count())
        if goal.target_speedup is not None:
            compared = partial(_compared, measuring, source)
            built, comparison = fast_enough(planner, measuring.timer, build, compared)
        else:
            built = within_error(planner, build)
            comparison = measuring.compare(source, built.path)
        _check_faster(source, comparison, measuring)
        write_model(read_model(built.path), target)
    plan = with_reasons(built.plan, evidence)
    plan = plan.model_copy(update={"notes": (*plan.notes, *_caveats(dense, goal, comparison, measuring))})
    return _record(target, goal, samples, built, comparison, plan)


def _check_writable(target: Path, source: Path) -> None:
    """Minutes of work end in this folder; the trained model is not to be replaced by what was made of it."""
    check_apart(target, source)
    if target.is_dir():
        raise UsageError(
            f"writing '{target}'", found="a folder", accepted="a path for a file", remedy="name the file with -o"
        )
    with storage_errors("writing", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=target.parent).close()


def _check_faster(source: Path, comparison: Comparison, measuring: Measuring) -> None:
    """Sums over layers promised a faster model; what fresh processes measure on this machine decides."""
    if measuring.timer is not None and comparison.speedup.high < 1.0:
        raise UsageError(
            f"compressing '{source}'",
            found=f"a plan that measures {comparison.speedup.estimate:.2f}× in fresh processes, slower than dense",
            accepted="a model that is faster as a whole, not only layer by layer",
            remedy="keep the model as it is, or compress for another batch or number of threads",
        )


def _caveats(dense: ModelProto, goal: LatencyRank, comparison: Comparison, measuring: Measuring) -> tuple[str, ...]:
    """What a reader of the speedup must know."""
    notes = []
    precision, here = weight_precision(dense), comparison.speedup
    if precision != "fp32":
        notes.append(f"layers were timed in float32, and the model's weights are {precision}")
    if measuring.timer is None and here.high < (goal.target_speedup or 1.0):
        notes.append(f"planned for another machine; on this one it measures {here.estimate:.2f}×")
    return tuple(notes)


def _compared(measuring: Measuring, source: Path, built: Built) -> Comparison:
    return measuring.compare(source, built.path)


@dataclass(frozen=True)
class _Workshop:
    """Carries out plans of one model."""

    dense: ModelProto
    evidence: Evidence
    samples: Samples
    folder: Path
    observer: Observer
    numbers: count

    def __call__(self, plan: RankPlan) -> Built:
        """Factorises, corrects the biases where that helps on the calibration samples, and compares outputs."""
        choices = {layer.name: layer.choice for layer in plan.factorised}
        self.observer.note(f"factorising {len(choices)} layers, and correcting their biases")
        number = next(self.numbers)
        factorised, skipped = self._factorised(choices)
        plain = read_model(write_model(factorised, self.folder / f"uncorrected-{number}.onnx"))
        del factorised  # weights beside the dense model are read from the copy's file from now on
        done = {name: choice for name, choice in choices.items() if name not in {entry.node for entry in skipped}}
        shifted, corrections = corrected(self.dense, plain, done, self.samples.calibration)
        fitted = self._differences((plain, shifted), self.samples.calibration)
        is_corrected = fitted[1].relative_l2 < fitted[0].relative_l2
        judged = self._differences((plain, shifted), self.samples.held_out)
        return Built(
            plan=plan,
            path=write_model(shifted if is_corrected else plain, self.folder / f"lowrank-{number}.onnx"),
            skipped=skipped,
            outputs=judged[is_corrected],
            uncorrected=judged[0],
            corrections=corrections,
            is_corrected=is_corrected,
        )

    def _factorised(self, choices: Mapping[str, Choice]) -> tuple[ModelProto, tuple[Skipped, ...]]:
        """Each layer weighs errors by its own inputs."""
        weighed = {name: partial(factors_of, metric=metric) for name, metric in self.evidence.metrics.items()}
        model, _, skipped = apply_rules(self.dense, [DecomposeNode(choices, factorise_of=weighed)])
        return model, skipped

    def _differences(self, models: Sequence[ModelProto], batches: tuple[Arrays, ...]) -> list[OutputDifference]:
        """Of each model from the dense one; one of them at a time is in memory."""

        def run(model: ModelProto) -> Run:
            return OnnxRuntime().load_in_memory(model, SessionSettings()).run

        expected, tolerance = answers(run(self.dense), batches), rounding_tolerance(self.dense)
        return [compare_outputs(expected, run(model), batches, tolerance) for model in models]


def _record(
    target: Path, goal: LatencyRank, samples: Samples, built: Built, comparison: Comparison, plan: RankPlan
) -> CompressedModel:
    kept = [layer for layer in plan.layers if isinstance(layer.choice, KeepDense)]
    refused = tuple(Skipped(rule="decompose_node", node=layer.name, reason=layer.reason) for layer in kept)
    return CompressedModel(
        path=Path(target.name),
        sha256=sha256_of(target),
        goal=f"a speedup of {goal.target_speedup:g}" if goal.target_speedup else f"an error within {goal.max_error:g}",
        layers=plan.layers,
        skipped=refused + built.skipped,
        data=samples.source,
        calibration_samples=samples.calibration_count,
        held_out_samples=samples.held_out_count,
        bias_corrections=built.corrections,
        bias_corrected=built.is_corrected,
        output_error=built.outputs.relative_l2,
        output_error_uncorrected=built.uncorrected.relative_l2,
        output_cosine=built.outputs.cosine,
        top1_agreement=built.outputs.top1_agreement,
        predicted_error=plan.predicted_error,
        parameters=Pair(dense=plan.dense_parameters, lowrank=plan.lowrank_parameters),
        macs=Pair(dense=plan.dense_macs, lowrank=plan.lowrank_macs),
        speedup=comparison.speedup,
        comparison=comparison,
        notes=plan.notes,
    )

"""Records as terminal tables; plain text where the output is not a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from lrd_deploy.bench.diagnosis import Diagnosis
from lrd_deploy.records import (
    BundleCheck,
    CalibratedLatencies,
    CheckpointReport,
    Comparison,
    Epoch,
    FactorisedWeight,
    OutputDifference,
    PackageResult,
    RankEnforcement,
    RankPlan,
    RewriteReport,
    RunRecord,
    TrainedModel,
)
from lrd_deploy.report.wording import choice_name, comparison_rows, milliseconds, plan_sentences, speedup


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table; columns of numbers are right-aligned. Cells are text, not markup."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        result.add_column(column, justify="right" if column in _NUMERIC else "left", overflow="fold")
    for row in rows:
        result.add_row(*(escape(cell) for cell in row))
    return result


_NUMERIC = {
    "dense",
    "low-rank",
    "dense ms",
    "base ms",
    "candidate ms",
    "difference ms",
    "ms",
    "error",
    "p50 ms",
    "p90 ms",
    "samples/s",
    "epoch",
    "loss",
    "accuracy",
    "weights",
    "rank",
    "seconds each",
    "relative error",
    "parameters before",
    "after",
    "bytes",
}


def run_summary(record: RunRecord, folder: str) -> RenderableType:
    """What a run found."""
    warnings = [f"warning: {escape(text)}" for text in record.warnings]
    return Group(
        table(("", "dense", "low-rank", "low-rank against dense"), comparison_rows(record)),
        f"{record.layers['factorised']} layers factorised, {record.layers['dense']} kept dense; "
        f"batch and threads as in the recipe, on {escape(record.environment.cpu)} ({record.environment.cores} cores).",
        f"A/A control: the dense model against itself came out at {record.control.estimate:.3f}.",
        *warnings,
        f"report: {escape(folder)}/report.html",
    )


def plan_table(plan: RankPlan, figures: Sequence[Path] = ()) -> RenderableType:
    """One row per layer, the totals, what to know about them, and where the pictures are."""
    rows = [
        (
            layer.name,
            str(layer.signature or "–"),
            milliseconds(layer.dense_latency_ms),
            choice_name(layer.choice),
            milliseconds(layer.predicted_latency_ms),
            f"{layer.predicted_error:.3f}" if layer.predicted_error else "",
            layer.reason,
        )
        for layer in plan.layers
    ]
    totals = (
        f"{len(plan.factorised)} of {len(plan.layers)} layers factorised; "
        f"parameters {plan.lowrank_parameters / plan.dense_parameters:.0%}, "
        f"MACs {plan.lowrank_macs / plan.dense_macs:.0%} of dense"
    )
    lines = [totals, *plan_sentences(plan), *(f"note: {note}" for note in plan.notes)]
    lines += [f"picture: {figure}" for figure in figures]
    columns = ("layer", "shape", "dense ms", "choice", "ms", "error", "why")
    return Group(table(columns, rows), *(escape(line) for line in lines))


def figures_of(folder: Path) -> list[Path]:
    """Returns the pictures that the plan stage left in a run's folder."""
    return sorted((folder / "plan").glob("*.svg"))


def calibration_table(done: CalibratedLatencies) -> RenderableType:
    """What was measured, and how to use it."""
    lines = [
        f"{done.layers} layers timed for {done.work}: {done.rows_written} new rows, {done.rows} in {done.path}",
        f"ranks step by {done.quantum} on this machine ({done.fingerprint})",
        *(f"note: {note}" for note in done.notes),
        f"use it anywhere: lrd-deploy plan RECIPE --table {done.path}",
    ]
    return Group(*(escape(line) for line in lines))


def training_table(trained: TrainedModel) -> RenderableType:
    """One row per epoch."""
    rows = [
        (str(epoch.epoch), ", ".join(epoch.frozen), f"{epoch.loss:.4f}", f"{epoch.accuracy:.2%}", _rate(epoch))
        for epoch in trained.epochs
    ]
    return Group(
        table(("epoch", "frozen", "loss", "accuracy", "images"), rows), f"test accuracy {trained.accuracy:.2%}"
    )


def _rate(epoch: Epoch) -> str:
    return f"{epoch.images_per_s:.0f}/s"


def rewrite_table(report: RewriteReport) -> RenderableType:
    """What was done and what was not; where latencies decided, every chain's times before it."""
    rows = [(entry.rule, entry.node, entry.change) for entry in report.applied]
    rows += [(entry.rule, entry.node, f"skipped: {entry.reason}") for entry in report.skipped]
    summary = f"{len(report.applied)} rewritten, {len(report.skipped)} skipped{_moved(report)}"
    if report.speedup is not None:
        summary += f"; speedup of the whole {speedup(report.speedup)}"
    if not rows:
        return Group("no factors found; " + summary, "a dense model gets factors from 'lrd-deploy compress'")
    done = table(("rule", "node", "change"), rows)
    return Group(*_times(report.enforced), done, summary) if report.enforced else Group(done, summary)


def _times(enforced: RankEnforcement) -> list[RenderableType]:
    """The times that decided, in milliseconds of one pass, and for which deployment they are."""
    rows = []
    for decision in enforced.decisions:
        for option in decision.options:
            mark = "chosen" if option.choice == decision.choice else ""
            error = f"{option.relative_error:.2g}" if option.relative_error else ""
            rows.append(
                (decision.chain, option.action, str(option.choice), milliseconds(option.latency_ms), error, mark)
            )
    where = f", on {enforced.measured_on.cpu}" if enforced.measured_on else ""
    lines = [
        f"latencies in {enforced.backend}, batch {enforced.batch}, threads {enforced.threads}{where}",
        *(f"note: {note}" for note in enforced.notes),
    ]
    return [table(("factors", "could", "form", "ms", "error", ""), rows), *(escape(line) for line in lines)]


def _moved(report: RewriteReport) -> str:
    if report.max_abs_difference is None:
        return ""
    return (
        f"; largest difference of the outputs {report.max_abs_difference:.1e}, "
        f"relative L2 {report.relative_l2_difference:.1e}"
    )


def checkpoint_table(report: CheckpointReport) -> RenderableType:
    """One row per distinct shape and rank, means within a row; then why weights stayed dense, and the totals."""
    shapes: dict[tuple[int, int, int], list[FactorisedWeight]] = {}
    for weight in report.weights:
        shapes.setdefault((weight.in_channels, weight.out_channels, weight.rank), []).append(weight)
    rows = [
        (
            f"{in_channels}→{out_channels}",
            str(len(alike)),
            str(rank),
            f"{sum(weight.seconds for weight in alike) / len(alike):.2f}",
            f"{sum(weight.relative_error for weight in alike) / len(alike):.4f}",
            f"{sum(weight.dense_parameters for weight in alike):,}",
            f"{sum(weight.lowrank_parameters for weight in alike):,}",
        )
        for (in_channels, out_channels, rank), alike in sorted(shapes.items())
    ]
    columns = ("shape", "weights", "rank", "seconds each", "relative error", "parameters before", "after")
    reasons = Counter(report.refusals.values())
    return Group(
        table(columns, rows),
        *(f"kept dense: {count}, {escape(reason)}" for reason, count in reasons.most_common()),
        f"{len(report.weights)} weights factorised, {report.copied} tensors copied; parameters "
        f"{report.dense_parameters:,} → {report.lowrank_parameters:,} "
        f"({report.lowrank_parameters / report.dense_parameters:.0%}), "
        f"{report.dense_bytes / 2**20:,.0f} → {report.lowrank_bytes / 2**20:,.0f} MiB",
        f"{report.seconds:.1f} s, {report.processes} process{'es' if report.processes > 1 else ''}, peak memory "
        f"{report.peak_memory_mib:,.0f} MiB; {report.resumed_shards} of {len(report.shards)} shards were there already",
    )


def comparison_table(comparison: Comparison) -> RenderableType:
    """Both arms, the speedup and the control."""
    rows = [
        (name, milliseconds(arm.p50_ms), milliseconds(arm.p90_ms), f"{arm.throughput_per_s:.0f}")
        for name, arm in (("base", comparison.base), ("candidate", comparison.candidate))
    ]
    return Group(
        table(("", "p50 ms", "p90 ms", "samples/s"), rows),
        f"speedup {speedup(comparison.speedup)}, from {comparison.speedup.launches} launches, "
        f"batch {comparison.batch}, threads {comparison.threads}, on {comparison.execution}",
        f"A/A control: base against itself {comparison.control.estimate:.3f}",
        *_copies(comparison),
        *(f"warning: {escape(text)}" for text in comparison.warnings),
    )


def _copies(comparison: Comparison) -> list[str]:
    """Copies that are in no other figure."""
    return [
        f"copies, not in the latencies above: {name} {milliseconds(arm.h2d_ms)} ms to the GPU, "
        f"{milliseconds(arm.d2h_ms)} ms back"
        for name, arm in (("base", comparison.base), ("candidate", comparison.candidate))
        if arm.h2d_ms is not None
    ]


def diagnosis_table(diagnosis: Diagnosis) -> RenderableType:
    """The machine, its packages, and what each backend can do."""
    here = diagnosis.environment
    rows = [("machine", f"{here.cpu}, {here.cores} cores", f"{here.system}, Python {here.python}")]
    rows += [("GPU", gpu.name, f"{gpu.memory_mib} MiB, driver {gpu.driver}, CUDA {gpu.cuda}") for gpu in here.gpus]
    rows += [("package", name, version) for name, version in here.packages.items()]
    rows += [
        ("optional", package.name, package.version or f"not installed: pip install 'lrd-deploy[{package.extra}]'")
        for package in diagnosis.optional
    ]
    for status in diagnosis.backends.values():
        able = [word for word, can in (("builds", status.builds), ("runs", status.runs)) if can]
        rows.append(
            ("backend", f"{status.name} {status.version or ''}", f"{' and '.join(able) or 'unusable'}: {status.detail}")
        )
    rows.append(("device", "cuda", "; ".join(diagnosis.lacking_for_gpu) or "bench --device cuda works"))
    return table(("", "what", "state"), rows)


def difference_table(difference: OutputDifference) -> RenderableType:
    """Every metric, and the verdict."""
    rows = [
        ("largest difference", f"{difference.max_abs:.2e}"),
        ("relative L2", f"{difference.relative_l2:.2e}"),
        ("tolerance", f"{difference.tolerance:.2e}"),
        ("cosine", f"{difference.cosine:.9f}"),
        ("top-1 agreement", f"{difference.top1_agreement:.2%}"),
        ("batches", ", ".join(map(str, sorted(set(difference.batches))))),
    ]
    return Group(table(("metric", "value"), rows), "passed" if difference.passed else "FAILED")


def package_table(result: PackageResult) -> RenderableType:
    """Every file of every model, what was left out and why, and how to serve them."""
    rows = [
        (f"{model.name}/{file.path}", f"{file.size_bytes:,}", file.sha256[:16])
        for model in result.models
        for file in model.manifest.files
    ]
    lines = [
        f"{model.name}: version {model.number} {_OUTCOMES[model.outcome]}; {_answers(version.answers)}"
        for model in result.models
        for version in model.manifest.versions
        if version.number == model.number
    ]
    lines += [f"not packaged: {left_out.what}: {left_out.reason}" for left_out in result.skipped]
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"serve: tritonserver --model-repository={quote(str(result.repository))}"]
    return Group(table(("file", "bytes", "SHA-256"), rows), *(escape(line) for line in lines))


def bundle_check_table(check: BundleCheck) -> RenderableType:
    """Every version of a packaged model, and the verdict."""
    rows = [(str(version.number), version.unchecked or _answers(version.answers)) for version in check.versions]
    verdict = f"{check.model}: {check.files} files are what was packaged; {'passed' if check.passed else 'FAILED'}"
    return Group(table(("version", "answers"), rows), escape(verdict))


_OUTCOMES = {
    "written": "written",
    "updated": "was there already; its settings or its record were updated",
    "unchanged": "was there already; nothing to do",
}


def _answers(difference: OutputDifference | None) -> str:
    if difference is None:
        return "it cannot be run here"
    verdict = "answers as before packaging" if difference.passed else "answers OTHERWISE than before packaging"
    return f"{verdict} (relative L2 {difference.relative_l2:.1e}, at most {difference.tolerance:.1e})"

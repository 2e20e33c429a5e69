"""What a compression of an ONNX file did, as a terminal table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape

from lrd_deploy.records import BiasCorrection, CompressedModel, PlannedLayer
from lrd_deploy.report.terminal import table
from lrd_deploy.report.wording import choice_name, milliseconds, share, speedup


def compression_table(done: CompressedModel) -> RenderableType:
    """One row per layer; then what it does to the outputs, and what it gains."""
    biases = {correction.node: correction for correction in done.bias_corrections}
    rows = [_row(layer, biases.get(layer.name)) for layer in done.layers]
    columns = ("layer", "shape", "dense ms", "choice", "ms", "error", "bias error", "why")
    lines = [
        f"{len(biases)} of {len(done.layers)} layers factorised for {done.goal}; "
        f"parameters {share(done.parameters)}, MACs {share(done.macs)} of dense",
        f"calibrated by {done.calibration_samples} samples, judged on {done.held_out_samples} others: {done.data}",
        f"outputs differ by {done.output_error:.3g} (relative L2), cosine {done.output_cosine:.4f}, "
        f"top-1 agreement {done.top1_agreement:.1%}; {_corrected(done)}",
        f"speedup {speedup(done.speedup)}, from {done.speedup.launches} launches, "
        f"batch {done.comparison.batch}, threads {done.comparison.threads}",
        f"A/A control: the dense file against itself {done.comparison.control.estimate:.3f}",
        *(f"not done: {entry.node}: {entry.reason}" for entry in done.skipped if entry.node in biases),
        *(f"bias of {entry.node} left alone: {entry.reason}" for entry in biases.values() if entry.reason),
        *(f"note: {note}" for note in done.notes),
        *(f"warning: {warning}" for warning in done.comparison.warnings),
    ]
    return Group(table(columns, rows), *(escape(line) for line in lines))


def _row(layer: PlannedLayer, bias: BiasCorrection | None) -> tuple[str, ...]:
    return (
        layer.name,
        str(layer.signature or "–"),
        milliseconds(layer.dense_latency_ms),
        choice_name(layer.choice),
        milliseconds(layer.predicted_latency_ms),
        f"{layer.predicted_error:.3f}" if layer.predicted_error else "",
        f"{bias.mean_error_before:.1e} → {bias.mean_error_after:.1e}" if bias else "",
        layer.reason,
    )


def _corrected(done: CompressedModel) -> str:
    if not done.bias_corrected:
        return "biases are left as they were, since correcting them did not bring the calibration outputs closer"
    return f"{done.output_error_uncorrected:.3g} without the correction of biases"

"""Conversions and ranges as terminal tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape

from lrd_deploy.records import CalibratedRanges, PrecisionReport, Verification
from lrd_deploy.report.terminal import difference_table, table

_NAMED = 20  # nodes left in float32; more are counted


def precision_table(report: PrecisionReport) -> RenderableType:
    """What was converted, what was not and why, and how far the outputs moved."""
    share = report.share
    rows = [
        ("precision", report.policy.precision),
        ("nodes", f"{share.converted} of {share.nodes}"),
        ("multiply–accumulates", f"{share.macs:.1%}"),
        ("weights", f"{share.weights:.1%}"),
    ]
    parts: list[RenderableType] = [table(("converted", str(report.path)), rows)]
    if report.kept:
        kept = [(entry.node, entry.reason) for entry in report.kept[:_NAMED]]
        parts.append(table(("left in float32", "reason"), kept + _rest(report)))
    if report.folded:
        parts.append(f"normalisations folded before: {len(report.folded)}")
    if report.difference is not None:
        parts.append(difference_table(report.difference))
    return Group(*parts, *map(escape, report.notes))


def verification_table(found: Verification) -> RenderableType:
    """Every metric, and the verdict with its reasons."""
    sqnr = "equal outputs" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
    sizes, asked = ", ".join(map(str, dict.fromkeys(found.batches))), found.policy.tolerance is not None
    rows = [
        ("precisions", " and ".join(found.precisions)),
        ("largest difference", f"{found.max_abs:.2e}"),
        ("relative L2", f"{found.relative_l2:.2e}"),
        ("tolerance", f"{found.tolerance:.2e}{'' if asked else ', what rounding explains'}"),
        ("cosine", f"{found.cosine:.9f}"),
        ("signal over difference", sqnr),
        ("top-1 agreement", f"{found.top1_agreement:.2%}"),
        ("inputs", f"{sum(found.batches)}, {found.inputs}, in batches of {sizes}"),
    ]
    verdict = "passed" if found.passed else f"FAILED: {'; '.join(found.reasons)}"
    return Group(table(("metric", "value"), rows), escape(verdict), *map(escape, _advice(found)))


def _advice(found: Verification) -> Iterator[str]:
    """What to try where two files are meant to differ."""
    if found.passed:
        return
    if found.inputs == "random":
        yield "Random inputs are not what a model was calibrated for: --inputs samples.npz judges by real ones."
    if found.policy.tolerance is None and len(set(found.precisions)) == 1:
        yield "Factors lose more than rounding explains: --tolerance says how much they may."


def ranges_table(done: CalibratedRanges) -> RenderableType:
    """Where the ranges are, and how they came about."""
    rows = [
        ("method", done.method),
        ("samples", str(done.samples)),
        ("values", str(done.values)),
        *([("not clipped", f"{len(done.not_clipped)}, of which too few were seen")] if done.not_clipped else []),
        ("model", done.model_sha256[:16]),
    ]
    return table(("ranges", str(done.path)), rows)


def _rest(report: PrecisionReport) -> list[tuple[str, str]]:
    """The nodes beyond those named, counted by reason."""
    reasons = Counter(entry.reason for entry in report.kept[_NAMED:])
    return [(f"and {count} more", reason) for reason, count in reasons.most_common()]

"""A gate's records as terminal tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape

from lrd_deploy.records import BaselineManifest, GateResult, SelfTest
from lrd_deploy.report.terminal import table


def gate_table(result: GateResult) -> RenderableType:
    """The verdict first."""
    return Group(result.verdict, *(escape(reason) for reason in result.reasons))


def self_test_table(found: SelfTest) -> RenderableType:
    """How often gates gave each verdict, with launches drawn anew and with every launch used once."""
    rows = [
        (f"{rates.slowdown:+.0%}", how, *(f"{share:.1%}" for share in (rates.fail, rates.passed, rates.inconclusive)),
         str(rates.gates), f"{rates.mean_launches:.1f}")
        for how, several in (("drawn anew", found.resampled), ("used once", found.disjoint))
        for rates in several
    ]  # fmt: skip
    columns = ("slowdown", "launches", "FAIL", "PASS", "INCONCLUSIVE", "gates", "launches per gate")
    return Group(
        table(columns, rows),
        f"from {found.launches} launches of the model beside itself; between launches the ratio varies by "
        f"{found.per_launch_sd:.1%} (SD). Slowdowns are simulated by scaling the candidate's times.",
        f"a false alarm is FAIL at +0%; a slowdown of {found.policy.max_slowdown:.0%} must be found",
    )


def baseline_table(manifest: BaselineManifest, folder: str) -> RenderableType:
    """What a bundle holds, and how to use it."""
    promotion = manifest.promotion
    labels = "with labels" if manifest.labelled else "without labels: agreement is gated instead of accuracy"
    lines = [
        f"{manifest.model} is the baseline in {folder} (sha256 {promotion.model_sha256[:16]}, opset {manifest.opset})",
        f"{manifest.samples} samples, {labels}; promoted {promotion.promoted_at}",
        *([f"promoted without a PASS: {promotion.reason}"] if promotion.reason else []),
        f"gate a candidate: lrd-deploy gate --baseline {folder} --candidate CANDIDATE.onnx",
    ]
    return Group(*(escape(line) for line in lines))

"""What GitHub Actions shows of a gate: annotations on the run, and a summary of the step in markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lrd_deploy.files import storage_errors
from lrd_deploy.records import CaseVerdict, GateResult
from lrd_deploy.report.ci.findings import Finding, change, findings, headline
from lrd_deploy.report.ci.legible import legible
from lrd_deploy.report.ci.markdown import code_block, escaped, table
from lrd_deploy.report.ci.reproduce import gate_command, promote_command
from lrd_deploy.report.wording import milliseconds

_MOST_ANNOTATIONS = 10  # GitHub drops what a step says beyond ten of a kind
_MOST_ROWS, _MOST_REASONS, _MOST_WARNINGS = 200, 50, 20  # with names and reasons cut, far below GitHub's 1 MiB
_LEVELS = {"PASS": "notice", "FAIL": "error", "INCONCLUSIVE": "warning"}
_VERDICT_ORDER = ("FAIL", "INCONCLUSIVE", "PASS")


def annotations(result: GateResult) -> str:
    """Returns workflow commands: a line for the run, and one for each failing finding; ten at most."""
    failing = [finding for finding in findings(result) if finding.verdict == "FAIL"]
    lines = [_command(_LEVELS[result.verdict], f"Latency gate: {result.verdict}", headline(result))]
    for finding in failing[: _MOST_ANNOTATIONS - 1]:
        lines.append(_command("error", f"{finding.checks}: {finding.name}", _numbers(finding) or finding.reason))
    return "".join(f"{line}\n" for line in lines)


def append_step_summary(result: GateResult, environment_variables: Mapping[str, str]) -> Path | None:
    """Appends the summary to the file that `GITHUB_STEP_SUMMARY` names and returns its path; None outside Actions.

    Raises:
        StorageError: the file cannot be written.
    """
    name = environment_variables.get("GITHUB_STEP_SUMMARY")
    if not name:
        return None
    path = Path(name)
    with storage_errors("writing", path), path.open("a", encoding="utf-8") as stream:
        stream.write(step_summary(result))
    return path


def step_summary(result: GateResult) -> str:
    """Returns the result as markdown: verdict, cases, other checks, how to read it, how to repeat it, where it ran."""
    found = sorted(findings(result), key=lambda one: _VERDICT_ORDER.index(one.verdict))
    timed = [finding for finding in found if finding.case]
    parts = ["## Latency gate", f"**{result.verdict}: {escaped(headline(result), 700)}**"]
    if timed:
        parts.append(table(_COLUMNS, map(_row, timed[:_MOST_ROWS])))
    if len(timed) > _MOST_ROWS:
        parts.append(f"{len(timed) - _MOST_ROWS} more cases are in the JUnit and JSON files.")
    parts += [_bullets(result, found), _how_to_read(result) if timed else "", _what_to_run(result), _where(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


_COLUMNS = ("case", "baseline p50", "candidate p50", "change [bounds]", "verdict", "launches", "A/A control")


def _row(finding: Finding) -> tuple[str, ...]:
    case = finding.case
    return (
        escaped(finding.name),
        _ms(case.base_ms),
        _ms(case.candidate_ms),
        escaped(change(case)),
        f"**{finding.verdict}**",
        _launches(case),
        _control(case),
    )


def _bullets(result: GateResult, found: list[Finding]) -> str:
    """What the table does not say: reasons, other checks, warnings; without what the headline said already."""
    said = [finding for finding in found if finding.verdict != "PASS" or not finding.case]
    said = [finding for finding in said if finding.reason != headline(result)]
    lines = [f"**{one.verdict}** {escaped(one.name)}: {escaped(one.reason, 700)}" for one in said[:_MOST_REASONS]]
    lines += [f"warning: {escaped(warning, 500)}" for warning in result.evidence.warnings[:_MOST_WARNINGS]]
    return "\n".join(f"- {line}" for line in lines)


def _numbers(finding: Finding) -> str:
    """What was measured of a timed case, in a line; empty for anything else."""
    case = finding.case
    if case is None:
        return ""
    return (
        f"p50 {_ms(case.base_ms)} → {_ms(case.candidate_ms)}, change {change(case)}, "
        f"{_launches(case)} launches, A/A control {_control(case)}"
    )


def _launches(case: CaseVerdict) -> str:
    return f"{case.launches} + {case.confirming_launches}" if case.confirming_launches else str(case.launches)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{milliseconds(value)} ms"


def _control(case: CaseVerdict) -> str:
    if case.control is None:
        return "–"
    return f"{case.control.change:+.1%}" + ("" if case.control.trusted else ", not trusted")


def _how_to_read(result: GateResult) -> str:
    policy = result.policy
    twice = ", in two sets of launches" if policy.confirm else ""
    return (
        f"How to read it: a change is candidate over baseline, both measured side by side in fresh processes; above 0 "
        f"is slower. It is at least the lower bound with {policy.fail_confidence:.0%} confidence and at most the upper "
        f"one with {policy.pass_confidence:.0%}. FAIL: the lower bound is above 0 and the change above "
        f"{policy.threshold:.1%}{twice}. PASS: the upper bound is below {policy.max_slowdown:.1%}. INCONCLUSIVE: "
        f"neither, or the machine was too busy. The A/A control is the baseline beside its own copy; it should be "
        f"near 0."
    )


def _what_to_run(result: GateResult) -> str:
    if result.evidence.baseline is None:
        return f"Keep this candidate as the baseline:\n\n{code_block(promote_command(result))}"
    return f"Repeat it where the files are, with the same `--inputs` if any:\n\n{code_block(gate_command(result))}"


def _where(result: GateResult) -> str:
    here = result.evidence.environment
    runtime = [f"{name} {here.packages[name]}" for name in ("onnxruntime-gpu", "onnxruntime") if name in here.packages]
    parts = (f"{here.cpu}, {here.cores} cores", here.system, f"Python {here.python}", *runtime)
    parts = (*parts, f"lrd-deploy {result.version}", f"machine {here.fingerprint}", result.evidence.measured_at)
    return "Measured on " + " · ".join(escaped(part) for part in parts)


def _command(level: str, title: str, message: str) -> str:
    return f"::{level} title={_property(legible(title))}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

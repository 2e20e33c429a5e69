"""The commands that a result leads to: measure again, or keep a first candidate as the baseline."""

from __future__ import annotations

import shlex

from lrd_deploy.records import GatePolicy, GateResult
from lrd_deploy.report.ci.legible import legible

_LONGEST_PATH = 1000


def gate_command(result: GateResult) -> str:
    """Returns the shell command of the same gate, as far as the record tells; it is one line, and quoted.

    Limits: paths are as they were given, and the record does not say where inputs came from.
    """
    evidence, policy = result.evidence, result.policy
    options: dict[str, str | float | None] = {
        "--baseline": evidence.baseline and legible(evidence.baseline.name, _LONGEST_PATH),
        "--candidate": legible(evidence.candidate.name, _LONGEST_PATH),
        "--anchor": evidence.anchor and legible(evidence.anchor.name, _LONGEST_PATH),
        "--max-slowdown": policy.max_slowdown,
        "--max-accuracy-drop": policy.max_accuracy_drop,
        "--tolerance": policy.tolerance,
        "--quantum": evidence.parity and evidence.parity.quantum,
        "--launches": policy.launches if policy.looks != GatePolicy().looks else None,
        "--most-launches": policy.most_launches if policy.looks != GatePolicy().looks else None,
    }
    words = ["lrd-deploy", "gate"]
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    if not policy.confirm:
        words.append("--no-confirm")
    for batch in sorted({case.batch for case in evidence.cases}):
        words += ["--batch", str(batch)]
    if evidence.cases:
        words += ["--threads", str(evidence.cases[0].threads)]
    return shlex.join(words)


def promote_command(result: GateResult) -> str:
    """Returns the shell command that makes the candidate the first baseline; capitals are for the reader to fill in."""
    candidate = legible(result.evidence.candidate.name, _LONGEST_PATH)
    words = ["lrd-deploy", "baseline", "promote", "BASELINE_DIR", "--candidate", candidate, "--inputs", "INPUTS.npz"]
    return shlex.join(words)

"""JUnit XML: one test case for everything that was checked. Read by GitLab, Jenkins, Azure, CircleCI and others."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime

from lrd_deploy.records import GateResult
from lrd_deploy.report.ci.findings import Finding, findings, number
from lrd_deploy.report.ci.legible import legible

_SUITE = "lrd-deploy gate"


def junit_xml(result: GateResult) -> str:
    """Returns the result as JUnit XML.

    A `time` is the candidate's median latency in seconds, so that charts of durations are charts of latency. The
    numbers stand in the properties, in system-out and in the body of a failure: readers differ in what they show.
    """
    found = findings(result)
    totals = {
        "name": _SUITE,
        "tests": str(len(found)),
        "failures": str(sum(finding.verdict == "FAIL" for finding in found)),
        "errors": "0",
        "skipped": str(sum(finding.verdict == "INCONCLUSIVE" for finding in found)),
        "time": _seconds(sum(_latency_ms(finding) for finding in found)),
    }
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", totals | _timestamp(result.evidence.measured_at))
    _add_properties(suite, _provenance(result))
    for finding in found:
        _add_case(suite, finding)
    if result.evidence.warnings:
        warnings = (f"warning: {legible(warning, 500)}" for warning in result.evidence.warnings)
        ET.SubElement(suite, "system-out").text = "\n".join(warnings)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _provenance(result: GateResult) -> dict[str, str]:
    evidence, here = result.evidence, result.evidence.environment
    arms = {"baseline": evidence.baseline, "candidate": evidence.candidate}
    files = {
        f"{arm}{suffix}": value
        for arm, artefact in arms.items()
        if artefact
        for suffix, value in (("", artefact.name), ("_sha256", artefact.sha256))
    }
    machine = {"cpu": here.cpu, "cores": str(here.cores), "system": here.system, "fingerprint": here.fingerprint}
    verdict = {"verdict": result.verdict, "decided_by": result.decided_by, "version": result.version}
    return verdict | {"max_slowdown": number(result.policy.max_slowdown)} | files | machine


def _add_case(suite: ET.Element, finding: Finding) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        {
            "classname": f"{_SUITE}: {finding.checks}",
            "name": finding.name,
            "time": _seconds(_latency_ms(finding)),
        },
    )
    numbers = {name: number(value) for name, value in finding.numbers.items()}
    text = "\n".join((finding.reason, *(f"{name} = {value}" for name, value in numbers.items())))
    _add_properties(case, numbers)
    if finding.verdict == "FAIL":
        failure = ET.SubElement(case, "failure", {"message": finding.reason, "type": f"{finding.checks} regression"})
        failure.text = text
    elif finding.verdict == "INCONCLUSIVE":
        ET.SubElement(case, "skipped", {"message": finding.reason}).text = f"inconclusive: {finding.reason}"
    ET.SubElement(case, "system-out").text = text


def _add_properties(parent: ET.Element, values: dict[str, str]) -> None:
    if not values:
        return
    properties = ET.SubElement(parent, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", {"name": legible(name), "value": legible(value)})


def _latency_ms(finding: Finding) -> float:
    return (finding.case and finding.case.candidate_ms) or 0.0


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.9f}"


def _timestamp(measured_at: str) -> dict[str, str]:
    """JUnit's own form, UTC without a zone; nothing where the record does not hold a time."""
    try:
        moment = datetime.fromisoformat(measured_at)
    except ValueError:
        return {}
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    return {"timestamp": utc.strftime("%Y-%m-%dT%H:%M:%S")}

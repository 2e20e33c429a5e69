import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from junitparser import Failure, JUnitXml, Skipped

from lrd_deploy.records import CaseVerdict
from lrd_deploy.report.ci.junit import junit_xml
from tests.report.ci.hostile import results
from tests.report.ci.results import BUSY, CALM, RESULTS, SLOW, result


def parsed(gate_result):
    """The one suite, as a reader of JUnit files sees it."""
    (suite,) = JUnitXml.fromstring(junit_xml(gate_result).encode())
    return suite


@pytest.mark.parametrize("name", RESULTS)
def test_the_counts_are_those_of_the_cases(name):
    suite = parsed(RESULTS[name])
    kinds = [type(outcome) for case in suite for outcome in case.result]
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (
        len(list(suite)), kinds.count(Failure), kinds.count(Skipped), 0,
    )  # fmt: skip
    # A reader that recounts finds the same.
    before = (suite.tests, suite.failures, suite.skipped, suite.errors)
    suite.update_statistics()
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == before


def test_a_verdict_is_visible_without_knowing_this_tool():
    verdicts = {"PASS": (0, 0), "FAIL": (1, 0), "INCONCLUSIVE": (0, 1)}
    for name, gate_result in RESULTS.items():
        suite = parsed(gate_result)
        assert (min(suite.failures, 1), min(suite.skipped, 1)) == verdicts[gate_result.verdict], name


def test_a_failure_has_its_numbers_in_the_body_too():
    (failing,) = [case for case in parsed(RESULTS["fail-latency"]) if case.result]
    (failure,) = failing.result
    assert failing.name == "batch 8"
    assert failure.type == "latency regression"
    for part in ("slower by +8.1%", "change = 0.08", "candidate_ms = 2.162"):
        assert part in failure.text
        assert part in failing.system_out
    case = ET.fromstring(junit_xml(RESULTS["fail-latency"]).encode()).find(".//testcase[@name='batch 8']")
    assert {entry.get("name"): entry.get("value") for entry in case.iter("property")}["launches"] == "6"


def test_checks_that_were_made_are_cases_and_others_are_not():
    assert [case.name for case in parsed(RESULTS["pass"])] == ["outputs", "form", "batch 1", "batch 8"]
    assert [case.name for case in parsed(result([CALM, SLOW]))] == ["batch 1", "batch 8"]


def test_a_form_that_was_not_looked_at_is_no_case():
    assert [case.name for case in parsed(RESULTS["fail-accuracy"])] == ["outputs"]


def test_names_that_were_alike_are_told_apart():
    twins = [CALM.model_copy(update={"name": name}) for name in ("batch\n8", "batch\r8")]
    assert [case.name for case in parsed(result(twins))] == ["batch 8", "batch 8 (2)"]


def test_the_time_is_utc_and_left_out_where_there_is_none():
    assert parsed(result([CALM], measured_at="2026-11-25T13:30:00+01:30")).timestamp == "2026-11-25T12:00:00"
    assert parsed(result([CALM], measured_at="yesterday")).timestamp is None


def test_a_thousand_cases_with_long_names_stay_below_the_limit_of_gitlab():
    hostile = CaseVerdict(name="&" * 900, verdict="FAIL", reason="<" * 900, change=0.123456789, low=0.1, high=0.2)
    many = RESULTS["fail-latency"].model_copy(update={"cases": (hostile,) * 1000})
    assert len(junit_xml(many).encode()) < 30 * 2**20


@settings(deadline=None, max_examples=60)
@given(results())
def test_any_name_gives_a_file_that_parses_and_holds_no_markup_of_the_names(gate_result):
    text = junit_xml(gate_result)
    root = ET.fromstring(text.encode())
    known = {"testsuites", "testsuite", "testcase", "properties", "property", "failure", "skipped", "system-out"}
    assert {element.tag for element in root.iter()} <= known
    cases = [case.get("name") for case in root.iter("testcase")]
    assert len(set(cases)) == len(cases) > 0
    list(parsed(gate_result))


def test_a_machine_that_was_too_busy_is_skipped_not_failed():
    (case,) = parsed(result([BUSY]))
    (skipped,) = case.result
    assert isinstance(skipped, Skipped)
    assert "too busy" in skipped.message

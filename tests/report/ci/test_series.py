"""The files for services that keep numbers over time."""

import json

import pytest
from hypothesis import given, settings

from lrd_deploy.report.ci.bencher import bencher_json
from lrd_deploy.report.ci.github_benchmark import benchmark_json
from tests.report.ci.hostile import results
from tests.report.ci.results import CALM, RESULTS, SLOW, result


def load(text):
    return json.loads(text, parse_constant=pytest.fail)


def test_every_case_gives_its_ratio_and_its_milliseconds():
    ratio, latency = load(benchmark_json(result([SLOW])))
    assert (ratio["name"], ratio["unit"]) == ("batch 8: candidate / baseline", "x")
    assert ratio["value"] == pytest.approx(1.081, abs=5e-4)
    assert ratio["range"] == "1.0782 to 1.0828"
    assert (latency["name"], latency["unit"]) == ("batch 8: candidate", "ms")
    assert "over launches" in latency["range"]
    assert "12 launches" in latency["extra"]


def test_bencher_counts_nanoseconds_between_the_fastest_and_the_slowest_launch():
    latency = load(bencher_json(result([CALM])))["batch 1"]["latency"]
    times = [launch.candidate_ms * 1e6 for launch in CALM.launches]
    assert latency["lower_value"] == pytest.approx(min(times), rel=1e-5)  # six digits are written
    assert latency["upper_value"] == pytest.approx(max(times), rel=1e-5)
    assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]


def test_a_set_that_did_not_count_does_not_widen_the_spread():
    unconfirmed = result([SLOW], policy=RESULTS["pass"].policy.model_copy(update={"confirm": False}))
    (case,) = load(bencher_json(unconfirmed)).values()
    slowest = max(launch.candidate_ms for launch in SLOW.launches)
    assert case["latency"]["upper_value"] == pytest.approx(slowest * 1e6, rel=1e-5)


def test_the_ratio_has_the_bounds_of_the_gate():
    gate_result = RESULTS["fail-latency"]
    ratio = load(bencher_json(gate_result))["batch 8"]["latency-ratio"]
    expected = {"value": gate_result.change, "lower_value": gate_result.low, "upper_value": gate_result.high}
    assert ratio == pytest.approx({name: 1 + share for name, share in expected.items()}, rel=1e-5)


def test_what_was_not_timed_is_not_there():
    assert load(benchmark_json(RESULTS["fail-accuracy"])) == []
    assert load(bencher_json(RESULTS["no-baseline"])) == {}


@settings(deadline=None, max_examples=60)
@given(results())
def test_both_are_json_of_numbers_whatever_the_names(gate_result):
    entries = load(benchmark_json(gate_result))
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert isinstance(entry["value"], float)
    for measures in load(bencher_json(gate_result)).values():
        assert measures
        for metric in measures.values():
            assert isinstance(metric["value"], float)
            assert None not in metric.values()

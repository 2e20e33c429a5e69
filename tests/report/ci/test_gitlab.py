import re
import shlex

import pytest
from hypothesis import given, settings

from lrd_deploy.report.ci.gitlab import open_metrics
from tests.report.ci.hostile import results
from tests.report.ci.results import CALM, RESULTS, result

LABEL = r'\w+="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"(?P<name>[a-zA-Z_:][\w:]*)(?P<labels>\{{{LABEL}\}})? (?P<value>-?[\d.]+(?:e[+-]\d+)?)", re.ASCII)


def samples(text):
    """(name, labels, value) of each line that is no comment, by the grammar of OpenMetrics."""
    *lines, last, end = text.split("\n")
    assert (last, end) == ("# EOF", "")
    found = [SAMPLE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), text
    return [(match["name"], match["labels"], float(match["value"])) for match in found]


def as_gitlab_reads(text):
    """{metric: value}: comments cut off, even within quotes, and the rest split as a shell would."""
    lines = [shlex.split(re.sub("#.*$", "", line)) for line in text.split("\n")]
    return [(line[0], line[1]) for line in lines if line]


def test_the_ratio_and_its_bounds_are_gauges():
    values = {(name, labels): value for name, labels, value in samples(open_metrics(RESULTS["fail-latency"]))}
    ratio, low, high = (values[f"lrd_gate_ratio{end}", '{case="batch 8"}'] for end in ("", "_low", "_high"))
    assert low < ratio < high
    assert values["lrd_gate_verdict", None] == 1
    assert values["lrd_gate_accuracy", '{arm="candidate"}'] == 0.9944


def test_every_family_is_described_once_before_its_samples():
    lines = open_metrics(RESULTS["pass"]).split("\n")[:-2]
    described = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(set(described)) == len(described)
    current = None
    for line in lines:
        if line.startswith("# TYPE"):
            current = line.split()[2]
        elif not line.startswith("#"):
            assert re.match(r"\w+", line)[0] == current


@settings(deadline=None, max_examples=60)
@given(results())
def test_any_name_is_one_label_for_every_reader(gate_result):
    text = open_metrics(gate_result)
    found = samples(text)
    assert len({(name, labels) for name, labels, _ in found}) == len(found)
    assert [float(value) for _, value in as_gitlab_reads(text)] == [value for _, _, value in found]


@pytest.mark.parametrize("name", ["case #1", 'a"b', "a\\", 'a\\"b', "it's", "a=b,c}"])
def test_a_name_reads_as_it_is_written(name):
    text = open_metrics(result([CALM.model_copy(update={"name": name})]))
    samples(text)
    assert f"lrd_gate_ratio{{case={name.replace('#', '＃')}}}" in dict(as_gitlab_reads(text))


def test_names_that_only_a_number_sign_tells_apart_stay_apart():
    cases = [CALM.model_copy(update={"name": name}) for name in ("a#", "a＃")]
    found = samples(open_metrics(result(cases)))
    assert len({(name, labels) for name, labels, _ in found}) == len(found)

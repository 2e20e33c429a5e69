import json
import re

import pytest

from tests.report.ci.golden import GOLDEN, ROOT, reports
from tests.report.ci.results import RESULTS

REPORTS = reports()


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_report_is_the_golden_one(path):
    assert path.read_text(encoding="utf-8") == REPORTS[path]


def test_no_golden_report_is_left_over():
    assert {path for path in GOLDEN.rglob("*") if path.is_file()} <= set(REPORTS)


def test_the_golden_results_are_what_their_names_say():
    found = {name: (result.verdict, result.decided_by) for name, result in RESULTS.items()}
    assert found == {
        "pass": ("PASS", "latency"),
        "fail-latency": ("FAIL", "latency"),
        "fail-accuracy": ("FAIL", "accuracy"),
        "fail-form": ("FAIL", "parity"),
        "inconclusive": ("INCONCLUSIVE", "latency"),
        "no-baseline": ("INCONCLUSIVE", "baseline"),
    }


def test_no_golden_report_holds_what_json_and_readers_do_not_know():
    for path, text in REPORTS.items():
        if path.is_relative_to(GOLDEN):
            assert not re.search(r"\b(NaN|nan|inf|None)\b", text), path
        if path.suffix == ".json":
            json.loads(text, parse_constant=pytest.fail)

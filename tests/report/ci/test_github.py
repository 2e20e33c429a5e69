import re
import shlex
from html import unescape

import pytest
from hypothesis import given, settings

from lrd_deploy.errors import StorageError
from lrd_deploy.records import CaseVerdict, GateArtefact, ParityEvidence
from lrd_deploy.report.ci.github import annotations, append_step_summary, step_summary
from lrd_deploy.report.ci.reproduce import gate_command
from tests.report.ci.hostile import results
from tests.report.ci.results import CALM, RESULTS, result

COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)")
MIB = 2**20


def commands(text):
    """(level, title, message) of each line, as the runner reads them."""
    found = [COMMAND.fullmatch(line) for line in text.split("\n")[:-1]]
    assert all(found), text
    return [(match[1], unescaped(match[2]), unescaped(match[3])) for match in found]


def unescaped(text):
    return re.sub("%(0D|0A|3A|2C|25)", lambda found: chr(int(found[1], 16)), text)


@pytest.mark.parametrize(
    ("name", "level"), [("pass", "notice"), ("fail-latency", "error"), ("inconclusive", "warning")]
)
def test_the_first_annotation_is_the_runs_and_its_level_the_verdict(name, level):
    first = commands(annotations(RESULTS[name]))[0]
    assert first[:2] == (level, f"Latency gate: {RESULTS[name].verdict}")


def test_every_failing_case_is_annotated_with_its_numbers():
    _, (level, title, message) = commands(annotations(RESULTS["fail-latency"]))
    assert (level, title) == ("error", "latency: batch 8")
    assert message.startswith("p50 2 ms → 2.16 ms, change +8.1% [+7.8%, +8.3%], 6 + 6 launches")


def test_there_are_ten_annotations_at_most():
    failing = CaseVerdict(name="a", verdict="FAIL", reason="slow")
    many = RESULTS["fail-latency"].model_copy(update={"cases": (failing,) * 30, "reasons": ("slow",) * 30})
    found = commands(annotations(many))
    assert len(found) == 10
    assert "29 more" in found[0][2]


@settings(deadline=None, max_examples=60)
@given(results())
def test_no_name_starts_a_command_of_its_own(gate_result):
    failing = sum(case.verdict == "FAIL" for case in gate_result.cases)
    assert len(commands(annotations(gate_result))) >= min(1 + failing, 10)


def cells(line):
    return line.removeprefix("| ").removesuffix(" |").split(" | ")


@settings(deadline=None, max_examples=60)
@given(results())
def test_every_row_of_the_summary_has_the_columns_of_its_head(gate_result):
    text = step_summary(gate_result)
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    assert len(rows) == (len(gate_result.cases) + 2 if gate_result.cases else 0)
    assert {line.count("|") for line in rows} <= {8}
    outside = re.sub(r"```sh\n.*\n```\n", "", text)
    assert not re.search(r"<\w|<!|```|\]\(|://", outside)
    assert len(text.encode()) < MIB


def test_a_name_reads_as_it_is_written():
    hostile = "a|b <b>`c` *d* [e](f) $g$ \\"
    (row,) = [line for line in step_summary(result([CALM.model_copy(update={"name": hostile})])).split("\n")
              if "<" in unescape(line) and line.startswith("|")]  # fmt: skip
    assert unescape(cells(row)[0]) == hostile


def test_the_summary_opens_with_one_bold_verdict():
    for name, gate_result in RESULTS.items():
        _, _, verdict = step_summary(gate_result).split("\n")[:3]
        assert re.fullmatch(rf"\*\*{gate_result.verdict}: .+\*\*", verdict), name


def test_many_cases_with_hostile_names_stay_below_the_limit():
    failing = CaseVerdict(name="|" * 900, verdict="FAIL", reason="|" * 900)
    many = RESULTS["fail-latency"].model_copy(update={"cases": (failing,) * 1000, "reasons": ("|" * 900,) * 1000})
    text = step_summary(many)
    assert len(text.encode()) < MIB
    assert "800 more cases" in text


def test_what_the_runner_reads_is_what_was_meant():
    named = RESULTS["fail-latency"].model_copy(
        update={"reasons": ("100%25, a: b",), "cases": (CaseVerdict(name="a%0A, b: c", verdict="FAIL", reason="%3A"),)}
    )
    (_, _, said), (_, title, reason) = commands(annotations(named))
    assert said == "100%25, a: b"
    assert title == "latency: a%0A, b: c"
    assert reason.startswith("p50")


def test_the_command_is_quoted():
    named = result([CALM], candidate="a b; rm -rf $HOME.onnx", baseline="-x'y.onnx")
    assert gate_command(named) == (
        "lrd-deploy gate --baseline '-x'\"'\"'y.onnx' --candidate 'a b; rm -rf $HOME.onnx' "
        "--max-slowdown 0.05 --max-accuracy-drop 0.01 --batch 1 --threads 1"
    )


def test_the_summary_is_appended_to_the_file_that_the_runner_names(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("from an earlier command\n")
    assert append_step_summary(RESULTS["pass"], {"GITHUB_STEP_SUMMARY": str(path)}) == path
    assert path.read_text(encoding="utf-8") == "from an earlier command\n" + step_summary(RESULTS["pass"])


def test_outside_actions_nothing_is_written():
    assert append_step_summary(RESULTS["pass"], {}) is None


def test_a_summary_that_cannot_be_written_is_an_error_of_the_storage(tmp_path):
    with pytest.raises(StorageError, match="writing"):
        append_step_summary(RESULTS["pass"], {"GITHUB_STEP_SUMMARY": str(tmp_path)})


def test_the_command_to_repeat_it_has_all_that_the_record_knows():
    result = RESULTS["pass"]
    anchor = GateArtefact(name="it's a release", sha256="0" * 64)
    form = ParityEvidence(quantum=16, off_quantum=(), baseline_precision={}, candidate_precision={})
    evidence = result.evidence.model_copy(update={"anchor": anchor, "parity": form})
    policy = result.policy.model_copy(update={"tolerance": 0.25, "max_accuracy_drop": 0.01})
    words = shlex.split(gate_command(result.model_copy(update={"evidence": evidence, "policy": policy})))
    told = dict(zip(words[2::2], words[3::2], strict=True))
    assert told["--anchor"] == "it's a release"
    assert (told["--tolerance"], told["--max-accuracy-drop"], told["--quantum"]) == ("0.25", "0.01", "16")

import pytest
from rich.console import Console

from lrd_deploy.records import GateArtefact
from lrd_deploy.report import gate_wording
from lrd_deploy.report.gate_terminal import gate_table
from lrd_deploy.report.html import render, write_report
from lrd_deploy.report.summary import report_summary
from tests.gate.launches import around, case
from tests.report.folders import HOSTILE, OUTPUTS, PARITY, gate_result, write_gate, write_run


def shown(renderable, **options):
    console = Console(**{"width": 300, "highlight": False} | options)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_a_folder_with_only_a_gate_s_result_has_a_page_that_leads_with_its_verdict(tmp_path, verdict):
    page = write_report(write_gate(tmp_path, verdict)).read_text()
    result = gate_result(verdict)
    assert result.verdict == verdict
    assert f"<title>{verdict}: candidate.onnx</title>" in page
    before_cases = page[: page.index('id="cases"')]
    assert f"</span> {verdict}</p>" in before_cases
    for reason in result.reasons:
        assert reason in before_cases
    assert page.count('class="plot wide"') == len(result.cases)


def test_beside_a_run_the_gate_s_verdict_comes_first_and_its_evidence_last(tmp_path):
    page = render(write_gate(write_run(tmp_path), "FAIL"))
    order = [page.index(text) for text in ("✕", "slower by +7", "2.00× faster", 'id="evidence"')]
    assert order == sorted(order)
    assert page.count("<h1") == 1


def test_the_page_of_a_gate_says_from_which_files_and_how_to_judge_again(tmp_path):
    page = render(write_gate(tmp_path, name="it's new.onnx"))
    assert "a" * 64 in page
    assert (
        "--baseline baseline.onnx --candidate &#39;it&#39;&#34;&#39;&#34;&#39;s new.onnx&#39; --max-slowdown 0.05"
        in page
    )


def test_a_gate_that_timed_nothing_says_what_decided(tmp_path):
    moved = OUTPUTS.model_copy(update={"relative_l2": 0.2})
    page = render(write_gate(tmp_path, outputs=moved))
    assert "The candidate&#39;s outputs are not the baseline&#39;s" in page
    assert "decided by accuracy" in page
    assert 'id="cases"' not in page
    new = render(write_gate(tmp_path, baseline=None, outputs=None, parity=None, cases=()))
    assert "The candidate has no baseline yet" in new
    assert "Outputs were not compared" in new


def test_an_anchor_is_named_with_its_outputs_and_its_cases(tmp_path):
    release = GateArtefact(name="release.onnx", sha256="c" * 64)
    against = case(around(0.0), name="batch 8, anchor").model_copy(update={"against": "anchor"})
    moved = OUTPUTS.model_copy(update={"samples": 77})
    evidence = {"anchor": release, "anchor_outputs": moved, "cases": (case(around(0.0)), against)}
    page = render(write_gate(tmp_path, **evidence))
    assert "and the anchor <bdi>release.onnx</bdi></h1>" in page
    assert "c" * 64 in page
    assert "<td>77</td>" in page[page.index("beside the anchor") :]
    assert page.count("the candidate against the anchor, and the anchor's own copy as the control") == 1
    text = shown(gate_table(gate_result(**evidence)))
    assert "candidate.onnx against baseline.onnx and release.onnx, decided by latency" in text


def test_the_terminal_says_the_verdict_first_then_the_cases_then_why():
    text = shown(gate_table(gate_result("FAIL", warnings=("busy",))))
    lines = text.splitlines()
    assert lines[0].startswith("FAIL  The candidate is slower by +7.")
    failing, other = (next(line for line in lines if line.startswith(name)) for name in ("batch 8", "batch 1"))
    assert failing.split()[2:4] == ["FAIL", "2.000"]
    assert "6 + 6" in failing
    assert "PASS" in other
    assert text.index("batch 1") < text.index("because batch 8: slower") < text.index("warning: busy")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_number_is_broken_where_the_terminal_is_narrow(width):
    result = gate_result("INCONCLUSIVE")
    text = shown(gate_table(result), width=width)
    assert text.splitlines()[0].startswith("INCONCLUSIVE")
    cases = text[text.index("batch 8") : text.index("because")]
    for cell in gate_wording.case_rows(result)[0]:
        assert cell in cases


def test_a_pipe_gets_plain_text_and_a_terminal_colours():
    table = gate_table(gate_result())
    assert "\x1b" not in shown(table)
    assert "\x1b[1;32mPASS" in shown(table, force_terminal=True)


def test_a_hostile_name_is_text_in_both(tmp_path):
    result = gate_result("INCONCLUSIVE", name=HOSTILE, warnings=(HOSTILE,))
    assert shown(gate_table(result)).count(HOSTILE) == 2
    page = render(write_gate(tmp_path, name=HOSTILE, warnings=(HOSTILE,)))
    assert page.count("<script") == 1
    assert "&lt;script&gt;window.pwned = 1" in page


def test_the_summary_of_a_folder_names_its_page(tmp_path):
    page = tmp_path / "report.html"
    assert shown(report_summary(None, gate_result(), page)).rstrip().endswith(f"report: {page}")


def test_an_untrusted_control_and_missing_numbers_are_said():
    busy = gate_result("INCONCLUSIVE")
    control = busy.cases[0].control.model_copy(update={"trusted": False, "change": 0.08})
    rows = gate_wording.case_rows(
        busy.model_copy(update={"cases": (busy.cases[0].model_copy(update={"control": control, "change": None}),)})
    )
    assert rows[0].control == "+8.0%, not trusted"
    assert rows[0].change == "–"


def test_evidence_in_words_says_what_was_allowed():
    policy = gate_result().policy
    assert ("relative L2 difference", "3.00e-07, at most 5.00e-05 is allowed") in gate_wording.output_rows(
        OUTPUTS, policy
    )
    lenient = policy.model_copy(update={"max_accuracy_drop": 0.01})
    rows = dict(gate_wording.output_rows(OUTPUTS, lenient))
    assert rows["relative L2 difference"].endswith("any is allowed")
    assert rows["accuracy may fall by"] == "at most 1.00%"
    refused = OUTPUTS.model_copy(update={"refusal": "another number of classes"})
    assert gate_wording.output_rows(refused, policy)[1] == ("cannot be compared", "another number of classes")
    off = PARITY.model_copy(update={"off_quantum": ("a: 17", "b: 33")})
    assert ("ranks off the quantum", "a: 17; b: 33") in gate_wording.parity_rows(off)

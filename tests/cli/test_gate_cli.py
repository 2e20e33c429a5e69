"""The gate on the command line: exit codes, clean JSON, files for CI, and messages."""

import json

import numpy as np
import pytest

from lrd_deploy.bench import compare
from lrd_deploy.gate import measure, self_test
from lrd_deploy.records import BaselineHistory, BaselineManifest, GateResult, SelfTest
from tests.gate.models import samples_file, scaled, scripted_launches


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ratio(monkeypatch):
    """Every launch of this process' gates takes the scripted ratio."""

    def script(value, **changes):
        source = scripted_launches(value, **changes)
        for function in (measure.gate, self_test.self_test):
            defaults = dict(function.__kwdefaults__ or {})
            if "source" in defaults:
                monkeypatch.setattr(function, "__kwdefaults__", defaults | {"source": source})
            else:
                monkeypatch.setattr(function, "__defaults__", (*function.__defaults__[:-1], source))

    assert measure.gate.__defaults__[-1] is compare.fresh_launches
    return script


@pytest.fixture
def models(tmp_path):
    return scaled(tmp_path / "a.onnx"), scaled(tmp_path / "b.onnx")


def gate(call, models, *arguments):
    return call("gate", "--baseline", models[0], "--candidate", models[1], *arguments)


@pytest.mark.parametrize(
    ("slowdown", "changes", "code", "verdict"),
    [
        (1.0, {}, 0, "PASS"),
        (1.06, {}, 1, "FAIL"),
        (1.04, {"wiggle": 0.2}, 3, "INCONCLUSIVE"),
        (1.0, {"control": 1.04}, 3, "INCONCLUSIVE"),
    ],
)
def test_exit_codes_tell_the_verdict_and_json_stands_alone(call, models, ratio, slowdown, changes, code, verdict):
    ratio(slowdown, **changes)
    found, out, err = gate(call, models, "--json")
    assert found == code
    result = GateResult.model_validate_json(out)
    assert result.verdict == verdict
    assert {"verdict", "change", "low", "high", "min_detectable"} <= json.loads(out).keys()
    assert "Traceback" not in err


def test_the_verdict_comes_first(call, models, ratio):
    ratio(1.06)
    _, out, _ = gate(call, models)
    assert out.lstrip().startswith("FAIL")


def test_wrong_outputs_are_a_failure_before_any_timing(call, models, tmp_path):
    code, out, _ = gate(call, (models[0], scaled(tmp_path / "wrong.onnx", 3.0)), "--json")
    assert code == 1
    assert json.loads(out)["decided_by"] == "accuracy"


def test_a_missing_baseline_is_0_with_a_notice(call, models):
    code, out, err = gate(call, ("nothing", models[1]), "--json")
    assert code == 0
    assert json.loads(out)["decided_by"] == "baseline"
    assert f"lrd-deploy baseline promote nothing --candidate {models[1]}" in err.replace("\n", "")


def test_a_missing_anchor_is_an_error(call, models):
    code, _, err = gate(call, models, "--anchor", "nothing")
    assert code == 2
    assert "opening the anchor 'nothing': nothing at that path" in err


def test_every_file_for_ci_is_written(call, models, ratio, tmp_path, monkeypatch):
    ratio(1.06)
    summary = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = {name: tmp_path / "ci" / name for name in ("junit", "markdown", "gitlab-metrics", "benchmark-json")}
    files["bencher-json"] = tmp_path / "ci" / "bencher-json"
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    code, out, err = gate(call, models, "--github", "--json", *options)
    assert code == 1
    assert GateResult.model_validate_json(out).verdict == "FAIL"
    assert "::error title=Latency gate%3A FAIL::" in err
    assert all(path.stat().st_size > 2 for path in files.values())
    assert "<failure" in files["junit"].read_text()
    assert summary.read_text() == files["markdown"].read_text()


def test_a_stored_result_is_judged_again_without_measuring(call, models, ratio):
    ratio(1.02)
    assert gate(call, models, "--out", "first")[0] == 0
    ratio(9.0)
    code, out, _ = call("gate", "--judge", "first/gate.json", "--max-slowdown", "0.02", "--no-confirm", "--json")
    assert code == 1
    assert json.loads(out)["change"] == pytest.approx(0.02, abs=0.003)


def test_judging_again_keeps_the_stored_policy_but_for_what_is_asked(call, models, ratio):
    ratio(1.02)
    assert gate(call, models, "--launches", "4", "--tolerance", "0.5")[0] == 0
    code, out, _ = call("gate", "--judge", "runs/gate/gate.json", "--max-slowdown", "0.06", "--json")
    policy = json.loads(out)["policy"]
    assert call("gate", "--judge", "runs/gate/gate.json", "--out", "again")[0] == 0
    assert call("report", "again")[0] == 0
    assert code == 0
    assert (policy["launches"], policy["tolerance"], policy["max_slowdown"]) == (4, 0.5, 0.06)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--judge", "g.json", "--candidate", "b.onnx"], "beside --judge: --candidate"),
        (["--baseline", "a.onnx", "--self-test", "--anchor", "a.onnx"], "beside --self-test: --anchor"),
    ],
)
def test_options_that_would_do_nothing_are_refused(call, models, arguments, told):  # noqa: ARG001, the files exist
    code, _, err = call("gate", *arguments)
    assert code == 2
    assert told in err


def test_the_self_test_takes_the_batch_that_a_model_fixes(call, ratio, tmp_path):
    ratio(1.0)
    fixed = scaled(tmp_path / "fixed.onnx", batch=2)
    assert call("gate", "--baseline", fixed, "--self-test")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--max-slowdown", "0"], "--max-slowdown 0.0; Input should be greater than 0"),
        (["--launches", "5"], "--launches 5; Input should be a multiple of 2"),
        (["--most-launches", "4"], "most_launches, 4, is below launches, 6"),
        (["--inputs", "nothing.npz"], "reading 'nothing.npz'"),
        (["--max-slowdown", "5"], "shares are such as 0.05 for 5 %"),
        (["--junit", "."], "writing '.': a folder; a path for a file\n  → name a file with --junit"),
    ],
)
def test_bad_options_are_2_and_say_why(call, models, arguments, told):
    code, out, err = gate(call, models, *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["--baseline", "a.onnx"], ["--candidate", "b.onnx"], ["--judge", "nothing.json"]]
)
def test_what_is_missing_is_2(call, models, arguments):  # noqa: ARG001, the files exist
    assert call("gate", *arguments)[0] == 2


def test_a_stored_result_with_nan_is_refused(call, models, ratio, tmp_path):
    ratio(1.0)
    gate(call, models)
    stored = tmp_path / "runs" / "gate" / "gate.json"
    spoilt = json.loads(stored.read_text())
    spoilt["evidence"]["cases"][0]["launches"][2]["candidate"] = float("nan")
    stored.write_text(json.dumps(spoilt))
    code, _, err = call("gate", "--judge", stored)
    assert code == 2
    assert "finite number at 'evidence.cases.0.launches.2.candidate'" in err


def test_ctrl_c_is_130_and_leaves_a_valid_result(call, models, ratio, tmp_path):
    ratio(1.0, stop_after=3)
    code, out, err = gate(call, models)
    assert (code, out) == (130, "")
    assert "what was finished is kept" in err
    kept = GateResult.read(tmp_path / "runs" / "gate" / "gate.json")
    assert len(kept.evidence.cases[0].launches) == 3


def test_the_self_test_tells_rates(call, models, ratio):
    ratio(1.0)
    code, out, _ = call("gate", "--baseline", models[0], "--self-test", "--json")
    assert code == 0
    found = SelfTest.model_validate_json(out)
    assert found.resampled[0].fail == 0.0
    _, out, _ = call("gate", "--baseline", models[0], "--self-test")
    assert "FAIL" in out
    assert "+5%" in out


def test_a_self_test_needs_a_model(call):
    code, _, err = call("gate", "--baseline", "nothing", "--self-test")
    assert code == 2
    assert "no baseline at 'nothing'" in err


def test_a_baseline_is_promoted_gated_and_promoted_again(call, models, ratio, tmp_path):
    code, out, _ = call(
        "baseline", "promote", "base", "--candidate", models[0], "--inputs", samples_file(tmp_path / "x.npz"), "--json"
    )
    assert code == 0
    assert BaselineManifest.model_validate_json(out).labelled
    ratio(1.01)
    assert call("gate", "--baseline", "base", "--candidate", models[1])[0] == 0

    other = scaled(tmp_path / "c.onnx", 1.0 + 2**-20)
    refused = call("baseline", "promote", "base", "--candidate", other, "--gate", "runs/gate/gate.json")
    assert refused[0] == 2
    assert "a gate's result for another candidate" in refused[2]
    assert call("gate", "--baseline", "base", "--candidate", other)[0] == 0
    assert call("baseline", "promote", "base", "--candidate", other, "--gate", "runs/gate/gate.json")[0] == 0

    code, out, _ = call("baseline", "history", "base", "--plot", "trend.svg", "--json")
    assert code == 0
    assert [entry.verdict for entry in BaselineHistory.model_validate_json(out).promotions] == [None, "PASS"]
    assert (tmp_path / "trend.svg").read_text().startswith("<svg")


def test_a_promotion_of_nan_is_refused(call, tmp_path):
    code, _, err = call("baseline", "promote", "base", "--candidate", scaled(tmp_path / "n.onnx", np.nan))
    assert code == 2
    assert "NaN or infinity" in err

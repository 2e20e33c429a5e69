"""The GitHub Action and the templates: they parse, their scripts run, and they use only options that exist."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lrd_deploy.cli.main import make_app
from tests.report.ci.results import RESULTS

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
TEMPLATES = sorted((ROOT / "docs" / "ci").glob("*.yml"))
PAGES = [ROOT / "docs" / "ci.md"]

CALL = re.compile(r"""lrd-deploy"?\s+(?P<verb>[a-z]+)(?:\s+(?P<second>[a-z]+))?(?P<rest>(?:\\\n|[^\n])*)""")


def parts_named(name, tree):
    """Every value of a key, anywhere in a YAML tree; lists of lines joined."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == name:
                yield "\n".join(value) if isinstance(value, list) else value
            else:
                yield from parts_named(name, value)
    elif isinstance(tree, list):
        for value in tree:
            yield from parts_named(name, value)


def scripts():
    trees = {"action.yml": ACTION} | {path.name: yaml.safe_load(path.read_text()) for path in TEMPLATES}
    for name, tree in trees.items():
        for number, script in enumerate([*parts_named("run", tree), *parts_named("script", tree)]):
            yield pytest.param(script, id=f"{name}:{number}")
    for page in PAGES:
        for number, script in enumerate(re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)):
            yield pytest.param(script, id=f"{page.name}:{number}")


SCRIPTS = list(scripts())
BASH = shutil.which("bash")


def known_options(verb):
    shown = CliRunner().invoke(make_app(), [*verb, "--help"], terminal_width=200)
    assert shown.exit_code == 0, verb
    return set(re.findall(r"--[a-z][\w-]*", shown.output))


def calls(script):
    """(verb, options) of every call of lrd-deploy."""
    for found in CALL.finditer(script):
        verb = (found["verb"], found["second"]) if found["verb"] == "baseline" else (found["verb"],)
        yield verb, set(re.findall(r"(?<![\w-])--[a-z][\w-]*", found["rest"]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_shell_and_takes_no_expression(script):
    done = subprocess.run([BASH, "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "${{" not in script


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_call_uses_options_that_exist(script):
    for verb, options in calls(script):
        assert options <= known_options(verb), verb


def test_the_templates_call_what_they_are_about():
    found = {verb for script in SCRIPTS for verb, _ in calls(script.values[0])}
    assert {("gate",), ("baseline", "promote"), ("baseline", "history")} <= found


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_workflow_gives_the_action_inputs_that_it_has(path):
    tree = yaml.safe_load(path.read_text())
    given = [step["with"] for steps in parts_of_steps(tree) for step in steps if "lrd_deploy@" in step.get("uses", "")]
    assert given or "gitlab" in path.name
    for inputs in given:
        assert set(inputs) <= set(ACTION["inputs"])
        assert {name for name, described in ACTION["inputs"].items() if described.get("required")} <= set(inputs)
    used = set(re.findall(r"steps\.gate\.outputs\.([\w-]+)", path.read_text()))
    assert used <= set(ACTION["outputs"])


def parts_of_steps(tree):
    return [job["steps"] for job in tree.get("jobs", {}).values()]


def test_every_input_is_described_and_used():
    text = json.dumps(ACTION["runs"])
    for name, described in ACTION["inputs"].items():
        assert described["description"]
        assert f"inputs.{name}" in text, name
        assert "default" in described or described["required"]


def test_gitlab_takes_the_reports_that_the_job_writes():
    job = yaml.safe_load((ROOT / "docs" / "ci" / "gitlab-latency-gate.yml").read_text())["latency-gate"]
    assert job["allow_failure"] == {"exit_codes": [3]}
    for report in job["artifacts"]["reports"].values():
        assert report in "\n".join(job["script"])


FAKE = """#!/usr/bin/env bash
printf '%s\\0' "$@" > "$LOG"
cat "$PRINTED"
exit "$CODE"
"""


@pytest.fixture
def gate(tmp_path):
    """Runs the action's gate step with an lrd-deploy that prints what it is told: (exit code, outputs, arguments)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "lrd-deploy").write_text(FAKE)
    (folder / "lrd-deploy").chmod(stat.S_IRWXU)
    (folder / "python").symlink_to(sys.executable)
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "gate"]
    inputs = {name: described.get("default", "") for name, described in ACTION["inputs"].items()}
    (tmp_path / "work").mkdir()

    def run(code=0, printed="", **given):
        (tmp_path / "printed").write_text(printed)
        outputs = tmp_path / "outputs"
        outputs.write_text("")
        values = inputs | {"baseline": "base", "candidate": "new.onnx"}
        values |= {name.replace("_", "-"): value for name, value in given.items()}
        variables = {name: filled(value, values, folder) for name, value in step["env"].items()}
        own = {"RUNNER_TEMP": tmp_path, "GITHUB_OUTPUT": outputs, "LOG": tmp_path / "log", "CODE": code}
        own |= {"PRINTED": tmp_path / "printed", "PATH": os.environ["PATH"]}
        command = [BASH, "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        environment = {name: str(value) for name, value in (own | variables).items()}
        done = subprocess.run(
            command, env=environment, cwd=tmp_path / "work", capture_output=True, text=True, check=False
        )
        assert list((tmp_path / "work").iterdir()) == []
        log = tmp_path / "log"
        arguments = log.read_text().split("\0")[:-1] if log.is_file() else None
        return done, dict(line.split("=", 1) for line in outputs.read_text().splitlines()), arguments

    return run


def filled(value, inputs, folder):
    """An expression of the action's environment, with the inputs in it."""
    if value == "${{ steps.install.outputs.bin }}":
        return str(folder)
    return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], value)


@pytest.mark.parametrize(
    ("name", "code", "on_inconclusive", "status"),
    [
        ("pass", 0, "pass", 0),
        ("fail-latency", 1, "pass", 1),
        ("fail-accuracy", 1, "fail", 1),
        ("inconclusive", 3, "pass", 0),
        ("inconclusive", 3, "fail", 3),
        ("no-baseline", 3, "pass", 0),
    ],
)
def test_the_action_ends_as_the_gate_does(gate, name, code, on_inconclusive, status):
    result = RESULTS[name]
    done, outputs, _ = gate(code, result.to_json(), on_inconclusive=on_inconclusive)
    assert done.returncode == status, done.stderr
    assert outputs["verdict"] == result.verdict
    for field in ("change", "low", "high"):
        value = getattr(result, field)
        assert outputs[field] == ("" if value is None else str(value))
    assert json.loads((Path(outputs["folder"]) / "gate.json").read_text())["verdict"] == result.verdict


@pytest.mark.parametrize("printed", ["", "Traceback", '{"verdict": "PA'])
def test_a_gate_that_could_not_run_is_an_error_and_no_verdict(gate, printed):
    done, outputs, _ = gate(2, printed, on_inconclusive="pass")
    assert done.returncode == 2
    assert outputs["verdict"] == "ERROR"
    assert outputs["change"] == ""


def test_no_result_is_no_pass(gate):
    done, outputs, _ = gate(0, "")
    assert (done.returncode, outputs["verdict"]) == (2, "ERROR")


def test_inputs_that_were_not_given_are_no_arguments(gate):
    _, outputs, arguments = gate(0, RESULTS["pass"].to_json())
    assert arguments[:7] == ["gate", "--baseline", "base", "--candidate", "new.onnx", "--max-slowdown", "0.05"]
    assert arguments[-2:] == ["--github", "--json"]
    assert not {"--inputs", "--threads", "--batch", "--max-accuracy-drop"} & set(arguments)
    options = {argument for argument in arguments if argument.startswith("--")}
    assert options <= known_options(("gate",))
    assert f"{outputs['folder']}/junit.xml" in arguments


def test_every_input_reaches_the_gate(gate):
    _, _, arguments = gate(
        0, RESULTS["pass"].to_json(), max_accuracy_drop="0.01", data="x y.npz", batches="1, 8\n32", threads="2",
        arguments="--out\nkept here\n",
    )  # fmt: skip
    text = "\0".join(arguments)
    for pair in (
        ("--max-accuracy-drop", "0.01"), ("--inputs", "x y.npz"), ("--threads", "2"), ("--batch", "1"),
        ("--batch", "8"), ("--batch", "32"), ("--out", "kept here"),
    ):  # fmt: skip
        assert "\0".join(pair) in text
    assert {argument for argument in arguments if argument.startswith("--")} <= known_options(("gate",))


def test_an_input_is_never_run(gate):
    hostile = "\"; touch pwned; $(touch pwned) `touch pwned` * ' #"
    values = dict.fromkeys(
        ("baseline", "candidate", "data", "arguments", "max_slowdown", "threads", "batches"), hostile
    )
    _, _, arguments = gate(0, RESULTS["pass"].to_json(), **values)  # the fixture looks for what was touched
    assert arguments.count(hostile) == 6


def test_a_choice_that_is_none_is_refused_before_measuring(gate):
    done, _, arguments = gate(0, "", on_inconclusive="maybe")
    assert done.returncode == 2
    assert "neither 'pass' nor 'fail'" in done.stdout
    assert arguments is None

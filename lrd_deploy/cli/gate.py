"""`lrd-deploy gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from lrd_deploy.records import GatePolicy, GateResult

_EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}

Baseline = Annotated[
    Path | None, typer.Option(metavar="DIR|A.onnx", help="What to compare with: a promoted bundle, or a model.")
]
Candidate = Annotated[Path | None, typer.Option(metavar="B.onnx", help="What may have become slower.")]
Anchor = Annotated[
    Path | None, typer.Option(metavar="DIR|A.onnx", help="An older reference besides, such as the last release.")
]
Inputs = Annotated[
    Path | None,
    typer.Option(help="An .npz file of samples by input name, with 'labels' if accuracy counts. [the bundle's]"),
]
Batch = Annotated[list[int] | None, typer.Option(min=1, help="May be given several times. [8]")]
MaxSlowdown = Annotated[float | None, typer.Option(help="A slowdown of this share must be found. [0.05]")]
MaxAccuracyDrop = Annotated[
    float | None, typer.Option(help="Largest loss of top-1 accuracy, or of agreement where there are no labels.")
]
Tolerance = Annotated[
    float | None, typer.Option(help="Largest relative L2 difference of outputs. [what float32 rounding explains]")
]
Quantum = Annotated[int | None, typer.Option(min=2, help="Ranks must be multiples of it.")]
Launches = Annotated[int | None, typer.Option(help="Fresh processes before the first look; even. [6]")]
MostLaunches = Annotated[int | None, typer.Option(help="Fresh processes after which it cannot tell. [12]")]
Confirm = Annotated[
    bool | None,
    typer.Option("--confirm/--no-confirm", help="A failure needs a second set of launches that fails too. [confirm]"),
]
Out = Annotated[Path | None, typer.Option(help="Gets gate.json and samples.jsonl. [runs/gate]")]
Judge = Annotated[
    Path | None,
    typer.Option(metavar="GATE.json", help="Judge a stored result again, by its policy and what is given."),
]
SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Instead: how often this gate errs on this machine; about 2 minutes.")
]
Junit = Annotated[Path | None, typer.Option(metavar="FILE", help="JUnit XML.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="A summary in markdown.")]
Github = Annotated[bool, typer.Option("--github", help="Annotations, and the summary of the step, for GitHub Actions.")]
GitlabMetrics = Annotated[Path | None, typer.Option(metavar="FILE", help="OpenMetrics text.")]
BenchmarkJson = Annotated[Path | None, typer.Option(metavar="FILE", help="customSmallerIsBetter JSON.")]
BencherJson = Annotated[Path | None, typer.Option(metavar="FILE", help="Bencher Metric Format.")]


def gate(
    baseline: Baseline = None,
    candidate: Candidate = None,
    anchor: Anchor = None,
    inputs: Inputs = None,
    batch: Batch = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    max_slowdown: MaxSlowdown = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    tolerance: Tolerance = None,
    quantum: Quantum = None,
    launches: Launches = None,
    most_launches: MostLaunches = None,
    confirm: Confirm = None,
    out: Out = None,
    judge: Judge = None,
    self_test: SelfTest = False,
    junit: Junit = None,
    markdown: Markdown = None,
    github: Github = False,
    gitlab_metrics: GitlabMetrics = None,
    benchmark_json: BenchmarkJson = None,
    bencher_json: BencherJson = None,
    as_json: JsonOption = False,
) -> None:
    """Fail when CANDIDATE is slower than BASELINE: both are measured here, side by side, in fresh processes.

    Exit codes: 0 PASS, or there is no baseline yet · 1 FAIL · 2 an error · 3 INCONCLUSIVE.
    """
    from lrd_deploy.cli.console import show
    from lrd_deploy.report.gate_terminal import gate_table

    reports = {"junit": junit, "markdown": markdown, "gitlab_metrics": gitlab_metrics}
    reports |= {"benchmark_json": benchmark_json, "bencher_json": bencher_json}
    _refuse_folders(reports)
    asked = {"max_slowdown": max_slowdown, "max_accuracy_drop": max_accuracy_drop, "tolerance": tolerance}
    asked |= {"launches": launches, "most_launches": most_launches, "confirm": confirm}
    sizes = tuple(batch or (8,))
    if self_test:
        others = {"--candidate": candidate, "--anchor": anchor, "--judge": judge, "--out": out}
        _refuse_beside("--self-test", others)
        _self_test(_given(baseline, "--baseline"), inputs, _policy(asked), sizes[0], threads, as_json=as_json)
        return
    if judge:
        others = {"--baseline": baseline, "--candidate": candidate, "--anchor": anchor, "--inputs": inputs}
        _refuse_beside("--judge", others | {"--batch": batch, "--quantum": quantum})
        result = _judged_again(judge, asked, out)
    else:
        policy = _policy(asked)
        settings = {"batches": sizes, "threads": threads, "quantum": quantum}
        files = {"baseline": _given(baseline, "--baseline"), "anchor": anchor}
        result = _measured(files, _given(candidate, "--candidate"), inputs, settings, policy, out or Path("runs/gate"))
    _write_reports(result, reports, github=github)
    show(result, gate_table(result), as_json=as_json)
    code = 0 if result.decided_by == "baseline" else _EXIT_CODES[result.verdict]
    if code:
        raise typer.Exit(code)


def _write_reports(result: GateResult, files: dict[str, Path | None], *, github: bool) -> None:
    """Writes what CI systems read. Annotations go to stderr, which GitHub reads too, so that --json stays alone."""
    import os
    import sys

    from lrd_deploy.files import write_text
    from lrd_deploy.report.ci.bencher import bencher_json
    from lrd_deploy.report.ci.github import annotations, append_step_summary, step_summary
    from lrd_deploy.report.ci.github_benchmark import benchmark_json
    from lrd_deploy.report.ci.gitlab import open_metrics
    from lrd_deploy.report.ci.junit import junit_xml

    formats = {
        "junit": junit_xml,
        "markdown": step_summary,
        "gitlab_metrics": open_metrics,
        "benchmark_json": benchmark_json,
        "bencher_json": bencher_json,
    }
    for name, path in files.items():
        if path is not None:
            write_text(path, formats[name](result))
    if github:
        append_step_summary(result, os.environ)
        sys.stderr.write(annotations(result))


def _measured(
    files: dict[str, Path | None],
    candidate: Path,
    inputs: Path | None,
    settings: dict[str, Any],
    policy: GatePolicy,
    out: Path,
) -> GateResult:
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.errors import UsageError
    from lrd_deploy.gate.measure import GateSettings, gate
    from lrd_deploy.gate.reference import open_reference

    opened = {against: open_reference(path, inputs) for against, path in files.items() if path is not None}
    references = {against: reference for against, reference in opened.items() if reference is not None}
    with ConsoleObserver() as observer:
        if "baseline" not in references:
            observer.note(
                f"there is no baseline at '{files['baseline']}' yet; make this candidate the first one: "
                f"lrd-deploy baseline promote {files['baseline']} --candidate {candidate}"
            )
            references = {}
        elif len(references) < len(opened):
            raise UsageError(
                f"opening the anchor '{files['anchor']}'",
                found="nothing at that path",
                accepted="a folder that 'lrd-deploy baseline promote' made, or an ONNX file",
                remedy="correct the path, or leave --anchor out",
            )
        return gate(references, candidate, GateSettings(**settings), policy, out, observer)


def _judged_again(stored: Path, asked: dict[str, Any], out: Path | None) -> GateResult:
    """Judges stored evidence by the policy it was judged by, but for what was asked; `out` gets the new result."""
    from lrd_deploy.gate.judge import judge
    from lrd_deploy.gate.notebook import RESULT
    from lrd_deploy.records import GateResult

    result = GateResult.read(stored)
    again = judge(result.evidence, _policy(asked, result.policy.model_dump()))
    if out is not None:
        again.write(out / RESULT)
    return again


def _self_test(
    baseline: Path, inputs: Path | None, policy: GatePolicy, batch: int, threads: int, *, as_json: bool
) -> None:
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.errors import UsageError
    from lrd_deploy.gate.reference import open_reference
    from lrd_deploy.gate.self_test import self_test
    from lrd_deploy.report.gate_terminal import self_test_table

    reference = open_reference(baseline, inputs)
    if reference is None:
        raise UsageError(
            "testing the gate on this machine",
            found=f"no baseline at '{baseline}'",
            accepted="a promoted bundle, or an ONNX file",
            remedy="pass any model of yours with --baseline",
        )
    with ConsoleObserver() as observer:
        found = self_test(reference, policy, batch=batch, threads=threads, observer=observer)
    show(found, self_test_table(found), as_json=as_json)


def _refuse_folders(files: dict[str, Path | None]) -> None:
    """Told before minutes of measuring, not after."""
    from lrd_deploy.errors import UsageError

    for name, path in files.items():
        if path is not None and path.is_dir():
            raise UsageError(
                f"writing '{path}'",
                found="a folder",
                accepted="a path for a file",
                remedy=f"name a file with --{name.replace('_', '-')}",
            )


def _refuse_beside(option: str, others: dict[str, Any]) -> None:
    from lrd_deploy.errors import UsageError

    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(
            f"reading the options beside {option}",
            found=", ".join(given),
            accepted=f"{option} without them: they would do nothing",
            remedy=f"leave out {given[0]}, or {option}",
        )


def _policy(asked: dict[str, Any], base: dict[str, Any] | None = None) -> GatePolicy:
    """The default policy, or another one, with what was asked."""
    from pydantic import ValidationError

    from lrd_deploy.errors import UsageError
    from lrd_deploy.records import GatePolicy

    try:
        return GatePolicy(**{**(base or {}), **{name: value for name, value in asked.items() if value is not None}})
    except ValidationError as exc:
        first = exc.errors()[0]
        name = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"] else "the options"
        raise UsageError(
            "reading the gate's policy",
            found=f"{name} {first['input']}" if first["loc"] else first["msg"],
            accepted=first["msg"],
            remedy="correct the option; shares are such as 0.05 for 5 %",
        ) from exc


def _given(path: Path | None, option: str) -> Path:
    if path is None:
        raise typer.BadParameter("is needed here", param_hint=f"'{option}'")
    return path

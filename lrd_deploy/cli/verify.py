"""`lrd-deploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from lrd_deploy.records import Verification, VerifyPolicy


def verify(
    reference: Annotated[Path | None, typer.Argument(metavar="A.onnx")] = None,
    candidate: Annotated[Path | None, typer.Argument(metavar="B.onnx")] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz file of real inputs by name, all of which are run. [random]")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest relative L2 difference. [what rounding in the files' precisions explains]"),
    ] = None,
    max_abs: Annotated[float | None, typer.Option(help="Largest difference of any value. [any]")] = None,
    min_cosine: Annotated[float | None, typer.Option(help="Smallest cosine of the outputs. [any]")] = None,
    min_sqnr_db: Annotated[
        float | None, typer.Option(help="Smallest signal over the difference, in decibels. [any]")
    ] = None,
    min_top1_agreement: Annotated[
        float | None, typer.Option(help="Smallest share of samples with the same largest output. [any]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keeps the result, to be judged again.")] = None,
    judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge a kept result by what is given; nothing is run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the outputs of two ONNX files at several batches; exit code 1 when they differ by more than allowed."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.report.precision import verification_table

    asked = {"tolerance": tolerance, "max_abs": max_abs, "min_cosine": min_cosine}
    policy = _policy(asked | {"min_sqnr_db": min_sqnr_db, "min_top1_agreement": min_top1_agreement})
    files = (reference, candidate, inputs)
    found = _judged_again(judge, files, policy) if judge else _compared(*files, policy)
    if out is not None:
        found.write(out)
    show(found, verification_table(found), as_json=as_json)
    if not found.passed:
        raise typer.Exit(1)


def _compared(
    reference: Path | None, candidate: Path | None, inputs: Path | None, policy: VerifyPolicy
) -> Verification:
    from lrd_deploy.engines.inputs import compared_on
    from lrd_deploy.engines.verify import verify as verify_files

    for name, path in (("A.onnx", reference), ("B.onnx", candidate)):
        if path is None:
            raise typer.BadParameter("is needed here", param_hint=f"'{name}'")
    return verify_files(reference, candidate, compared_on(reference, inputs), policy, "given" if inputs else "random")


def _judged_again(stored: Path, files: tuple[Path | None, ...], policy: VerifyPolicy) -> Verification:
    from lrd_deploy.engines.verify import judged
    from lrd_deploy.errors import UsageError
    from lrd_deploy.records import Verification

    given = [str(path) for path in files if path is not None]
    if given:
        raise UsageError(
            "reading the options beside --judge",
            found=given[0],
            accepted="--judge without models and inputs: nothing is run",
            remedy=f"leave out {given[0]}, or --judge",
        )
    return judged(Verification.read(stored), policy)


def _policy(asked: dict[str, float | None]) -> VerifyPolicy:
    from pydantic import ValidationError

    from lrd_deploy.errors import UsageError
    from lrd_deploy.records import VerifyPolicy

    try:
        return VerifyPolicy(**asked)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise UsageError(
            "choosing what must hold for two models to be equal",
            found=f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}",
            accepted=first["msg"],
            remedy="correct the option; shares are such as 0.99 for 99 %",
        ) from exc

"""`lrd-deploy package`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from lrd_deploy.errors import UsageError
    from lrd_deploy.records import Arm


def package(
    source: Annotated[
        Path | None, typer.Argument(metavar="DIR|MODEL.onnx", help="The folder of a finished run, or an ONNX file.")
    ] = None,
    triton: Annotated[
        Path | None, typer.Option("--triton", metavar="REPO", help="Triton's model repository; is made if need be.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model. [the run's or the file's name]")] = None,
    arm: Annotated[str, typer.Option(help="lowrank, dense or both; the dense model is called NAME_dense.")] = "lowrank",
    version: Annotated[int | None, typer.Option(min=1, help="Number of the version. [the next one]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="The measured batch: preferred. [the run's, or 8]")] = None,
    max_batch: Annotated[int | None, typer.Option(min=0, help="The largest batch; 0 for no batching. [64]")] = None,
    max_queue_delay_us: Annotated[int, typer.Option(min=0, help="How long a request may wait for others.")] = 100,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the model, side by side.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each copy, on a CPU. [the run's, or 1]")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Serve the ONNX model on GPUs.")] = False,
    labels: Annotated[Path | None, typer.Option(help="A file with the name of one class a line.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="An .npz file of real inputs for MODEL.onnx. [random]")] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="REPO/NAME", help="Only check a packaged model: digests, then answers.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Package a run or an ONNX file for Triton, and check that the packaged model answers as it did before.

    With --check, exit code 1 when the answers differ.
    """
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.report.terminal import bundle_check_table, package_table

    if check is not None:
        from lrd_deploy.serving.check import check_bundle

        _only_check(source, triton)
        found = check_bundle(check)
        show(found, bundle_check_table(found), as_json=as_json)
        if not found.passed:
            raise typer.Exit(1)
        return
    from lrd_deploy.pipeline.packaging import PackageRequest, package_onnx, package_run

    source, repository = _both(source, triton)
    is_run = source.is_dir()
    request = PackageRequest(
        repository=repository,
        name=name,
        arms=_arms(arm, is_run=is_run),
        version=version,
        max_batch=max_batch,
        batch=batch,
        max_queue_delay_us=max_queue_delay_us,
        instances=instances,
        threads=threads,
        gpu=gpu,
        labels=labels,
    )
    _only_an_onnx_file(inputs, is_run=is_run)
    with ConsoleObserver() as observer:
        result = package_run(source, request, observer) if is_run else package_onnx(source, request, inputs, observer)
    show(result, package_table(result), as_json=as_json)


def _both(source: Path | None, triton: Path | None) -> tuple[Path, Path]:
    if source is None or triton is None:
        raise _usage(
            "neither a source nor a repository" if source is triton else "a source without a repository",
            "DIR --triton REPO, MODEL.onnx --triton REPO, or --check REPO/NAME alone",
            "name both what to package and where to",
        )
    _no_recipe(source)
    return source, triton


def _no_recipe(source: Path) -> None:
    if source.suffix in {".yaml", ".yml"}:
        raise _usage(
            f"the recipe '{source}'",
            "the folder of a finished run, or an ONNX file",
            f"do 'lrd-deploy run {source}' first, and package the folder that it names",
        )


def _only_check(source: Path | None, triton: Path | None) -> None:
    if source is not None or triton is not None:
        raise _usage(
            "--check beside something to package", "--check REPO/NAME alone", "package first, or check afterwards"
        )


def _arms(arm: str, *, is_run: bool) -> tuple[Arm, ...]:
    arms: dict[str, tuple[Arm, ...]] = {"lowrank": ("lowrank",), "dense": ("dense",), "both": ("lowrank", "dense")}
    if arm not in arms or (arm != "lowrank" and not is_run):
        accepted = "lowrank, dense or both of a run" if is_run else "no --arm with an ONNX file, which is one model"
        raise _usage(f"--arm {arm}", accepted, "choose one of these")
    return arms[arm]


def _only_an_onnx_file(inputs: Path | None, *, is_run: bool) -> None:
    if inputs is not None and is_run:
        raise _usage(
            "--inputs with a run", "--inputs with an ONNX file; a run has test data of its own", "leave --inputs out"
        )


def _usage(found: str, accepted: str, remedy: str) -> UsageError:
    from lrd_deploy.errors import UsageError

    return UsageError("choosing what to package", found=found, accepted=accepted, remedy=remedy)

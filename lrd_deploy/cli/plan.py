"""`lrd-deploy plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrd_deploy.cli.goal import BatchOption, QuantumOption, ThreadsOption, latency_goal
from lrd_deploy.cli.recipe_argument import JsonOption, OutOption, SizeOption, TableOption, run_until

if TYPE_CHECKING:
    from lrd_deploy.recipe import LatencyRank
    from lrd_deploy.recipe.settings import Bench
    from lrd_deploy.records import RankPlan


def plan(
    what: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL.onnx", help="A recipe, the folder of a run, or an ONNX file.")
    ],
    out: OutOption = None,
    table: TableOption = None,
    target_speedup: Annotated[float | None, typer.Option(help="With an ONNX file: how much faster. [2]")] = None,
    max_error: Annotated[float | None, typer.Option(help="With an ONNX file: predicted relative error.")] = None,
    quantum: QuantumOption = None,
    batch: BatchOption = None,
    threads: ThreadsOption = None,
    dim: SizeOption = None,
    calibration_data: Annotated[
        Path | None, typer.Option(help="With an ONNX file: an .npz file of real inputs by name, to weigh errors by.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose ranks and say why, layer by layer; the model is not changed.

    A recipe's dense model is trained first where it comes untrained. An ONNX file's nodes are planned without PyTorch.
    """
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import Written
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.pipeline.onnx_bench import deployed_bench
    from lrd_deploy.report.terminal import figures_of, plan_table

    options = {"target_speedup": target_speedup, "max_error": max_error, "quantum": quantum}
    if what.endswith(".onnx"):
        model, folder = Path(what), out or Path("runs", Path(what).stem)
        goal, bench = latency_goal(model, **options), deployed_bench(read_model(model), batch, threads)
        planned = _plan_of_onnx(model, goal, bench, folder, table, calibration_data, dim or [])
    else:
        others = {"batch": batch, "threads": threads, "dim": dim, "calibration_data": calibration_data}
        _refuse_options({**options, **others})
        result = run_until("plan", what, out, table)
        folder, planned = result.folder, result.plan
    wrote = [Written(folder / "plan.json")]
    show(planned, plan_table(planned, figures_of(folder)), as_json=as_json, wrote=wrote)


def _plan_of_onnx(
    model: Path,
    goal: LatencyRank,
    bench: Bench,
    folder: Path,
    table: list[Path] | None,
    calibration_data: Path | None,
    dim: list[str],
) -> RankPlan:
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.engines.profile import parse_dimensions
    from lrd_deploy.pipeline.onnx_planning import plan_onnx

    with ConsoleObserver() as observer:
        planned = plan_onnx(
            model,
            goal,
            bench,
            folder,
            observer,
            calibration_data=calibration_data,
            dimensions=parse_dimensions(dim, ranges=False),
            tables=table or (),
        )
    return planned.plan


def _refuse_options(options: dict[str, object]) -> None:
    from lrd_deploy.errors import UsageError

    names = [name for name, value in options.items() if value is not None]
    if names:
        raise UsageError(
            "planning a recipe",
            found=", ".join("--" + name.replace("_", "-") for name in names),
            accepted="these only with an ONNX file",
            remedy="say it in the recipe: 'ranks', 'bench' and 'calibration'",
        )

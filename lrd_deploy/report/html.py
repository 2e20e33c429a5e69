"""The page of a run: one file, no network, readable on a phone and on paper."""

from __future__ import annotations

from pathlib import Path

from lrd_deploy.errors import UsageError
from lrd_deploy.files import write_text
from lrd_deploy.records import Comparison, RankPlan, RankStudy, RunRecord, TrainedModel
from lrd_deploy.report.figures import launch_ratios, layer_latencies, training_curves
from lrd_deploy.report.plan_figures import pareto_front, staircases
from lrd_deploy.report.wording import choice_name, comparison_rows, milliseconds, speedup

_TEMPLATE = "page.html.j2"


def write_report(folder: Path) -> Path:
    """Writes `report.html` from the records in a run's folder and returns its path.

    Raises:
        UsageError: the folder holds no finished run.
        StorageError: the page cannot be written.
    """
    if not (folder / "run.json").is_file():
        raise UsageError(
            f"writing the report of '{folder}'",
            found="no run.json in it",
            accepted="the folder of a finished run",
            remedy="finish it with: lrd-deploy run RECIPE --out FOLDER",
        )
    return write_text(folder / "report.html", render(folder))


def render(folder: Path) -> str:
    """Returns the page of a finished run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    record = RunRecord.read(folder / "run.json")
    plan = RankPlan.read(folder / "plan.json")
    comparison = Comparison.read(folder / "bench.json")
    dense, lowrank = (TrainedModel.read(folder / f"{stage}.json") for stage in ("dense", "lowrank"))
    template = Environment(
        loader=PackageLoader("lrd_deploy.report", "."), autoescape=True, undefined=StrictUndefined
    ).get_template(_TEMPLATE)
    return template.render(
        record=record,
        plan=plan,
        comparison=comparison,
        dense=dense,
        lowrank=lowrank,
        rows=comparison_rows(record),
        frozen={group for epoch in lowrank.epochs for group in epoch.frozen} - {"none"},
        speedup=speedup,
        ms=milliseconds,
        choice_name=choice_name,
        training_svg=training_curves(dense, lowrank),
        launches_svg=launch_ratios(comparison),
        layers_svg=layer_latencies(plan),
        **_study_figures(folder, plan),
    )


def _study_figures(folder: Path, plan: RankPlan) -> dict[str, str]:
    """The pictures of a plan that measured; empty for one that did not."""
    path = folder / "plan" / "study.json"
    study = RankStudy.read(path) if path.is_file() else None
    return {
        "front_svg": pareto_front(study, plan) if study else "",
        "staircases_svg": staircases(study) if study else "",
    }

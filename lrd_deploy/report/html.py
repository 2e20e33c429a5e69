"""The page of a run, of a gate, or of both: one file, no network, readable on a phone and on paper."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lrd_deploy.errors import UsageError
from lrd_deploy.files import read_bytes, write_text
from lrd_deploy.records import (
    BuiltEngines,
    Comparison,
    ExportedPair,
    GateResult,
    PlannedLayer,
    RankPlan,
    RankStudy,
    Record,
    RewrittenModel,
    RunRecord,
    TrainedModel,
)
from lrd_deploy.report import gate_wording as gates
from lrd_deploy.report import wording
from lrd_deploy.report.canvas import PALETTE
from lrd_deploy.report.ci.reproduce import gate_command
from lrd_deploy.report.figures import faster, launch_ratios, layer_latencies, short_name, training_curves
from lrd_deploy.report.gate_figures import case_plots
from lrd_deploy.report.leftovers import dense_layers, refused_engines, skipped_rewrites
from lrd_deploy.report.plan_figures import form_marks, front_plot, staircase_plots
from lrd_deploy.report.reproduce import gate_digests, model_digests, run_commands
from lrd_deploy.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

R = TypeVar("R", bound=Record)
_TEMPLATE, _SCRIPT = "page.html.j2", "table.js.j2"
_RUN, _GATE = "run.json", "gate.json"


class LayerRow(NamedTuple):
    """One row of the table of layers, in words; the columns of numbers are aligned."""

    layer: PlannedLayer
    name: str
    shape: str
    choice: str
    dense_ms: str
    chosen_ms: str
    faster: str
    error: str


def write_report(folder: Path) -> Path:
    """Writes `report.html` from the records in a folder and returns its path.

    Raises:
        UsageError: the folder holds neither a finished run nor a gate's result.
        StorageError: the page cannot be written.
    """
    if not any((folder / name).is_file() for name in (_RUN, _GATE)):
        raise UsageError(
            f"writing the report of '{folder}'",
            found=f"no {_RUN} in it, and no {_GATE}",
            accepted=f"the folder of a finished run, or one that holds a gate's result as {_GATE}",
            remedy="finish a run with: lrd-deploy run RECIPE --out FOLDER; "
            f"or keep what 'lrd-deploy gate --json' prints as {_GATE}",
        )
    return write_text(folder / "report.html", render(folder))


def render(folder: Path) -> str:
    """Returns the page of a finished run, of a gate, or of both: the gate's verdict comes first."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("lrd_deploy.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = loader.get_source(environment, _SCRIPT)[0]
    record, gate = stored_records(folder)
    return environment.get_template(_TEMPLATE).render(
        version=__version__,
        breakable=_breakable,
        title=_title(record, gate),
        palette=PALETTE,
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        record=record,
        gate=gate,
        **(_gate_part(gate) if gate else {}),
        **(_run_part(folder, record) if record else {}),
    )


def stored_records(folder: Path) -> tuple[RunRecord | None, GateResult | None]:
    """Returns what a folder holds to report on: a finished run's record, a gate's result, or both."""
    return _stored(folder / _RUN, RunRecord), _stored(folder / _GATE, GateResult)


def _stored(path: Path, record_type: type[R]) -> R | None:
    """Returns the record in a file, or None where there is no such file.

    Raises:
        InputError: the file does not hold the record.
    """
    return record_type.read(path) if path.is_file() else None


def _title(record: RunRecord | None, gate: GateResult | None) -> str:
    run = [f"{record.recipe}: low-rank against dense"] if record else []
    return " · ".join([*([f"{gate.verdict}: {gate.evidence.candidate.name}"] if gate else []), *run])


def _breakable(name: str) -> Markup:
    """A name as text that may be broken after its dots."""
    from markupsafe import Markup, escape

    return Markup(".<wbr>").join(map(escape, name.split(".")))


def _gate_part(gate: GateResult) -> dict[str, Any]:
    evidence = gate.evidence
    return {
        "headline": gates.headline,
        "cases": gates.case_rows(gate),
        "case_columns": gates.CASE_COLUMNS,
        "bounds": gates.bounds_sentence(gate.policy),
        "case_plots": case_plots(gate),
        "output_rows": gates.output_rows(evidence.outputs, gate.policy) if evidence.outputs else [],
        "anchor_rows": gates.output_rows(evidence.anchor_outputs, gate.policy) if evidence.anchor_outputs else [],
        "parity_rows": gates.parity_rows(evidence.parity) if evidence.parity else [],
        "policy_rows": gates.policy_rows(gate.policy),
        "gate_commands": gate_command(gate),
        "gate_files": gate_digests(gate),
    }


def _run_part(folder: Path, record: RunRecord) -> dict[str, Any]:
    plan = RankPlan.read(folder / "plan.json")
    comparison = Comparison.read(folder / "bench.json")
    dense, lowrank = (TrainedModel.read(folder / f"{stage}.json") for stage in ("dense", "lowrank"))
    exported, rewritten = (
        _stored(folder / "export.json", ExportedPair),
        _stored(folder / "rewrite.json", RewrittenModel),
    )
    built, recipe = _stored(folder / "build.json", BuiltEngines), _recipe_yaml(folder)
    digests = model_digests(exported, rewritten)
    return {
        "plan": plan,
        "comparison": comparison,
        "dense": dense,
        "lowrank": lowrank,
        "rewrite": rewritten and rewritten.report,
        "built": built,
        "recipe": recipe,
        "rows": wording.comparison_rows(record),
        "tiles": wording.run_tiles(record),
        "sentences": wording.plan_sentences(plan),
        "layer_rows": _layer_rows(plan),
        "frozen": {group for epoch in lowrank.epochs for group in epoch.frozen} - {"none"},
        "speedup": wording.speedup,
        "short_name": short_name,
        "launches_plot": launch_ratios(comparison),
        "training_plot": training_curves(dense, lowrank) if lowrank.epochs else None,
        "layer_plots": layer_latencies(plan),
        "dense_layers": dense_layers(plan),
        "skipped": skipped_rewrites(rewritten and rewritten.report),
        "refused": refused_engines(built),
        "digests": [*digests, *((str(model.weights), model.sha256) for model in (dense, lowrank))],
        "run_commands": run_commands(comparison, digests, exported, has_recipe=recipe is not None),
        "stage_rows": [(name.replace("_", " "), f"{seconds:.1f} s") for name, seconds in record.stages.items()],
        **_study_part(_stored(folder / "plan" / "study.json", RankStudy), plan),
    }


def _study_part(study: RankStudy | None, plan: RankPlan) -> dict[str, Any]:
    """The pictures of a plan that measured; empty for one that did not."""
    return {
        "front_plot": front_plot(study, plan) if study else None,
        "staircases": staircase_plots(study) if study else [],
        "marks": form_marks(study) if study else [],
        "distinct": len({layer.signature for layer in study.layers}) if study else 0,
        "shared": Counter(layer.signature for layer in study.layers) if study else {},
    }


def _layer_rows(plan: RankPlan) -> list[LayerRow]:
    dense = wording.aligned_milliseconds([layer.dense_latency_ms for layer in plan.layers])
    chosen = wording.aligned_milliseconds([layer.predicted_latency_ms for layer in plan.layers])
    return [
        LayerRow(
            layer=layer,
            name=layer.name,
            shape=str(layer.signature or "shape unknown"),
            choice=wording.choice_name(layer.choice),
            dense_ms=dense_ms,
            chosen_ms=chosen_ms,
            faster=faster(layer),
            error=f"{layer.predicted_error:.3f}" if layer.predicted_error else "–",
        )
        for layer, dense_ms, chosen_ms in zip(plan.layers, dense, chosen, strict=True)
    ]


def _recipe_yaml(folder: Path) -> str | None:
    """The recipe as a run's folder holds it, in the form in which it can be run again."""
    import yaml

    path = folder / "recipe.json"
    if not path.is_file():
        return None
    recipe = json.loads(read_bytes(path))["recipe"]
    return yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)

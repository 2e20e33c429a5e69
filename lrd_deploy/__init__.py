"""Low-rank networks that are measurably faster: the names to build with.

Names are loaded when first used, so that importing the package, and the command line's help, costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrd_deploy.version import __version__

if TYPE_CHECKING:
    from lrd_deploy.bench.compare import compare
    from lrd_deploy.bench.layer_latency import MeasuredLatency
    from lrd_deploy.decompose.checkpoint import decompose_checkpoint
    from lrd_deploy.decompose.evidence import gather_evidence
    from lrd_deploy.decompose.surgery import decompose_, load_lowrank_, merge_
    from lrd_deploy.engines import SessionSettings
    from lrd_deploy.engines.fake import FakeBackend, ScriptedClock
    from lrd_deploy.errors import LrdError
    from lrd_deploy.export.torch_export import export_onnx
    from lrd_deploy.models.survey import survey
    from lrd_deploy.pipeline import run
    from lrd_deploy.ranks.choose import plan_ranks
    from lrd_deploy.recipe import EnergyRank, LatencyRank, PaperRank, Recipe, UniformRank, load_recipe
    from lrd_deploy.records import RankPlan
    from lrd_deploy.train.freezing import FreezingSchedule, freeze_

__all__ = [
    "EnergyRank",
    "FakeBackend",
    "FreezingSchedule",
    "LatencyRank",
    "LrdError",
    "MeasuredLatency",
    "PaperRank",
    "RankPlan",
    "Recipe",
    "ScriptedClock",
    "SessionSettings",
    "UniformRank",
    "__version__",
    "compare",
    "decompose_",
    "decompose_checkpoint",
    "export_onnx",
    "freeze_",
    "gather_evidence",
    "load_lowrank_",
    "load_recipe",
    "merge_",
    "plan_ranks",
    "run",
    "survey",
]

_HOMES = {
    "MeasuredLatency": "bench.layer_latency",
    "PaperRank": "recipe",
    "decompose_checkpoint": "decompose.checkpoint",
    "gather_evidence": "decompose.evidence",
    "EnergyRank": "recipe",
    "FakeBackend": "engines.fake",
    "FreezingSchedule": "train.freezing",
    "LatencyRank": "recipe",
    "LrdError": "errors",
    "RankPlan": "records",
    "Recipe": "recipe",
    "ScriptedClock": "engines.fake",
    "SessionSettings": "engines",
    "UniformRank": "recipe",
    "compare": "bench.compare",
    "decompose_": "decompose.surgery",
    "export_onnx": "export.torch_export",
    "freeze_": "train.freezing",
    "load_lowrank_": "decompose.surgery",
    "load_recipe": "recipe",
    "merge_": "decompose.surgery",
    "plan_ranks": "ranks.choose",
    "run": "pipeline",
    "survey": "models.survey",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrd_deploy' has no attribute '{name}'")
    return getattr(import_module(f"lrd_deploy.{_HOMES[name]}"), name)

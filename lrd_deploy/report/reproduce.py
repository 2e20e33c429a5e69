"""The commands that get the same numbers again, and the digests that say from which files."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from lrd_deploy.records import Comparison, ExportedPair, GateResult, RewrittenModel


def model_digests(exported: ExportedPair | None, rewritten: RewrittenModel | None) -> list[tuple[str, str]]:
    """Returns (file, SHA-256) of the two models that were measured, as far as the records say."""
    found = []
    if exported is not None:
        found.append((str(exported.dense.path), exported.dense.sha256))
    if rewritten is not None:
        found.append((str(rewritten.report.path), rewritten.report.sha256))
    return found


def run_commands(
    comparison: Comparison, digests: Sequence[tuple[str, str]], exported: ExportedPair | None, *, has_recipe: bool
) -> str:
    """Returns what to type in a run's folder to measure again, and to do everything again."""
    inputs = f" --inputs {quote(str(exported.inputs))}" if exported is not None else ""
    lines = [
        *_check(digests),
        f"lrd-deploy bench dense.onnx lowrank.onnx --batch {comparison.batch} --threads {comparison.threads}{inputs}",
    ]
    if has_recipe:
        lines.append("lrd-deploy run recipe.yaml --out again   # the recipe is below")
    return "\n".join(lines)


def gate_digests(result: GateResult) -> list[tuple[str, str]]:
    """Returns (file, SHA-256) of the models that took part."""
    models = (result.evidence.baseline, result.evidence.anchor, result.evidence.candidate)
    return [(model.name, model.sha256) for model in models if model is not None]


def _check(digests: Sequence[tuple[str, str]]) -> list[str]:
    if not digests:
        return []
    return ["sha256sum --check <<'END'", *(f"{digest}  {name}" for name, digest in digests), "END"]

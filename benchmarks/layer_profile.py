"""Where the time goes, how much of it the profiled layers explain, and what merging back the losing pairs gains.

    python benchmarks/layer_profile.py [--models resnet50 vit] [--alpha 2] [--batch 8] [--launches 8] [--out FOLDER]

Weights are random: time does not depend on them. The ranks are the papers' closed form, which minds no hardware, so
that there is something to merge back. Prints Markdown; intervals are 95 %, over fresh processes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from lrd_deploy import UniformRank, decompose_, export_onnx, plan_ranks, survey
from lrd_deploy.bench.profile import ProfileSettings
from lrd_deploy.export.torch_export import INPUT
from lrd_deploy.pipeline.merging_back import MergedBack, profile_and_merge_back
from lrd_deploy.records import ModelProfile, Ratio

OPSET, SIZE = 20, 224
MODELS = {
    "resnet50": lambda: ResNetForImageClassification(ResNetConfig(num_labels=1000)),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    ),
}


def main() -> None:
    """Studies the models asked for and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--launches", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the models here")
    chosen = parser.parse_args()
    folder = chosen.out or Path(tempfile.mkdtemp(prefix="lrd-deploy-profile-"))
    settings = ProfileSettings(threads=chosen.threads, launches=chosen.launches)
    studies = {
        name: study(MODELS[name](), folder / name, chosen.batch, chosen.alpha, settings) for name in chosen.models
    }
    for lines in (explained_rows(studies), merged_rows(studies)):
        print("\n".join(lines), end="\n\n")
    for name, done in studies.items():
        print(f"{name}, losing: {', '.join(layer.name for layer in done.profile.losing) or 'none'}")


def study(model: nn.Module, folder: Path, batch: int, alpha: float, settings: ProfileSettings) -> MergedBack:
    """Exports a model dense and with the closed form's ranks, profiles both, and merges back what loses.

    Args:
        model: takes images of 224 pixels; is decomposed in place.
        folder: gets the three ONNX files.
        batch: of the profile.
        alpha: compression of the closed form.
        settings: of the profile and of the comparison after it.
    """
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.randn(batch, 3, SIZE, SIZE)
    dense, lowrank, merged = (folder / f"{name}.onnx" for name in ("dense", "lowrank", "merged"))
    export_onnx(model.eval(), images, dense, opset=OPSET)
    decompose_(model, plan_ranks(survey(model, images), UniformRank(alpha=alpha)))
    export_onnx(model, images, lowrank, opset=OPSET)
    return profile_and_merge_back(dense, lowrank, merged, {INPUT: images.numpy()}, settings)


def explained_rows(studies: dict[str, MergedBack]) -> list[str]:
    """How much of a call without the profiler the times of all kernels explain, per model and arm."""
    rows = ["| model | arm | call, ms | all kernels, ms | share explained | in layers |", "|---|---|---|---|---|---|"]
    for name, done in studies.items():
        for arm in ("base", "candidate"):
            found = getattr(done.profile, arm)
            rows.append(
                f"| {name} | {arm} | {found.whole_ms:.2f} | {found.kernels_ms:.2f} | {_percent(found.explained)} | "
                f"{_in_layers(done.profile, arm):.0%} |"
            )
    return rows


def merged_rows(studies: dict[str, MergedBack]) -> list[str]:
    """What the verdicts were, what merging the losing pairs should save, and what it measured."""
    rows = [
        "| model | layers with factors | pay | lose | undecided | speedup over dense | merging, predicted | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, done in studies.items():
        found = done.profile
        verdicts = [layer.verdict for layer in found.layers if layer.verdict]
        saved = sum(layer.candidate.ms - layer.base.ms for layer in found.losing)
        predicted = found.candidate.whole_ms / (found.candidate.whole_ms - saved)
        counts = " | ".join(str(verdicts.count(verdict)) for verdict in ("pays", "loses", "undecided"))
        measured = _times(done.comparison.speedup) if done.comparison else "nothing to merge"
        rows.append(
            f"| {name} | {len(verdicts)} | {counts} | {_times(found.speedup)} | {predicted:.2f}× | {measured} |"
        )
    return rows


def _in_layers(found: ModelProfile, arm: str) -> float:
    """The share of the kernels' time that is in rows of layers."""
    total = getattr(found, arm).kernels_ms
    return 1 - sum(group.ms for group in getattr(found, arm).outside_layers.values()) / total


def _percent(share: Ratio) -> str:
    return f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"


def _times(ratio: Ratio) -> str:
    return f"{ratio.estimate:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


if __name__ == "__main__":
    main()

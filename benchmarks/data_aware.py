"""Factors weighted by the layers' inputs against plain ones, before any fine-tuning, on trained weights.

    python benchmarks/data_aware.py --out FOLDER [--models resnet18 vit] [--alphas 1.25 1.5 2]

Ranks are the closed form's; only the factors differ. BatchNorm is re-estimated for both. Dense weights are taken from
FOLDER where `rank_choice.py` left them, else trained there.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from subjects import SUBJECTS, build, data, dense_weights

from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
from lrd_deploy.decompose.evidence import input_moments
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.models.data import batches
from lrd_deploy.models.source import logits
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.evidence import metrics_of
from lrd_deploy.recipe import UniformRank

CALIBRATION_BATCHES = 20


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["resnet18", "vit"])
    parser.add_argument("--alphas", nargs="+", type=float, default=[1.25, 1.5, 2.0])
    arguments = parser.parse_args()
    print("| model | alpha | output error, plain | weighted | accuracy, plain | weighted | dense |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        weights = dense_weights(name, 0, arguments.out)
        for alpha in arguments.alphas:
            print(row(name, weights, alpha), flush=True)


def row(name: str, weights: Path, alpha: float) -> str:
    """Both kinds of factors at one compression."""
    images, dense = data(name, 0), build(name, weights).eval()
    images.train.generator.manual_seed(0)
    seen = [inputs for inputs, _ in islice(batches(images.train), CALIBRATION_BATCHES)]
    layers = survey(dense, seen[0][:1], skip=("classifier*",))
    plan = plan_ranks(layers, UniformRank(alpha=alpha))
    metrics, _ = metrics_of(input_moments(dense, layers, seen), damping=0.01)
    reference, accuracy = judged(dense, images)
    found = []
    for used in ({}, metrics):
        lowrank = decompose_(build(name, weights), plan, used).eval()
        reestimate_batchnorm_(lowrank, seen)
        outputs, its_accuracy = judged(lowrank, images)
        found.append(((outputs - reference).norm() / reference.norm(), its_accuracy))
    (plain, plain_accuracy), (weighted, weighted_accuracy) = found
    return (
        f"| {name} | {alpha:g} | {plain:.3f} | {weighted:.3f} | "
        f"{plain_accuracy:.1%} | {weighted_accuracy:.1%} | {accuracy:.1%} |"
    )


@torch.no_grad()
def judged(model: Any, images: Any) -> tuple[torch.Tensor, float]:
    """The logits on the test data, and their accuracy."""
    outputs = torch.cat([logits(model, inputs) for inputs, _ in batches(images.test)])
    labels = torch.cat([labels for _, labels in batches(images.test)])
    return outputs, float((outputs.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()

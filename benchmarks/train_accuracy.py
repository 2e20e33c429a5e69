"""What sequential freezing, and every other setting of fine-tuning, does to accuracy: an ablation.

    python benchmarks/train_accuracy.py --out FOLDER [--models resnet18 vit] [--seeds 0 1 2 3 4] [--rows …]

Every row starts from the same dense weights, decomposed at the same ranks with the same factors, and changes one
setting of the reference row, *sequential*, or two where its name says so. All are fine-tuned for the same epochs on the
same images in the same order. The time to dense accuracy is that of the first epoch that ends within half a standard
error of it, decomposition and BatchNorm included, as a share of the time that training the dense model took, and its
mean is over the seeds that got there. *Before* is accuracy before fine-tuning. Finished rows are lines of
FOLDER/accuracy.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import fronts
import torch
from accelerate.utils import set_seed
from subjects import SUBJECTS, build, data, train_dense_

from lrd_deploy.bench.environment import environment
from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
from lrd_deploy.decompose.evidence import input_moments
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.models.data import batches
from lrd_deploy.models.source import save_weights
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.evidence import metrics_of
from lrd_deploy.recipe import UniformRank
from lrd_deploy.recipe.settings import (
    Distillation,
    FactorRates,
    FineTuning,
    NoFreezing,
    RegularFreezing,
    SequentialFreezing,
)
from lrd_deploy.train.accuracy import accuracy
from lrd_deploy.train.loop import TrainingJob, train

CALIBRATION_BATCHES = 20
LEARNING_RATE = 5e-4  # of ten epochs, which a ViT bears as well; the four of `rank_choice.py` are gentler to it
TWICE = {"factor_rates": FactorRates(A=2.0, B=2.0)}
RANKS = UniformRank(alpha=2, round_to=16)
# What each row changes of the reference, which is sequential freezing, a swap per epoch, state kept.
ROWS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "no freezing": {"freezing": NoFreezing()},
    "regular": {"freezing": RegularFreezing()},
    "A frozen first": {"freezing": SequentialFreezing(first_frozen="A")},
    "state reset": {"freezing": SequentialFreezing(optimizer_state="reset")},
    "a swap every 7 steps": {"freezing": SequentialFreezing(period=7, unit="steps")},
    "decay of the product": {"factor_decay": "product"},
    "distillation": {"distillation": Distillation()},
    "no warm-up": {"warmup_share": 0.0},
    "factors at twice the rate": TWICE,
    "no freezing, factors at twice the rate": {"freezing": NoFreezing()} | TWICE,
    "regular, factors at twice the rate": {"freezing": RegularFreezing()} | TWICE,
    "BatchNorm as it was": {"batchnorm_batches": 0},
}


def main() -> None:
    """Computes what is missing, then prints a table per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["resnet18", "vit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    store = arguments.out / "accuracy.jsonl"
    store.parent.mkdir(parents=True, exist_ok=True)
    lines = [line for line in fronts.read(store) if line.get("epochs", arguments.epochs) == arguments.epochs]
    done = {(line["model"], line["seed"], line["row"]) for line in lines}
    for model in arguments.models:
        for seed in arguments.seeds:
            missing = [row for row in ("dense", *arguments.rows) if (model, seed, row) not in done]
            for line in computed(model, seed, missing, arguments.epochs, arguments.out):
                lines.append(line)
                with store.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
    for model in arguments.models:
        asked = [line for line in lines if line["model"] == model and line["seed"] in arguments.seeds]
        print(f"\n## {model}\n\n{table(asked)}")
    here = environment()
    print(f"\n{here.cpu}, {here.cores} cores, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}")


def computed(model: str, seed: int, rows: list[str], epochs: int, folder: Path) -> Any:
    """Yields one line per row."""
    images = data(model, seed)
    weights = folder / model / f"timed-{seed}.safetensors"
    if "dense" in rows:
        started = time.perf_counter()
        dense = train_dense_(build(model, seed=seed), model, seed)
        line = {"model": model, "seed": seed, "row": "dense", "seconds": time.perf_counter() - started}
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(dense, weights)
        yield line | {"accuracy": accuracy(dense, images), "test_images": sum(len(y) for _, y in batches(images.test))}
    for row in rows:
        if row != "dense":
            changes = {"epochs": epochs, "learning_rate": LEARNING_RATE}
            settings = SUBJECTS[model].fine_tune.model_copy(update=changes)
            found = fine_tuned(model, seed, weights, settings, row)
            print(f"{model} seed {seed}: {row} {found['accuracy']:.2%}, {found['seconds']:.0f} s", flush=True)
            yield {"model": model, "seed": seed, "row": row, "epochs": epochs} | found


def fine_tuned(model: str, seed: int, weights: Path, settings: FineTuning, row: str) -> dict[str, Any]:
    """One row: decomposed, re-estimated, fine-tuned."""
    images, dense = data(model, seed), build(model, weights).eval()
    started = time.perf_counter()
    reference = settings.model_copy(update={"freezing": SequentialFreezing()})
    settings = reference.model_copy(update=ROWS[row])
    images.train.generator.manual_seed(seed)
    seen = [inputs for inputs, _ in islice(batches(images.train), CALIBRATION_BATCHES)]
    layers = survey(dense, seen[0][:1], skip=("classifier*",))
    metrics, _ = metrics_of(input_moments(dense, layers, seen), damping=0.01)
    lowrank = decompose_(build(model, weights), plan_ranks(layers, RANKS), metrics)
    reestimate_batchnorm_(lowrank, seen[: settings.batchnorm_batches])
    before, prepared = accuracy(lowrank, images), time.perf_counter() - started
    set_seed(seed)
    teacher = dense if settings.distillation else None
    with TemporaryDirectory() as folder:
        job = TrainingJob(lowrank, images, settings, 1000 * seed, Path(folder), "fine-tuning", teacher)
        epochs = train(job)
    return {
        "accuracy": epochs[-1].accuracy,
        "before": before,
        "seconds": sum(epoch.seconds for epoch in epochs),
        "prepared": prepared,
        "course": [(epoch.seconds, epoch.accuracy) for epoch in epochs],
    }


def table(lines: list[dict[str, Any]]) -> str:
    """One model as a Markdown table, over its seeds."""
    by = {(line["row"], line["seed"]): line for line in lines}
    seeds = sorted({line["seed"] for line in lines})
    rows = [row for row in ("dense", *ROWS) if all((row, seed) in by for seed in seeds)]
    out = [
        "| row | before | accuracy | against dense, points | against sequential, points | training time "
        "| time to dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [by[row, seed] for seed in seeds]
        shares = [cell["seconds"] / by["dense", seed]["seconds"] for cell, seed in zip(cells, seeds, strict=True)]
        reached = [time_to_dense(cell, by["dense", seed]) for cell, seed in zip(cells, seeds, strict=True)]
        told = "" if row == "dense" else reached_by(reached)
        before = "" if row == "dense" else f"{mean(cell['before'] for cell in cells):.2%}"
        out.append(
            f"| {row} | {before} | {mean(cell['accuracy'] for cell in cells):.2%} | "
            f"{difference(by, row, 'dense', seeds)} | {difference(by, row, 'sequential', seeds)} | "
            f"{mean(shares):.2f} | {told} |"
        )
    return "\n".join(out) + f"\n\n{len(seeds)} seeds; differences are paired by seed, ± one standard error."


def difference(by: dict[tuple[str, int], dict[str, Any]], row: str, other: str, seeds: list[int]) -> str:
    """The mean paired difference in points, and its standard error."""
    if row == other:
        return ""
    points = [100 * (by[row, seed]["accuracy"] - by[other, seed]["accuracy"]) for seed in seeds]
    error = f" ± {stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
    return f"{mean(points):+.2f}{error}"


def reached_by(shares: Sequence[float | None]) -> str:
    """The mean over the seeds that became as accurate as dense, and how many they are."""
    known = [share for share in shares if share is not None]
    return f"{mean(known):.2f}, {len(known)} of {len(shares)} seeds" if known else "by no seed"


def time_to_dense(cell: dict[str, Any], dense: dict[str, Any]) -> float | None:
    """The share of the dense training's time after which a row was as accurate; None where it never was."""
    share = dense["accuracy"]
    close = 0.5 * (share * (1 - share) / dense["test_images"]) ** 0.5
    elapsed = cell.get("prepared", 0.0)
    for seconds, reached in cell.get("course", ()):
        elapsed += seconds
        if reached >= share - close:
            return elapsed / dense["seconds"]
    return None


if __name__ == "__main__":
    main()

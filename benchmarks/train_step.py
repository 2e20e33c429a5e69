"""A training step, dense against low-rank under every freezing schedule: time, arithmetic, memory.

    python benchmarks/train_step.py --out FOLDER [--models resnet50-128 …] [--launches 4]

Weights are random: a step costs the same. Rows are steps of one process, interleaved; launches are fresh processes and
the interval is over them. The ceiling is the ratio of FLOPs as PyTorch's own counter counts them, backward included,
and the realised share is the measured ratio over it. Products are only a part of a dense step, by PyTorch's profiler;
*beside the rest* is the ceiling where all else, such as normalisation, takes the time that it takes there. Saved are
the bytes that autograd keeps for backward. The row *rank choice* takes its ranks from `LatencyRank` on timings of
training steps, at the error of alpha 2 floored to 16. Finished models are lines of FOLDER/steps.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fronts
import torch
from gpu_profile import profile_summary
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.layer_training import TrainingCalls
from lrd_deploy.bench.statistics import median, ratio_with_interval
from lrd_deploy.bench.step_timer import SingleSteps, interleave_steps
from lrd_deploy.decompose.surgery import form_of
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import LatencyRank, UniformRank
from lrd_deploy.recipe.settings import FineTuning, SequentialFreezing
from lrd_deploy.records import FrozenGroup, RankPlan
from lrd_deploy.train.devices import PhaseModels
from lrd_deploy.train.freezing import freeze_
from lrd_deploy.train.optimizer import make_optimizer
from lrd_deploy.train.step import TrainingStep


@dataclass(frozen=True)
class Subject:
    """A model with new weights, random inputs for it by their number, and the batch of a step.

    `dense_channels_last` is the layout that trains the dense model faster; a low-rank one has channels_last.
    """

    build: Callable[[], nn.Module]
    example: Callable[[int], Tensor]
    batch: int
    dense_channels_last: bool = True

    def dense_settings(self) -> FineTuning:
        """Returns how steps of the dense model are taken."""
        return SETTINGS.model_copy(update={"channels_last": self.dense_channels_last})

    def labelled(self) -> tuple[Tensor, Tensor]:
        """Returns a batch to train on."""
        return self.example(self.batch), torch.randint(2, (self.batch,))


def _resnet(**changes: Any) -> nn.Module:
    return ResNetForImageClassification(ResNetConfig(num_labels=1000, **changes))


def images(*shape: int) -> Callable[[int], Tensor]:
    """Returns random images (channels, height, width) by their number."""
    return lambda count: torch.randn(count, *shape)


def tokens(length: int, vocabulary: int) -> Callable[[int], Tensor]:
    """Returns random sequences of tokens by their number."""
    return lambda count: torch.randint(vocabulary, (count, length))


def _bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(num_labels=2))


_DIGITS = {"num_channels": 1, "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
SUBJECTS = {
    "resnet18-digits": Subject(partial(_resnet, layer_type="basic", **_DIGITS), images(1, 32, 32), 64, False),
    "resnet50-128": Subject(_resnet, images(3, 128, 128), 16),
    "resnet50-224": Subject(_resnet, images(3, 224, 224), 8),
    "resnet101-224": Subject(partial(_resnet, depths=[3, 4, 23, 3]), images(3, 224, 224), 8),
    "vit-b16-224": Subject(lambda: ViTForImageClassification(ViTConfig(num_labels=1000)), images(3, 224, 224), 8),
    "bert-base-128": Subject(_bert, tokens(128, 30522), 8),
}
ROWS: dict[str, tuple[str, tuple[FrozenGroup, ...]]] = {
    "dense": ("dense", ("none",)),
    "LRD, formula ranks": ("formula", ("none",)),
    "+ rank choice": ("chosen", ("none",)),
    "+ regular freezing": ("chosen", ("A",)),
    "+ sequential freezing": ("chosen", ("A", "B")),
}
SETTINGS = FineTuning(epochs=2, learning_rate=1e-6, optimizer="adamw")  # the weights stay put


def main() -> None:
    """Measures what is missing, then prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--launches", type=int, default=4, help="two or more: the interval is over them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)  # a fresh process: where the samples go
    arguments = parser.parse_args()
    if arguments.launch:
        arguments.launch.write_text(json.dumps(launch(arguments.models[0], arguments.out)))
        return
    if arguments.launches < 2:
        parser.error("an interval needs two launches or more")
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = arguments.out / "steps.jsonl"
    lines = fronts.read(store)
    for model in arguments.models:
        if all(line["model"] != model for line in lines):
            lines.append(measured(model, arguments))
            with store.open("a") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
    for line in lines:
        print(table(line) + "\n")
    here = environment()
    print(f"{here.cpu}, {here.cores} cores, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}")


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows of one model: the plans here, then every launch in a fresh process."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    layers = survey(subject.build(), subject.example(1))
    uniform = plan_ranks(layers, UniformRank(alpha=2, round_to=16))
    budget = sum(layer.predicted_error**2 for layer in uniform.factorised) ** 0.5
    source = MeasuredLatency(
        batch=subject.batch,
        threads=os.cpu_count() or 1,
        store=arguments.out / f"training-{name}.jsonl",
        layers=TrainingCalls(SequentialFreezing(), channels_last=SETTINGS.channels_last),
        work="training",
    )
    plans = {
        "formula": plan_ranks(layers, UniformRank(alpha=2)),
        "chosen": LatencyPlanner(layers, LatencyRank(max_error=budget), source).plan(),
    }
    for plan_name, plan in plans.items():
        plan.write(arguments.out / f"{name}-{plan_name}.json")
    samples = []
    for _ in range(arguments.launches):
        with TemporaryDirectory() as folder:
            target = Path(folder, "samples.json")
            options = ["--models", name, "--out", arguments.out, "--launch", target]
            subprocess.run([sys.executable, __file__, *options], check=True)
            samples.append(json.loads(target.read_text()))
    rows = {row: summary(row, samples) for row in ROWS}
    return {"model": name, "batch": subject.batch, "products": products_share(subject), "rows": rows}


def products_share(subject: Subject) -> float:
    """The share of a dense step's time that convolutions and matrix products take."""
    step = Step(subject.build(), None, "none", subject.dense_settings())
    return profile_summary(partial(step, subject.labelled()), "cpu")["matrix"]


def summary(row: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One row over all launches: a phase counts as often as the schedule visits it."""
    model, phases = ROWS[row]
    arms = [f"{model} {phase}" for phase in phases]

    def step_ms(launch: Mapping[str, Any], number: int) -> float:
        return sum(launch["ms"][arm][number] for arm in arms) / len(arms)

    rounds = range(len(samples[0]["ms"]["dense none"]))
    logs = [
        median([log(launch["ms"]["dense none"][number] / step_ms(launch, number)) for number in rounds])
        for launch in samples
    ]
    ratio = ratio_with_interval(logs)
    facts = {name: sum(samples[0][name][arm] for arm in arms) / len(arms) for name in ("flops", "saved")}
    return {
        "step_ms": median([step_ms(launch, number) for launch in samples for number in rounds]),
        "ratio": ratio.estimate,
        "low": ratio.low,
        "high": ratio.high,
        "ceiling": samples[0]["flops"]["dense none"] / facts["flops"],
        "saved_bytes": facts["saved"],
        "optimizer_bytes": max(samples[0]["optimizer"][arm] for arm in arms),
    }


def launch(name: str, folder: Path) -> dict[str, Any]:
    """Times every arm in interleaved rounds, and counts what each does and keeps."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    batch = subject.labelled()
    arms: dict[str, Callable[[], object]] = {}
    facts: dict[str, Any] = {"flops": {}, "saved": {}, "optimizer": {}}
    for model, phase in dict.fromkeys((model, phase) for model, phases in ROWS.values() for phase in phases):
        plan = None if model == "dense" else RankPlan.read(folder / f"{name}-{model}.json")
        settings = SETTINGS if plan else subject.dense_settings()
        step, arm = Step(subject.build(), plan, phase, settings), f"{model} {phase}"
        for fact, amount in step.facts(batch).items():
            facts[fact][arm] = amount
        arms[arm] = partial(step, batch)
    times = interleave_steps(arms, SingleSteps(time.perf_counter_ns))
    return facts | {"ms": {arm: [sample.wall_ms for sample in samples] for arm, samples in times.items()}}


def with_forms_(model: nn.Module, plan: RankPlan | None) -> nn.Module:
    """Gives a model, in place, a plan's layers with new weights, which takes no time to find; returns it."""
    for layer in plan.factorised if plan else ():
        parent, _, attribute = layer.name.rpartition(".")
        dense = model.get_submodule(layer.name)
        setattr(model.get_submodule(parent), attribute, form_of(dense, layer.choice)(dense, layer.choice))
    return model


class Step:
    """A model in one phase; a call is a training step, compiled where the settings say so."""

    def __init__(
        self, model: nn.Module, plan: RankPlan | None, phase: FrozenGroup, settings: FineTuning, device: str = "cpu"
    ) -> None:
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model = with_forms_(model, plan).to(device, memory_format=layout).train()
        freeze_(self.model, phase)
        self.settings = settings
        self.wrapped = PhaseModels(self.model, compiled=settings.compile).of(phase)
        self.step = TrainingStep(self.model, make_optimizer(self.model, settings), settings)

    def __call__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.step.take(self.wrapped, [batch], self.settings.learning_rate)

    def plainly(self, batch: tuple[Tensor, Tensor]) -> None:
        """A step that is not compiled, so that what it does can be counted."""
        self.step.take(self.model, [batch], self.settings.learning_rate)

    def facts(self, batch: tuple[Tensor, Tensor]) -> dict[str, int]:
        """FLOPs of a step, bytes kept for backward, bytes of the optimizer."""
        step = partial(self.plainly, batch)
        step()
        with FlopCounterMode(display=False) as counter:
            step()
        state = self.step.optimizer.state.values()
        return {
            "flops": counter.get_total_flops(),
            "saved": saved_bytes(step, self.model),
            "optimizer": sum(value.nbytes for values in state for value in values.values()),
        }


def saved_bytes(call: Callable[[], object], model: nn.Module) -> int:
    """The bytes that autograd keeps for backward, parameters and buffers apart, each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []  # a storage that is freed could give its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def table(line: dict[str, Any]) -> str:
    """One model as a Markdown table."""
    batch = line["batch"]
    lines = [
        f"{line['model']}, batch {batch}, products {line['products']:.0%} of a dense step:\n",
        "| row | step | images/s | times dense | ceiling | realised | beside the rest | saved | optimizer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dense = line["rows"]["dense"]["saved_bytes"]
    for name, row in line["rows"].items():
        lines.append(
            f"| {name} | {row['step_ms']:.0f} ms | {1000 * batch / row['step_ms']:.1f} | "
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['ceiling']:.2f} | "
            f"{row['ratio'] / row['ceiling']:.2f} | {beside_the_rest(line['products'], row['ceiling']):.2f} | "
            f"{row['saved_bytes'] / 1e6:.0f} MB "
            f"({row['saved_bytes'] / dense:.2f}) | {row['optimizer_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def beside_the_rest(products: float, ceiling: float) -> float:
    """The ratio of steps where only that share of the dense one shrinks, by that much (Amdahl's law)."""
    return 1 / (1 - products + products / ceiling)


if __name__ == "__main__":
    main()

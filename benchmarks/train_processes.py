"""Training throughput of two processes against one, with one thread each, while factors are frozen in turn.

    python benchmarks/train_processes.py --out FOLDER [--models resnet18-digits …] [--launches 6]

Both train on the same global batch. A launch is a fresh pair: one process, then two, and in the next launch the other
way round; the interval is over launches. Finished launches are lines of FOLDER/processes.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from math import log
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import fronts
import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from train_step import SETTINGS, SUBJECTS

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.statistics import ratio_with_interval
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.models.survey import survey
from lrd_deploy.processes import leave
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import UniformRank
from lrd_deploy.train.devices import make_accelerator, wrapped_for_devices
from lrd_deploy.train.freezing import freeze_
from lrd_deploy.train.optimizer import make_optimizer
from lrd_deploy.train.step import TrainingStep

RANKS = UniformRank(alpha=2, round_to=16)
PHASES = ("none", "A", "B")
_ROUNDS, _WARM_UP, _STEPS = 4, 2, 3


def main() -> None:
    """Measures what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["resnet18-digits", "resnet50-128"])
    parser.add_argument("--launches", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # one of the processes: where its times go
    arguments = parser.parse_args()
    if arguments.train:
        found = train(arguments.models[0])
        if found["process"] == 0:
            arguments.train.write_text(json.dumps(found))
        leave()
        return
    if arguments.launches < 2:
        parser.error("an interval needs two launches or more")
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = arguments.out / "processes.jsonl"
    lines = fronts.read(store)
    for model in arguments.models:
        for number in range(sum(line["model"] == model for line in lines), arguments.launches):
            lines.append({"model": model, **pair(model, arguments.out, two_first=number % 2 == 1)})
            with store.open("a") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))
    here = environment()
    print(f"\n{here.cpu}, {here.cores} cores, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}")


def pair(model: str, folder: Path, *, two_first: bool) -> dict[str, Any]:
    """One process and two of them, each launched as accelerate and torchrun launch them."""
    found = {}
    for count in (2, 1) if two_first else (1, 2):
        with TemporaryDirectory() as scratch:
            target = Path(scratch, "times.json")
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            own = [__file__, "--models", model, "--out", str(folder), "--train", str(target)]
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # or accelerate gives all cores to a process alone
            subprocess.run([sys.executable, *launcher, *own], check=True, env=one_thread)
            found[str(count)] = json.loads(target.read_text())
    return found


def train(name: str) -> dict[str, Any]:
    """Times steps of this process' part of the batch: milliseconds and bytes reduced per step, by phase."""
    accelerator, subject = make_accelerator(seed=0), SUBJECTS[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    own = subject.batch // accelerator.num_processes
    images, labels = subject.example(own), torch.randint(2, (own,))
    model = subject.build()
    decompose_(model, plan_ranks(survey(model, images[:1]), RANKS))
    model = model.to(memory_format=torch.channels_last).train()
    step = TrainingStep(model, make_optimizer(model, SETTINGS), SETTINGS)
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    traffic: dict[str, int] = {}
    for number in range(_ROUNDS):
        for phase in PHASES if number % 2 == 0 else reversed(PHASES):
            freeze_(model, phase)
            wrapped = wrapped_for_devices(accelerator, model)
            reduced = [0]
            if wrapped is not model:
                wrapped.register_comm_hook(None, counting(reduced))
            for _ in range(_WARM_UP):
                step.take(wrapped, [(images, labels)], SETTINGS.learning_rate)
            reduced[0] = 0
            accelerator.wait_for_everyone()
            started = time.perf_counter()
            for _ in range(_STEPS):
                step.take(wrapped, [(images, labels)], SETTINGS.learning_rate)
            accelerator.wait_for_everyone()
            times[phase].append(1000 * (time.perf_counter() - started) / _STEPS)
            traffic[phase] = reduced[0] // _STEPS
    middle = {phase: median(values) for phase, values in times.items()}
    return {"process": accelerator.process_index, "ms": middle, "bytes": traffic}


def counting(reduced: list[int]) -> Callable[..., torch.futures.Future[Tensor]]:
    """A communication hook that adds up the bytes which it reduces."""

    def hook(_state, bucket):  # noqa: ANN001, ANN202  # PyTorch compares annotations, and these would be strings
        reduced[0] += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)

    return hook


def table(lines: list[dict[str, Any]]) -> str:
    """The throughputs, and their ratio with its interval."""
    out = [
        "| model | global batch | phases | one process | two | times one | reduced per step |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(line["model"] for line in lines):
        own, batch = [line for line in lines if line["model"] == model], SUBJECTS[model].batch
        for name, visited in (("nothing frozen", ("none",)), ("A and B in turn", ("A", "B"))):
            one, two = ([step_ms(line[count], visited) for line in own] for count in ("1", "2"))
            logs = [log(a / b) for a, b in zip(one, two, strict=True)]
            ratio = ratio_with_interval(logs)
            moved = sum(own[0]["2"]["bytes"][phase] for phase in visited) / len(visited)
            out.append(
                f"| {model} | {batch} | {name} | {1000 * batch / median(one):.1f} images/s | "
                f"{1000 * batch / median(two):.1f} | {ratio.estimate:.2f} "
                f"({ratio.low:.2f} to {ratio.high:.2f}) | {moved / 1e6:.1f} MB |"
            )
    return "\n".join(out)


def step_ms(found: dict[str, Any], phases: tuple[str, ...]) -> float:
    """The mean step over phases, each visited as often."""
    return sum(found["ms"][phase] for phase in phases) / len(phases)


if __name__ == "__main__":
    main()

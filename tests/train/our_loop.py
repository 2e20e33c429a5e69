"""Run by a launcher: our own loop in one process or several; each writes what it saw as JSON. In float64."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader, TensorDataset

from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.errors import LrdError
from lrd_deploy.models.data import Data
from lrd_deploy.models.survey import survey
from lrd_deploy.processes import leave
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import UniformRank
from lrd_deploy.recipe.settings import FineTuning, Progress, SequentialFreezing
from lrd_deploy.train import loop
from lrd_deploy.train.devices import wrapped_for_devices
from lrd_deploy.train.freezing import factor_weights

STEPS, EPOCHS = 8, 4


def data(batch=16, *, poison=None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (STEPS * batch,), generator=generator)
    images = torch.randn(STEPS * batch, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    if poison is not None:
        images[poison] = torch.nan
    dataset = TensorDataset(images, labels)
    return Data(DataLoader(dataset, batch, shuffle=True), DataLoader(dataset, 32))


def model():
    """Decomposed; without BatchNorm, whose statistics depend on how a batch is shared out."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4)
    )
    return decompose_(net, plan_ranks(survey(net, torch.zeros(1, 3, 8, 8)), UniformRank(alpha=2)))


def settings(**changes):
    freezing = SequentialFreezing()
    return FineTuning(epochs=EPOCHS, learning_rate=0.02, freezing=freezing, label_smoothing=0.1, **changes)


class Traffic:
    """Counts the bytes that DistributedDataParallel reduces, per phase's wrapper and step."""

    def __init__(self):
        self.phases = []

    def wrap(self, accelerator, model):
        wrapped = wrapped_for_devices(accelerator, model)
        if wrapped is not model:
            self.phases.append({"bytes": 0, "steps": 0, "learning": self._learning(model)})
            wrapped.register_comm_hook(None, self._reduce)
        return wrapped

    def _reduce(self, state, bucket):
        self.phases[-1]["bytes"] += bucket.buffer().nbytes
        self.phases[-1]["steps"] += bucket.is_last()
        return allreduce_hook(state, bucket)

    @staticmethod
    def _learning(model):
        return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def trained(folder, **changes):
    """Trains; returns the weights, the records and the traffic."""
    traffic, net = Traffic(), model()
    loop.wrapped_for_devices = traffic.wrap
    job = loop.TrainingJob(net, data(), settings(**changes), seed=3, checkpoints=Path(folder), what="test")
    epochs = loop.train(job)
    return {
        "weights": torch.cat([parameter.detach().flatten() for parameter in net.parameters()]).tolist(),
        "loss": [epoch.loss for epoch in epochs],
        "traffic": traffic.phases,
        "factors": sum(weight.nbytes for _, weight, _ in factor_weights(net)),
    }


def late(folder):
    """Only process 1 thinks that it is time for a checkpoint; returns how many each has taken part in."""
    ticks = iter(range(10**6))
    hurry = 3600 if os.environ["RANK"] == "1" else 0
    job = loop.TrainingJob(
        model(),
        data(),
        settings(),
        seed=3,
        checkpoints=Path(folder),
        what="test",
        progress=Progress(checkpoint_minutes=10),
        clock=lambda: next(ticks) * hurry,
    )
    saved = []
    save = loop.save_checkpoint
    loop.save_checkpoint = lambda *arguments: (saved.append(1), save(*arguments))
    loop.train(job)
    return {"saved": len(saved)}


def refused(folder, **changes):
    """Returns the message of the error that training ends with."""
    job = loop.TrainingJob(model(), data(**changes), settings(), seed=3, checkpoints=Path(folder), what="test")
    try:
        loop.train(job)
    except LrdError as exc:
        return {"refused": str(exc)}
    return {}


def main(what, folder):
    match what:
        case "train":
            return trained(folder)
        case "accumulate":
            return trained(folder, gradient_accumulation=2)
        case "late":
            return late(folder)
        case "poisoned":
            return refused(folder, poison=5)
        case "uneven":
            return refused(folder, batch=15)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    result = main(*sys.argv[1:])
    Path(sys.argv[2], f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
    leave()

"""Run by `torchrun`: trains under a host in several processes; each writes what it saw as JSON."""

import json
import os
import sys
from pathlib import Path

import torch

from lrd_deploy.errors import InputError
from lrd_deploy.recipe.settings import SequentialFreezing
from tests.train.hosts import Classifier, lightning_trainer, loader, transformer, transformers_trainer


def main(host, folder):
    freezing = SequentialFreezing(period=2, unit="steps")
    if host == "lightning":
        model = Classifier()
        trainer, moves = lightning_trainer(freezing, devices=2, strategy="ddp")
        trainer.fit(model, loader())
        return seen(model, moves)
    model = transformer()
    looks_each_step = host == "transformers"
    trainer, moves = transformers_trainer(model, freezing, folder, ddp_find_unused_parameters=looks_each_step)
    try:
        trainer.train()
    except InputError as exc:
        return {"refused": str(exc)}
    return seen(model, moves)


def seen(model, moves):
    """What stood still in every step, and all weights."""
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"still": moves.stood_still, "weights": weights.tolist()}


if __name__ == "__main__":
    result = main(*sys.argv[1:])
    Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(result))

"""What the rank benchmark compresses: three models, how each is trained, and the fine-tuning that every row gets.

Imported both by `rank_choice.py` and, in the peers' own environment, by `peers.py`: the same loop for everybody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import set_seed
from hard_digits import make_loaders
from torch import nn

from lrd_deploy.decompose.batchnorm import reestimate_batchnorm_
from lrd_deploy.models.data import Data, batches
from lrd_deploy.models.source import load_model, load_weights_, save_weights
from lrd_deploy.recipe.settings import FineTuning, NoFreezing, Training, TransformersConfig
from lrd_deploy.train.loop import TrainingJob, train

_IMAGES = {"num_channels": 1, "num_labels": 10}
_RESNET = {"model_type": "resnet", "embedding_size": 64, **_IMAGES}


@dataclass(frozen=True)
class Subject:
    """A model's shape, how hard its digits are, its dense training and the fine-tuning after compression."""

    task: dict[str, Any]
    config: dict[str, Any]
    dense: Training
    fine_tune: FineTuning


def _trainings(
    dense_epochs: int, dense_rate: float, epochs: int, rate: float, *, channels_last: bool = True
) -> tuple[Training, FineTuning]:
    shared = {"optimizer": "adamw", "weight_decay": 0.05, "label_smoothing": 0.1, "channels_last": channels_last}
    dense = Training(epochs=dense_epochs, learning_rate=dense_rate, **shared)
    return dense, FineTuning(epochs=epochs, learning_rate=rate, freezing=NoFreezing(), batchnorm_batches=10, **shared)


# Moving digits are too hard for the other two in two minutes of training; theirs hardly move, and are as noisy.
_MOVING = {"train_images": 350, "noise": 0.5, "passes": 4}
_STILL = {**_MOVING, "shift": 0.03, "scale": 0.05}
SUBJECTS = {
    "resnet18": Subject(
        _MOVING,
        {**_RESNET, "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
        *_trainings(12, 2e-3, 4, 5e-4),
    ),
    "resnet50": Subject(
        _STILL,
        {**_RESNET, "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
        *_trainings(12, 1e-3, 2, 5e-4),
    ),
    "vit": Subject(
        _STILL,
        {
            "model_type": "vit",
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 768,
            "image_size": 32,
            "patch_size": 8,
            **_IMAGES,
        },
        # At 5e-4 fine-tuning takes two points from the dense model itself.
        *_trainings(40, 1e-3, 4, 1e-4),
    ),
}


def data(name: str, seed: int) -> Data:
    """Returns a model's hard digits of a seed."""
    return Data(*make_loaders(seed=seed, **SUBJECTS[name].task))


def build(name: str, weights: Path | None = None, *, seed: int = 0) -> nn.Module:
    """Returns a model with new weights of that seed, or with stored ones."""
    set_seed(seed)
    module = load_model(TransformersConfig(transformers=SUBJECTS[name].config)).module
    return load_weights_(module, weights) if weights else module


def train_dense_(model: nn.Module, name: str, seed: int, epochs: int | None = None) -> nn.Module:
    """Trains a new model in place."""
    return _train_(model, _shortened(SUBJECTS[name].dense, epochs), data(name, seed), seed)


def dense_weights(name: str, seed: int, folder: Path, epochs: int | None = None) -> Path:
    """Returns a trained dense model's weights, which are trained first where FOLDER does not hold them yet.

    Those of another number of `epochs` than the model's own are kept apart.
    """
    weights = folder / (f"{name}-{epochs}-epochs" if epochs else name) / f"seed-{seed}" / "dense.safetensors"
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_weights(train_dense_(build(name, seed=seed), name, seed, epochs), weights)
    return weights


def fine_tune_(model: nn.Module, name: str, seed: int, epochs: int | None = None) -> nn.Module:
    """Gives a compressed model, in place, the budget that every row gets: BatchNorm statistics, then epochs."""
    settings, images = _shortened(SUBJECTS[name].fine_tune, epochs), data(name, seed)
    images.train.generator.manual_seed(seed)
    reestimate_batchnorm_(model, islice((inputs for inputs, _ in batches(images.train)), settings.batchnorm_batches))
    return _train_(model, settings, images, seed)


def _train_(model: nn.Module, settings: Training, images: Data, seed: int) -> nn.Module:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    glance = Data(images.train, images.test[:1])  # the loop looks at the test data after every epoch
    with TemporaryDirectory(prefix="rank-choice-") as folder:
        job = TrainingJob(model, glance, settings, seed=1000 * seed, checkpoints=Path(folder), what="training")
        train(job)
    return model.eval()


def _shortened(settings: Training, epochs: int | None) -> Training:
    return settings if epochs is None else settings.model_copy(update={"epochs": epochs})

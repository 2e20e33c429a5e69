"""What the GPU benchmark measures: models with new weights, and the small ones that try it out on a CPU."""

from __future__ import annotations

from torch import nn
from train_step import SUBJECTS, Subject, images
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification


def _small_resnet() -> nn.Module:
    shape = {"num_channels": 3, "embedding_size": 64, "hidden_sizes": [64], "depths": [1]}
    return ResNetForImageClassification(ResNetConfig(num_labels=10, layer_type="basic", **shape))


def _small_vit() -> nn.Module:
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256}
    return ViTForImageClassification(ViTConfig(num_labels=10, image_size=32, patch_size=8, **shape))


# By training batch: an H200 is full of work, and the five arms' activations, one at a time, fit in half of its memory.
MODELS: dict[str, Subject] = {
    name: Subject(SUBJECTS[source].build, SUBJECTS[source].example, batch)
    for name, source, batch in (
        ("vit-b16", "vit-b16-224", 256),
        ("bert-base", "bert-base-128", 256),
        ("resnet50", "resnet50-224", 256),
        ("resnet101", "resnet101-224", 256),
    )
}
SMALL: dict[str, Subject] = {
    "small-vit": Subject(_small_vit, images(3, 32, 32), 4),
    "small-resnet": Subject(_small_resnet, images(3, 32, 32), 4),
}


def subject_of(name: str) -> Subject:
    """Returns a model by its name."""
    return (MODELS | SMALL)[name]


def unit_of(name: str) -> str:
    """What a batch consists of."""
    return "sequences" if name == "bert-base" else "images"

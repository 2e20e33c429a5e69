"""How good a classifier is on its test data."""

from __future__ import annotations

import torch
from torch import nn

from lrd_deploy.errors import InputError
from lrd_deploy.models.data import Data, batches
from lrd_deploy.models.example import mapped
from lrd_deploy.models.fit import check_labels
from lrd_deploy.models.source import logits


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Returns the share of test samples whose largest logit is their label.

    Raises:
        InputError: the labels are of one class only, which any model could get right.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right, total, classes = 0, 0, set()
    for inputs, labels in batches(data.test):
        labels = labels.to(device)
        output = logits(model, mapped(inputs, lambda tensor: tensor.to(device)))
        check_labels(labels, output.shape[-1], "the test data")
        right += int((output.argmax(-1) == labels).sum())
        total += len(labels)
        classes.update(labels.unique().tolist())
    model.train(was_training)
    if len(classes) < 2:
        raise InputError(
            "measuring accuracy on the test data",
            found=f"labels of {len(classes)} class",
            accepted="two classes or more",
            remedy="shuffle before splitting, or choose another test set",
        )
    return right / total


def chance(data: Data) -> float:
    """Returns the accuracy of always answering the most frequent label of the test data."""
    labels = torch.cat([labels.cpu() for _, labels in batches(data.test)])
    return float(labels.unique(return_counts=True)[1].max() / len(labels))

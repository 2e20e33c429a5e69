"""Training, and what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lrd_deploy.records.record import Record

FrozenGroup = Literal["none", "A", "B"]


class Epoch(Record):
    """One pass over the training data; `frozen` counts the steps in which each factor group stood still."""

    epoch: int
    frozen: dict[FrozenGroup, int]
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    images_per_s: float


class TrainedModel(Record):
    """Weights on disk, how they came about, and how good they are on the test data.

    `chance` is the accuracy of always answering the most frequent label; `groups` names the factors that were frozen
    together.
    """

    weights: Path
    sha256: str
    accuracy: float
    chance: float
    accuracy_before: float | None
    parameters: int
    epochs: tuple[Epoch, ...]
    trained_here: bool
    groups: dict[Literal["A", "B"], tuple[str, ...]]

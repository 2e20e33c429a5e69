"""A data source in, two loaders out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lrd_deploy.errors import InputError
from lrd_deploy.models.example import Example
from lrd_deploy.models.source import call_factory
from lrd_deploy.recipe.settings import DataSource, Digits, DigitsData, PythonData


@dataclass(frozen=True)
class Data:
    """Batches to learn from and batches to be judged by."""

    train: Any
    test: Any

    def example(self) -> Example:
        """Returns the inputs of the first test batch."""
        return next(iter(batches(self.test)))[0]


def load_data(source: DataSource, *, seed: int) -> Data:
    """Returns the loaders of a data source.

    Raises:
        UsageError: the factory does not exist.
        InputError: what it returned is not two loaders, or one of them is empty.
    """
    match source:
        case DigitsData():
            data = _digits(source.digits, seed)
        case PythonData():
            data = _from_python(source)
    for split in ("train", "test"):
        _check_not_empty(getattr(data, split), split)
    return data


def batches(loader: Any) -> Iterator[tuple[Example, Tensor]]:
    """Yields `(inputs, labels)` whatever of the two accepted forms a loader's batches have.

    Of a dictionary with `pixel_values` these alone are the inputs, of any other all but the labels, by name.
    """
    for batch in loader:
        if isinstance(batch, Mapping) and "labels" in batch and len(batch) > 1:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            yield inputs.get("pixel_values", inputs), batch["labels"]
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            yield batch[0], batch[1]
        else:
            raise InputError(
                "reading a batch",
                found=f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""),
                accepted="(inputs, labels), or a dictionary of inputs by name and 'labels'",
                remedy="change what the data loader's collate function returns",
            )


def _digits(settings: Digits, seed: int) -> Data:
    """Grey images in [-1, 1], (1, size, size), split at random but always alike for one seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (n, 1, 8, 8)
    size = (settings.image_size, settings.image_size)
    images = torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out = round(settings.test_share * len(labels))
    test, train = order[:held_out], order[held_out:]
    return Data(
        train=DataLoader(
            TensorDataset(images[train], labels[train]), settings.batch_size, shuffle=True, drop_last=True
        ),
        test=DataLoader(TensorDataset(images[test], labels[test]), settings.batch_size),
    )


def _from_python(source: PythonData) -> Data:
    loaders = call_factory(source.python, source.arguments)
    if not isinstance(loaders, (tuple, list)) or len(loaders) != 2:
        raise InputError(
            f"building the data with 'python:{source.python}'",
            found=f"a {type(loaders).__name__}",
            accepted="(train_loader, test_loader)",
            remedy="return both loaders from the factory",
        )
    return Data(*loaders)


def _check_not_empty(loader: Any, split: str) -> None:
    try:
        length = len(loader)
    except TypeError as exc:
        raise InputError(
            f"looking at the {split} data",
            found=f"a {type(loader).__name__} without a length",
            accepted="a loader with len(), such as a DataLoader over a map-style dataset",
            remedy="give the loader a __len__",
        ) from exc
    if length == 0:
        raise InputError(
            f"looking at the {split} data",
            found="no batch",
            accepted="at least one batch",
            remedy="check the path or the split, and that drop_last does not drop the only batch",
        )

"""Does the data fit the model? Asked once, before hours of work rest on the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrd_deploy.errors import InputError
from lrd_deploy.models.data import Data, batches
from lrd_deploy.models.example import Example, call, described
from lrd_deploy.models.source import logits_of


def check_fit(model: nn.Module, data: Data) -> None:
    """Runs the model on the first batch of each split and looks at what goes in and what comes out.

    Raises:
        InputError: an input or the labels are no tensor, inputs hold NaN or infinity, or the model refuses them; or the
            labels are no class numbers of the model.
    """
    for split in ("train", "test"):
        inputs, labels = next(iter(batches(getattr(data, split))))
        _check_tensors(inputs, labels, split)
        output = logits_of(run_once(model, inputs), model)
        _check_logits(output, labels, split)


@torch.no_grad()
def run_once(model: nn.Module, inputs: Example) -> Any:
    """Returns what the model returns in eval mode; every module's mode is as before.

    Raises:
        InputError: the model refuses these inputs.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        return call(model.eval(), inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as exc:
        raise InputError(
            f"running {type(model).__name__} on {described(inputs)}",
            found=" ".join(str(exc).split())[:300] or type(exc).__name__,
            accepted="data of the shape and type that the model takes"
            + (", and a model that takes one tensor" if isinstance(inputs, Tensor) else ""),
            remedy="make the data and the model section of the recipe fit each other",
        ) from exc
    finally:
        for module, training in modes.items():
            module.training = training


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Raises `InputError` where labels are no numbers of `classes` classes."""
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise _unfit(
            where, f"labels from {lowest} to {highest}", f"0 to {classes - 1}, as the model has {classes} outputs"
        )


def _check_tensors(inputs: Any, labels: Any, split: str) -> None:
    for name, value in (*_by_name(inputs), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise _unfit(f"the {split} data", f"{name} of type {type(value).__name__}", "torch tensors")
    if labels.dtype not in (torch.int64, torch.int32, torch.uint8):
        raise _unfit(f"the {split} data", f"labels of {labels.dtype}", "class numbers, torch.int64")
    if not all(torch.isfinite(value).all() for _, value in _by_name(inputs) if value.is_floating_point()):
        raise _unfit(f"the {split} data", "inputs that are NaN or infinite", "finite inputs")


def _by_name(inputs: Any) -> list[tuple[str, Any]]:
    """Every input with what to call it."""
    if isinstance(inputs, Mapping):
        return [(f"'{name}'", value) for name, value in inputs.items()]
    return [("inputs", value) for value in inputs] if isinstance(inputs, (tuple, list)) else [("inputs", inputs)]


def _check_logits(output: Tensor, labels: Tensor, split: str) -> None:
    if output.ndim != 2 or len(output) != len(labels):
        raise _unfit(
            "the model's output", f"shape {tuple(output.shape)}", f"({len(labels)}, classes): logits per sample"
        )
    check_labels(labels, output.shape[1], f"the {split} data")


def _unfit(where: str, found: str, accepted: str) -> InputError:
    return InputError(
        f"looking at {where}",
        found=found,
        accepted=accepted,
        remedy="correct the data loaders, or choose another model",
    )

"""Checkpoints of a training loop: a folder each, whole or absent, of which the newest is kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import nn

from lrd_deploy.errors import InputError
from lrd_deploy.files import write_folder_whole
from lrd_deploy.models.source import load_weights_, save_weights
from lrd_deploy.records import Epoch, Record


class Checkpoint(Record):
    """How far training had come: whole epochs, and what the one that was under way had summed up."""

    epochs: tuple[Epoch, ...] = ()
    batches: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    frozen: dict[str, int] = Field(default_factory=dict)


class Stateful(Protocol):
    """Something whose state goes into a checkpoint, such as an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain containers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""


def save_checkpoint(folder: Path, model: nn.Module, parts: Mapping[str, Stateful], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, then removes the older ones."""
    older = _checkpoints(folder)

    def fill(into: Path) -> None:
        save_weights(model, into / "model.safetensors")
        _save({name: part.state_dict() for name, part in parts.items()}, into / "state.pt")
        checkpoint.write(into / "checkpoint.json")

    write_folder_whole(folder / f"epoch-{len(checkpoint.epochs):05d}-{checkpoint.batches:08d}", fill)
    for old in older:
        shutil.rmtree(old)


def load_newest(folder: Path, model: nn.Module, parts: Mapping[str, Stateful]) -> Checkpoint:
    """Loads the newest checkpoint into the model and the other parts, in place; an empty one where there is none.

    Raises:
        InputError: the checkpoint is of another model or plan.
    """
    found = _checkpoints(folder)
    if not found:
        return Checkpoint()
    newest = found[-1]
    load_weights_(model, newest / "model.safetensors")
    try:
        # Tensors and plain containers only: a checkpoint must not be able to run code.
        state = torch.load(newest / "state.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (ValueError, KeyError, RuntimeError) as exc:
        raise InputError(
            f"resuming from '{newest}'",
            found=str(exc),
            accepted="a checkpoint of the same recipe",
            remedy=f"delete '{folder}' to start again",
        ) from exc
    return Checkpoint.read(newest / "checkpoint.json")


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as exc:  # what a full disk becomes in PyTorch's writer
        raise OSError(str(exc)) from exc


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*")) if folder.is_dir() else []

"""Checkpoints of a training loop: a folder an epoch, whole or absent, of which the newest is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from lrd_deploy.errors import InputError
from lrd_deploy.files import write_folder_whole
from lrd_deploy.models.source import load_weights_, save_weights
from lrd_deploy.records import Epoch, Record


class Checkpoint(Record):
    """How far training had come."""

    epochs: tuple[Epoch, ...] = ()


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, then removes the older ones."""
    older = _checkpoints(folder)

    def fill(into: Path) -> None:
        save_weights(model, into / "model.safetensors")
        _save_optimizer(optimizer, into / "optimizer.pt")
        checkpoint.write(into / "checkpoint.json")

    write_folder_whole(folder / f"epoch-{len(checkpoint.epochs):05d}", fill)
    for old in older:
        shutil.rmtree(old)


def load_newest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Checkpoint:
    """Loads the newest checkpoint into the model and the optimizer, in place; an empty one where there is none.

    Raises:
        InputError: the checkpoint is of another model.
    """
    found = _checkpoints(folder)
    if not found:
        return Checkpoint()
    newest = found[-1]
    load_weights_(model, newest / "model.safetensors")
    try:
        # Tensors and plain containers only: a checkpoint must not be able to run code.
        optimizer.load_state_dict(torch.load(newest / "optimizer.pt", weights_only=True))
    except (ValueError, KeyError, RuntimeError) as exc:
        raise InputError(
            f"resuming from '{newest}'",
            found=str(exc),
            accepted="a checkpoint of the same recipe",
            remedy=f"delete '{folder}' to start again",
        ) from exc
    return Checkpoint.read(newest / "checkpoint.json")


def _save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    try:
        torch.save(optimizer.state_dict(), path)
    except RuntimeError as exc:  # what a full disk becomes in PyTorch's writer
        raise OSError(str(exc)) from exc


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*")) if folder.is_dir() else []

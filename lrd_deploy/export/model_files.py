"""The files that make up a model: an ONNX file with the weights beside it, or an engine. Weights are never loaded."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from onnx import ModelProto

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import read_model
from lrd_deploy.export.tensor_data import all_tensors, external_entries, is_beside
from lrd_deploy.files import sha256_of, storage_errors

MODEL_NAME, PLAN_NAME = "model.onnx", "model.plan"


@dataclass(frozen=True)
class ModelFiles:
    """Files by the place that they get in a version's folder; every one may be larger than memory."""

    files: dict[str, Path]

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of every file, by its place."""
        return {place: sha256_of(path) for place, path in self.files.items()}

    def copy_to(self, folder: Path) -> None:
        """Copies every file to its place under `folder`.

        Raises:
            StorageError: a file cannot be read, or the disk is full.
        """
        for place, path in self.files.items():
            with storage_errors("copying", path):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / place)


def onnx_files(path: Path, model: ModelProto) -> ModelFiles:
    """Returns an ONNX file and those its weights are in; these keep their names, which the model refers to.

    Args:
        path: of the file.
        model: from `read_model`.

    Raises:
        InputError: weights are called as the model itself will be.
    """
    places = {PurePosixPath(location).as_posix() for location in external_locations(model)}  # "./w" is "w"
    if MODEL_NAME in places and path.name != MODEL_NAME:
        raise InputError(
            f"gathering the files of '{path}'",
            found=f"external data at '{MODEL_NAME}'",
            accepted=f"weights in a file that is not called {MODEL_NAME}, as the model is where it is served",
            remedy="save the model again with onnx.save(..., save_as_external_data=True, location='weights.bin')",
        )
    return ModelFiles({MODEL_NAME: path, **{place: path.parent / place for place in sorted(places)}})


def model_sha256(path: Path) -> str:
    """Returns the SHA-256 of an ONNX model: its file's, or where it has external weights that of all files' digests.

    Raises:
        StorageError, InputError: see `read_model`.
    """
    digests = onnx_files(path, read_model(path)).digests
    if len(digests) == 1:
        return digests[MODEL_NAME]
    return hashlib.sha256("\n".join(f"{place} {digest}" for place, digest in digests.items()).encode()).hexdigest()


def external_locations(model: ModelProto) -> tuple[str, ...]:
    """Returns where a model's external weights are, relative to its file, each place once."""
    found = (external_entries(tensor)["location"] for tensor in all_tensors(model) if is_beside(tensor))
    return tuple(dict.fromkeys(found))

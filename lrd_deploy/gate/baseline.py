"""A baseline's bundle: the model itself, samples, the outputs it gave, and how it came to be the baseline.

    BASELINE/
      manifest.json                what is in the folder below, by digest; replaced last, so that a bundle is never half
      0123456789abcdef/            one promotion
        model/model.onnx           and its external data
        inputs.npz  outputs.npz    samples, labels if there are any, and the model's outputs on them
        history.jsonl              every promotion so far

`promote` is the only thing that writes one; a gate only reads.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lrd_deploy.errors import InputError
from lrd_deploy.files import remove_partial, sha256_of, write_folder_whole, write_text
from lrd_deploy.records import BaselineManifest, Promotion

MANIFEST = "manifest.json"
MODEL = Path("model", "model.onnx")
INPUTS, OUTPUTS, HISTORY = Path("inputs.npz"), Path("outputs.npz"), Path("history.jsonl")


@dataclass(frozen=True)
class Baseline:
    """A bundle whose files are what its manifest says."""

    folder: Path
    manifest: BaselineManifest

    @property
    def model(self) -> Path:
        """The model's file."""
        return self._file(MODEL)

    @property
    def inputs(self) -> Path:
        """The samples, with their labels."""
        return self._file(INPUTS)

    @property
    def outputs(self) -> Path:
        """The outputs the model gave when it was promoted, one array per output in the graph's order."""
        return self._file(OUTPUTS)

    @property
    def history(self) -> tuple[Promotion, ...]:
        """Every promotion, oldest first."""
        lines = self._file(HISTORY).read_text(encoding="utf-8").splitlines()
        return tuple(Promotion.model_validate_json(line) for line in lines)

    def _file(self, name: Path) -> Path:
        return self.folder / self.manifest.folder / name


def is_bundle(folder: Path) -> bool:
    """True for a folder with a manifest."""
    return (folder / MANIFEST).is_file()


def read_baseline(folder: Path) -> Baseline:
    """Returns a bundle after comparing every file with its digest.

    Raises:
        StorageError: there is no manifest, or a file cannot be read.
        InputError: the manifest is of another kind; a file was changed, added or lost.
    """
    manifest = BaselineManifest.read(folder / MANIFEST)
    inner = folder / manifest.folder
    present = {file.relative_to(inner).as_posix() for file in inner.rglob("*") if file.is_file()}
    problems = [f"'{name}' is missing" for name in sorted(manifest.files.keys() - present)]
    problems += [f"'{name}' is not in the manifest" for name in sorted(present - manifest.files.keys())]
    problems += [
        f"'{name}' was changed"
        for name, digest in manifest.files.items()
        if name in present and sha256_of(inner / name) != digest
    ]
    if problems:
        raise InputError(
            f"opening the baseline '{folder}'",
            found="; ".join(problems),
            accepted="the files that its manifest lists, unchanged",
            remedy="fetch the bundle again, or restore it from version control (large files may be pointers)",
        )
    return Baseline(folder, manifest)


def write_baseline(folder: Path, staged: Path, manifest: BaselineManifest, history: Sequence[Promotion]) -> Baseline:
    """Moves the staged files into a bundle under a name of their own, then replaces the manifest.

    Args:
        folder: the bundle; made where it is absent.
        staged: a folder with `model/`, `inputs.npz` and `outputs.npz`.
        manifest: its folder and files are filled in here.
        history: every promotion so far, the new one last.
    """
    lines = "".join(f"{promotion.model_dump_json()}\n" for promotion in history)
    write_text(staged / HISTORY, lines)
    files = {file.relative_to(staged).as_posix(): sha256_of(file) for file in _files(staged)}
    name = hashlib.sha256("\n".join(f"{key} {files[key]}" for key in sorted(files)).encode()).hexdigest()[:16]
    whole = manifest.model_copy(update={"folder": name, "files": files})
    replaced = BaselineManifest.read(folder / MANIFEST).folder if is_bundle(folder) else name
    remove_partial(folder)
    if not (folder / name).exists():
        write_folder_whole(folder / name, lambda target: shutil.copytree(staged, target, dirs_exist_ok=True))
    whole.write(folder / MANIFEST)
    if replaced != name:
        shutil.rmtree(folder / replaced, ignore_errors=True)
    return Baseline(folder, whole)


def age_in_days(timestamp: str) -> int:
    """Returns how many whole days ago an ISO timestamp was."""
    return (datetime.now(UTC) - datetime.fromisoformat(timestamp)).days


def timestamp() -> str:
    """Returns the time in ISO form, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())

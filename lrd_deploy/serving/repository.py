"""A Triton model repository: where new versions are put together, which number they get, and how they appear at once.

Triton takes every folder in a repository for a model and every number in a model's folder for a version, at any moment.
So nothing is put together inside: a new model, or a new version of one that is there, appears by one rename.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lrd_deploy.errors import UsageError, raise_all
from lrd_deploy.files import move_into_place, sha256_of, storage_errors, take_lock
from lrd_deploy.records import BundleManifest
from lrd_deploy.serving.check import read_manifest
from lrd_deploy.serving.manifest import MANIFEST_NAME, dropped_files, file_problems
from lrd_deploy.serving.triton_config import CONFIG_NAME, interface, read_config
from lrd_deploy.serving.warmup import WARMUP_FOLDER

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBER = re.compile(r"[1-9][0-9]*")


def check_name(name: str) -> str:
    """Returns a model's name, which becomes a folder and a part of URLs.

    Raises:
        UsageError: it has other characters than letters, digits, '.', '_' and '-', or is too long.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            "naming the model",
            found=f"{name!r}",
            accepted="at most 100 letters, digits, '.', '_' and '-', the first a letter or a digit",
            remedy="choose one with --name",
        )
    return name


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """Gives a folder on the repository's disk, where Triton does not look, and removes it at the end.

    It lies beside the repository; within it only where the repository is a disk of its own, or nothing else may be
    written. What a killed packaging left there is removed.

    Raises:
        UsageError: another packaging into this repository is under way.
        StorageError: no folder can be made there.
    """
    if repository.exists() and not repository.is_dir():
        raise UsageError(
            f"opening the model repository '{repository}'",
            found="a file",
            accepted="a folder, or a path where one can be made",
            remedy="choose another with --triton",
        )
    name = f".partial-package-{hashlib.sha256(str(repository.resolve()).encode()).hexdigest()[:12]}"
    folder = _staging_parent(repository.resolve()) / name
    with storage_errors("making a folder beside the model repository:", folder):
        folder.mkdir(exist_ok=True)
        lock = (folder / ".lock").open("w")
    refusal = UsageError(
        f"opening the model repository '{repository}'",
        found="another packaging into it is under way",
        accepted="one at a time",
        remedy="wait for it",
    )
    with lock:
        take_lock(lock.fileno(), refusal)
        try:
            _remove_folders(folder)
            yield folder
        finally:
            _remove_folders(folder)  # while the lock keeps others out
            shutil.rmtree(folder, ignore_errors=True)


def choose_number(folder: Path, digests: Mapping[str, str], wanted: int | None) -> int:
    """Returns the number of the version that these files become: that of the latest one where it has the same bytes.

    Args:
        folder: of the model; need not be there.
        digests: of the version's files, by their place in its folder.
        wanted: the number that was asked for; None is the next one.

    Raises:
        UsageError: the number is taken by other bytes.
    """
    numbers = sorted(int(path.name) for path in folder.glob("*") if path.is_dir() and _NUMBER.fullmatch(path.name))
    latest = numbers[-1] if numbers else 0
    number = wanted or (latest if latest and _holds(folder / str(latest), digests) else latest + 1)
    if number in numbers and not _holds(folder / str(number), digests):
        raise UsageError(
            f"packaging version {number} of '{folder.name}'",
            found=f"a version {number} with other bytes",
            accepted=f"a number that is free, such as {latest + 1}; a version is never overwritten",
            remedy="leave --version out to get the next one",
        )
    return number


def earlier_manifest(folder: Path, staged: Path) -> BundleManifest | None:
    """Returns the manifest of a model that is there already, to which the staged version can be added.

    Raises:
        UsageError: the folder is someone else's, or its model has other inputs or outputs.
    """
    if not folder.exists():
        return None
    manifest = read_manifest(folder)
    before, after = (interface(read_config(place / CONFIG_NAME)) for place in (folder, staged))
    if before != after:
        raise UsageError(
            f"adding a version to '{folder.name}'",
            found="a model with other inputs or outputs than the versions there, or batched where they are not",
            accepted="the same names, types and shapes, all batched or none: versions share one configuration",
            remedy="choose another --name, and another model for Triton to serve",
        )
    return manifest


def check_can_follow(folder: Path, before: BundleManifest, after: BundleManifest) -> None:
    """Refuses to add to a bundle whose files are not what was packaged, or what is about to be.

    Raises:
        InputError: earlier versions or the configuration were changed; all problems in one message.
    """
    problems = file_problems(folder, before, also=after)
    if problems:
        raise_all(f"adding to the bundle '{folder}'", problems)


def put_in_place(staged: Path, folder: Path, number: int, before: BundleManifest | None, after: BundleManifest) -> bool:
    """Moves a checked model from the staging folder to its place; returns whether anything had to change.

    The version appears by one rename, before the configuration and the manifest that tell of it. A process killed in
    between leaves a repository that Triton serves, and the same command completes it.

    Args:
        staged: the model's folder in the staging folder, with all that `after` adds.
        folder: the model's folder.
        number: of the version.
        before: the manifest that is there; None for a new model.
        after: the manifest that will be there.

    Raises:
        StorageError: the disk refuses.
    """
    if before is None:
        move_into_place(staged, folder)
        return True
    if before == after and not file_problems(folder, before):
        return False
    if not (folder / str(number)).exists():
        move_into_place(staged / str(number), folder / str(number))
    ours = {file.path for file in after.files if "/" not in file.path or file.path.startswith(f"{WARMUP_FOLDER}/")}
    for path in sorted(ours, key=lambda path: (path == CONFIG_NAME, path)):  # what the configuration names comes first
        if (staged / path).is_file():
            move_into_place(staged / path, folder / path)
    move_into_place(staged / MANIFEST_NAME, folder / MANIFEST_NAME)
    for path in dropped_files(folder, after):
        (folder / path).unlink(missing_ok=True)
    return True


def check_apart(repository: Path, run: Path) -> None:
    """Refuses a repository that is a run's folder, within it, or around it.

    Raises:
        UsageError: Triton would take the run for a model, or the run would take the repository for its own.
    """
    one, other = repository.resolve(), run.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise UsageError(
            f"choosing the model repository '{repository}'",
            found=f"a folder {'within' if one.is_relative_to(other) else 'around'} the run '{run}'",
            accepted="a folder apart from it: Triton takes every folder in a repository for a model",
            remedy="choose another with --triton",
        )


def refuse_foreign(folder: Path) -> None:
    """Refuses a model's folder that `lrd-deploy package` did not write.

    Raises:
        UsageError: there is something else under that name.
    """
    if folder.exists() and not (folder / MANIFEST_NAME).is_file():
        raise UsageError(
            f"opening the model '{folder.name}' of the repository '{folder.parent}'",
            found=f"something without a {MANIFEST_NAME} under that name",
            accepted="a free name, or a model that 'lrd-deploy package' wrote",
            remedy="choose another with --name",
        )


def _staging_parent(repository: Path) -> Path:
    beside = next(path for path in repository.parents if path.exists())
    if not repository.exists():
        return beside
    same_disk = beside.stat().st_dev == repository.stat().st_dev
    return beside if same_disk and os.access(beside, os.W_OK | os.X_OK) else repository


def _remove_folders(folder: Path) -> None:
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


def _holds(folder: Path, digests: Mapping[str, str]) -> bool:
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if {path.relative_to(folder).as_posix() for path in files} != set(digests):
        return False
    return all(sha256_of(path) == digests[path.relative_to(folder).as_posix()] for path in files)

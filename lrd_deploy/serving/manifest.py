"""A bundle's manifest: which files there are, and whether they still are what they were."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lrd_deploy.errors import InputError, LrdError
from lrd_deploy.files import sha256_of, storage_errors
from lrd_deploy.records import BundleFile, BundleManifest, PackagedVersion
from lrd_deploy.serving.labels import LABELS_NAME
from lrd_deploy.serving.warmup import WARMUP_FOLDER

MANIFEST_NAME = "manifest.json"
_OURS = re.compile(rf"{LABELS_NAME}|{WARMUP_FOLDER}/(input\d+-|answers-)[0-9a-f]+\.(bin|npz)")


def described_files(folder: Path, known: Iterable[BundleFile] = ()) -> tuple[BundleFile, ...]:
    """Returns every file below a model's folder but the manifest, in the order of their paths.

    Args:
        folder: of the model.
        known: files that were described before, and have not changed since.

    Raises:
        StorageError: a file cannot be read.
    """
    done = {file.path: file for file in known}
    return tuple(done.get(place) or _described(folder, place) for place in _places(folder))


def file_problems(folder: Path, manifest: BundleManifest, also: BundleManifest | None = None) -> list[LrdError]:
    """Returns what is wrong with the files of a bundle: changed, missing, left over, or outside its folder.

    Args:
        folder: of the model.
        manifest: what should be there.
        also: what may be there as well, because it is about to be written.

    Raises:
        StorageError: a file cannot be read.
    """
    named = {file.path for file in manifest.files}
    outside = [path for path in sorted(named | set(_places(folder))) if _leaves(folder, path)]
    problems: list[LrdError] = [_outside(folder, path) for path in outside]
    accepted: dict[str, list[BundleFile]] = {}
    for file in (*manifest.files, *(also.files if also else ())):
        accepted.setdefault(file.path, []).append(file)
    for path in _places(folder):
        if path in outside:
            continue
        if path not in accepted:
            if also is None or path not in dropped_files(folder, also):  # a killed packaging had not removed it yet
                problems.append(_extra(folder, path))
        elif not any(_is(folder / path, file) for file in accepted[path]):
            problems.append(_changed(folder, path, named))
    there = set(_places(folder))
    problems += [_missing(folder, path) for path in sorted(named - there - set(outside))]
    return problems + [_unlisted(folder, path) for path in sorted(_read_by(manifest) - named)]


def dropped_files(folder: Path, after: BundleManifest) -> list[str]:
    """Returns labels and warm-up files, told by their names, that earlier packagings wrote and the manifest lacks."""
    kept = {file.path for file in after.files}
    return [path for path in _places(folder) if path not in kept and _OURS.fullmatch(path)]


def _read_by(manifest: BundleManifest) -> set[str]:
    """The warm-up files that a check opens."""
    names = {stored.file for version in manifest.versions for stored in version.inputs}
    names |= {version.answers_file for version in manifest.versions if version.answers_file}
    return {f"{WARMUP_FOLDER}/{name}" for name in names}


def files_of_version(version: PackagedVersion, files: Iterable[BundleFile]) -> tuple[BundleFile, ...]:
    """Returns those files that belong to one version: its folder, its warm-up inputs and its answers."""
    own = {f"{WARMUP_FOLDER}/{name}" for name in (*(stored.file for stored in version.inputs), version.answers_file)}
    return tuple(file for file in files if file.path in own or file.path.startswith(f"{version.number}/"))


def _places(folder: Path) -> list[str]:
    with storage_errors("reading", folder):
        files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    places = sorted(path.relative_to(folder).as_posix() for path in files)
    return [place for place in places if place != MANIFEST_NAME]


def _described(folder: Path, place: str) -> BundleFile:
    path = folder / place
    return BundleFile(path=place, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def _leaves(folder: Path, path: str) -> bool:
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts:
        return True
    return not (folder / place).resolve().is_relative_to(folder.resolve())


def _is(path: Path, file: BundleFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes and sha256_of(path) == file.sha256


def _outside(folder: Path, path: str) -> InputError:
    return _problem(
        folder, f"'{path}' leads out of the folder", "files in the folder itself", "package the model again"
    )


def _extra(folder: Path, path: str) -> InputError:
    return _problem(
        folder,
        f"'{path}' is not in the manifest",
        "the files that were packaged, and no others",
        "remove it; an interrupted packaging or a person left it there",
    )


def _unlisted(folder: Path, path: str) -> InputError:
    return _problem(folder, f"'{path}' is read and has no digest", "a digest of every file", "package the model again")


def _missing(folder: Path, path: str) -> InputError:
    return _problem(folder, f"'{path}' is missing", "every file in the manifest", "package the model again elsewhere")


def _changed(folder: Path, path: str, named: set[str]) -> InputError:
    found = f"'{path}' has changed since" if path in named else f"'{path}' is not the file that would be written"
    remedy = "restore it, or package into another folder; settings are changed with options of 'lrd-deploy package'"
    return _problem(folder, found, "the bytes that were packaged", remedy)


def _problem(folder: Path, found: str, accepted: str, remedy: str) -> InputError:
    return InputError(f"checking the bundle '{folder}'", found=found, accepted=accepted, remedy=remedy)

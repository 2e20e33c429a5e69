"""Files that are either whole or absent: write to a temporary name, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lrd_deploy.errors import StorageError, UsageError

_TEMPORARY = ".partial-"


@contextlib.contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a `StorageError` about `path`."""
    try:
        yield
    except OSError as exc:
        accepted, remedy = _advice(doing, exc)
        raise StorageError(
            f"{doing} '{path}'", found=exc.strerror or str(exc), accepted=accepted, remedy=remedy
        ) from exc


def _advice(doing: str, exc: OSError) -> tuple[str, str]:
    if doing == "reading" and not isinstance(exc, PermissionError):
        return "a file that exists", "check the path; a relative one starts from the current folder"
    return (
        "a path on a disk with room, which this user may read and write",
        "choose another path, mend its permissions, or free space",
    )


def check_apart(target: Path, source: Path) -> None:
    """Refuses to write what was made of a model, and lost something, in its place.

    Raises:
        UsageError: both are one file.
    """
    if target.resolve() == source.resolve():
        raise UsageError(
            f"writing '{target}'",
            found="the model that this is made of",
            accepted="another path: what is lost cannot be had back",
            remedy="name another file with -o",
        )


def write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """Lets `write` fill a temporary file beside `path`, then renames it to `path`.

    Raises:
        StorageError: the folder or the disk refuses.
    """
    with storage_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
        try:
            write(temporary)
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_with_companions(path: Path, write: Callable[[Path], None]) -> Path:
    """Lets `write` fill a file and others beside it in a temporary folder, then moves them to where `path` is.

    The file itself comes last, so that there is never one without what it refers to. A companion's name must say what
    it holds, as with a digest: one of that name is replaced.

    Raises:
        StorageError: the folder or the disk refuses.
    """
    with storage_errors("writing", path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}.d")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write(folder / path.name)
            companions = [file for file in folder.iterdir() if file.name != path.name]
            new = [name for file in companions if not (name := path.with_name(file.name)).exists()]
            try:
                for file in (*companions, folder / path.name):
                    _flush_to_disk(file)
                    os.replace(file, path.with_name(file.name))
            except BaseException:
                for file in new:
                    file.unlink(missing_ok=True)
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes `text` as UTF-8, whole or not at all."""
    return write_whole(path, lambda temporary: _write_bytes(temporary, text.encode()))


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes `data`, whole or not at all."""
    return write_whole(path, lambda temporary: _write_bytes(temporary, data))


def read_bytes(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        StorageError: the file is absent, is a folder, or may not be read.
    """
    with storage_errors("reading", path):
        return path.read_bytes()


def write_folder_whole(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Lets `fill` write into a temporary folder, then renames it to `folder`, which must not exist yet."""
    temporary = folder.with_name(f"{_TEMPORARY}{os.getpid()}-{folder.name}")
    with storage_errors("writing", folder):
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            move_into_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def locked_folder(folder: Path, *, holder: str) -> Iterator[None]:
    """Makes a folder, keeps others like this process out of it, and clears what a killed one left half written.

    Args:
        folder: is made where it is absent.
        holder: what works in it, for the message: "run", "gate".

    Raises:
        StorageError: the folder cannot be made or written.
        UsageError: another process has it locked.
    """
    with storage_errors(f"making the {holder}'s folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    refusal = UsageError(
        f"opening the {holder}'s folder '{folder}'",
        found=f"another {holder} is using it",
        accepted=f"one {holder} at a time in a folder",
        remedy="wait for it, or choose another folder with --out",
    )
    with lock:
        take_lock(lock.fileno(), refusal)
        remove_partial(folder)
        yield


def take_lock(lock: int, refusal: UsageError) -> None:
    """Locks an open file until it is closed, or its process dies; raises the refusal where another has it locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise refusal from exc


def move_into_place(written: Path, target: Path) -> Path:
    """Flushes a finished file or folder to disk and renames it to `target`: a file there is replaced, a folder is not.

    Raises:
        StorageError: the disk refuses, `target` is a folder with files in it, or is on another disk.
    """
    with storage_errors("writing", target):
        for file in (path for path in written.rglob("*") if path.is_file()) if written.is_dir() else (written,):
            _flush_to_disk(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, target)
    return target


def remove_partial(folder: Path) -> None:
    """Removes what a killed process left half written anywhere below `folder`."""
    for leftover in list(folder.rglob(f"{_TEMPORARY}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, or of a folder's files and their relative names."""
    with storage_errors("reading", path):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listing = "\n".join(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)
            return hashlib.sha256(listing.encode()).hexdigest()
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Raw samples on disk, launch by launch: what is finished stays when a later launch dies.

The first line says what was measured and under which conditions, every other line is a launch. The file can be judged
again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from lrd_deploy.bench.launch import LaunchSamples
from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, storage_errors, write_text
from lrd_deploy.records import Environment, Execution, Record

R = TypeVar("R", bound=Record)


class MeasuredUnder(Record):
    """What a comparison's launches have in common. `notes` are warnings that hold whatever is measured."""

    kind: Literal["bench"] = "bench"
    schema_version: Literal[1] = 1
    base_sha256: str
    candidate_sha256: str
    batch: int
    threads: int
    execution: Execution = Execution()
    environment: Environment
    notes: tuple[str, ...] = ()


class SamplesFile:
    """A file that gets each launch as it ends."""

    def __init__(self, path: Path) -> None:
        """Nothing is written before `begin`."""
        self.path = path

    def begin(self, under: MeasuredUnder) -> None:
        """Starts the file anew.

        Raises:
            StorageError: it cannot be written.
        """
        write_text(self.path, under.model_dump_json() + "\n")

    def add(self, launch: LaunchSamples) -> None:
        """Appends a launch, and returns when it is on disk.

        Raises:
            StorageError: the disk refuses.
        """
        with storage_errors("writing", self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(launch.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def read_samples(path: Path) -> tuple[MeasuredUnder, tuple[LaunchSamples, ...]]:
    """Returns the conditions and the finished launches of a samples file; a last line that was cut short is none.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no samples file, or has no conditions.
    """
    *lines, cut = read_bytes(path).decode(errors="replace").split("\n")
    if not lines:
        raise _refused(path, "no whole line" if cut else "an empty file")
    under = _parsed(path, 1, MeasuredUnder, lines[0])
    return under, tuple(_parsed(path, number, LaunchSamples, line) for number, line in enumerate(lines[1:], start=2))


def _parsed(path: Path, number: int, kind: type[R], line: str) -> R:
    try:
        return kind.model_validate_json(line)
    except ValidationError as exc:
        raise _refused(path, f"line {number}: {exc.errors()[0]['msg']}") from exc


def _refused(path: Path, found: str) -> InputError:
    return InputError(
        f"reading the samples '{path}'",
        found=found,
        accepted="a line of conditions, then a line per launch, as 'lrd-deploy bench --samples' writes them",
        remedy="pass the file of an earlier 'bench --samples', or measure again",
    )

"""What a training run tells while it goes on: a line of JSON per step, and the trackers that accelerate knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from lrd_deploy.errors import UsageError
from lrd_deploy.files import storage_errors, write_text


class TrainingLog:
    """`training.jsonl`, whose lines are those of a run that was never interrupted, and trackers beside it."""

    def __init__(self, path: Path, accelerator: Accelerator, trackers: Sequence[str], resumed_at: int) -> None:
        """Drops the lines from step `resumed_at` on, which will be written again.

        Raises:
            UsageError: a tracker is not installed.
        """
        self._path, self._accelerator = path, accelerator
        self._main, self._tracked = accelerator.is_main_process, bool(trackers)
        if self._tracked:
            accelerator.log_with = _known(trackers)
            accelerator.project_configuration.set_directories(str(path.parent))
            accelerator.init_trackers("tracking")
        if self._main:
            kept = _lines_before(path, resumed_at)
            write_text(path, "".join(f"{line}\n" for line in kept))

    def step(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Writes one line, and what is a number to the trackers."""
        if not self._main:
            return
        with storage_errors("writing", self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        if self._tracked:
            numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
            self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        """Lets the trackers write what they still hold."""
        if self._tracked:
            self._accelerator.end_training()


def _known(trackers: Sequence[str]) -> list[str]:
    installed = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    missing = [name for name in trackers if name not in installed]
    if missing:
        raise UsageError(
            "setting up the trackers",
            found=f"'{missing[0]}'",
            accepted=f"installed here: {', '.join(sorted(installed)) or 'none'}",
            remedy=f"install the package of {missing[0]}, or leave it out of 'trackers'",
        )
    return list(trackers)


def _lines_before(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values: Any = json.loads(line)
        except ValueError:  # the last line of a killed run
            break
        if values["step"] < step:
            kept.append(line)
    return kept

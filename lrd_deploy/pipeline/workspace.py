"""A run's folder: which stages are done, with what inputs, and whether their files are still what they were."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lrd_deploy.errors import InputError, StorageError, UsageError
from lrd_deploy.files import locked_folder, sha256_of
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.processes import Processes
from lrd_deploy.recipe import Recipe
from lrd_deploy.records import Record
from lrd_deploy.version import __version__

R = TypeVar("R", bound=Record)
_RECIPE, _SCRATCH = "recipe.json", "checkpoints"


class StoredRecipe(Record):
    """The recipe of a run folder, and where its relative imports start."""

    recipe: Recipe
    recipe_folder: Path | None


class StageStamp(Record):
    """What a finished stage depended on, and what it left behind. A changed key or file makes it run again."""

    key: str
    files: dict[str, str]
    seconds: float


@dataclass
class Workspace:
    """One run in one folder. `seconds` and `resumed` tell of the stages this process has passed.

    Of several processes that a launcher started, the main one does all of it, and the others join in training.
    """

    recipe: Recipe
    recipe_folder: Path | None
    folder: Path
    observer: Observer
    processes: Processes = field(default_factory=Processes.alone)
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, bool] = field(default_factory=dict)

    def path(self, *parts: str) -> Path:
        """Returns a path inside the run's folder."""
        return self.folder.joinpath(*parts)

    def stage(
        self,
        name: str,
        record_type: type[R],
        depends_on: Mapping[str, Any],
        make: Callable[[str], tuple[R, list[Path]]],
        *,
        together: bool = False,
    ) -> R:
        """Returns the stage's stored record where it still holds, else makes it.

        Args:
            name: of the stage; its record goes to `NAME.json`.
            record_type: of that record.
            depends_on: everything the result depends on, as JSON values; files by their digest.
            make: does the work, given the stage's key; returns the record and the files it wrote, which are watched
                from then on. What it keeps in `scratch` is removed when the stage is done.
            together: every process makes it; else only the main one, while the others wait.
        """
        self.observer.stage_started(name)
        key = self.processes.agree(_digest({"version": __version__, **depends_on}))
        stored = self.processes.agree(self._stored(name, record_type, key))
        if stored is not None:
            record, stamp = stored
            self._finished(name, stamp.seconds, resumed=True)
            return record
        made = None
        if self.processes.is_main:
            made = self._made(name, key, make)
        elif together:
            make(key)
        record, seconds = self.processes.agree(made)
        self._finished(name, seconds, resumed=False)
        return record

    def _made(self, name: str, key: str, make: Callable[[str], tuple[R, list[Path]]]) -> tuple[R, float]:
        started = time.perf_counter()
        record, files = make(key)
        record_file = record.write(self.path(f"{name}.json"))
        seconds = time.perf_counter() - started
        digests = {str(file.relative_to(self.folder)): sha256_of(file) for file in (record_file, *files)}
        StageStamp(key=key, files=digests, seconds=seconds).write(self._stamp_path(name))
        shutil.rmtree(self.path(name, _SCRATCH), ignore_errors=True)
        return record, seconds

    def scratch(self, name: str, key: str) -> Path:
        """Returns a folder for a stage's unfinished work; what another recipe left there is removed."""
        parent, own = self.path(name, _SCRATCH), self.path(name, _SCRATCH, key)
        for other in parent.glob("*") if self.processes.is_main else ():
            if other != own:
                shutil.rmtree(other)
        return own

    def _stored(self, name: str, record_type: type[R], key: str) -> tuple[R, StageStamp] | None:
        try:
            stamp = StageStamp.read(self._stamp_path(name))
            if stamp.key != key:
                return None
            if any(sha256_of(self.path(file)) != digest for file, digest in stamp.files.items()):
                self.observer.note(f"{name}: its files have changed since; running it again")
                return None
            return record_type.read(self.path(f"{name}.json")), stamp
        except (StorageError, InputError):
            return None  # never ran, was cut short, or was written by another version

    def _stamp_path(self, name: str) -> Path:
        return self.path("stages", f"{name}.json")

    def _finished(self, name: str, seconds: float, *, resumed: bool) -> None:
        self.seconds[name], self.resumed[name] = seconds, resumed
        self.observer.stage_finished(name, seconds, resumed=resumed)


@contextmanager
def open_workspace(recipe: Recipe, recipe_folder: Path | None, folder: Path, observer: Observer) -> Iterator[Workspace]:
    """Locks a folder for one run, clears what a killed run left half written, and notes the recipe in it.

    The main process does so for those that a launcher started with it.

    Raises:
        StorageError: the folder cannot be made or written.
        UsageError: another run is using it.
    """
    processes = Processes.launched(cpu=False)
    if not processes.is_main:
        processes.wait()
        yield Workspace(recipe, recipe_folder, folder, SilentObserver(), processes)
        return
    with locked_folder(folder, holder="run"):
        StoredRecipe(recipe=recipe, recipe_folder=recipe_folder).write(folder / _RECIPE)
        processes.wait()
        yield Workspace(recipe, recipe_folder, folder, observer, processes)


def stored_recipe(folder: Path) -> StoredRecipe:
    """Returns the recipe that a run folder was made with.

    Raises:
        UsageError: the folder is no run folder.
    """
    if not (folder / _RECIPE).is_file():
        raise UsageError(
            f"opening the run's folder '{folder}'",
            found="a folder without recipe.json",
            accepted="a folder that 'lrd-deploy run', 'plan' or 'train' made",
            remedy="pass the recipe itself, or the folder given to --out",
        )
    return StoredRecipe.read(folder / _RECIPE)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

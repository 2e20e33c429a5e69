"""What a person sees: results on stdout, progress on stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from lrd_deploy.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

    from lrd_deploy.cli.written import Written
    from lrd_deploy.records import Record


def show(record: Record, rendered: RenderableType, *, as_json: bool, wrote: Sequence[Written] = ()) -> None:
    """Prints a verb's result, in the main process: the record as one JSON object, or its table and what was written."""
    if not Processes.launched().is_main:
        return
    if as_json:
        sys.stdout.write(record.to_json() + "\n")
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 1000  # a file or a pipe wants whole lines
    Console(highlight=False, soft_wrap=False, width=width, markup=True).print(rendered)
    for file in wrote:
        sys.stdout.write(f"{file}\n")  # whole, however narrow the terminal: a path is there to be copied


def keep_stdout_for_results() -> None:
    """Sends what libraries and child processes write to stdout to stderr; only Python's `sys.stdout` still goes there.

    A solver's stray line would be in the middle of what `--json` promises to be one object. Without a stdout, or a
    stderr, all stays as it is.
    """
    ours = sys.stdout
    if ours is None or sys.stderr is None:
        return
    ours.flush()
    results = os.dup(ours.fileno())
    os.dup2(sys.stderr.fileno(), ours.fileno())
    sys.stdout = os.fdopen(
        results, "w", buffering=1 if os.isatty(results) else -1, encoding=ours.encoding, errors=ours.errors
    )


class ConsoleObserver:
    """Progress on stderr: bars on a terminal, a line per stage elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns = (*columns, TextColumn("{task.fields[detail]}"))
        self._bars: Progress | None = (
            Progress(*columns, console=self._console, transient=True) if self._console.is_terminal else None
        )
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> ConsoleObserver:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def stage_started(self, stage: str) -> None:
        """Says nothing yet: a stage that is taken from an earlier run is not news."""

    def stage_finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """One line per stage."""
        self._clear()
        how = "unchanged" if resumed else f"{seconds:.1f} s"
        self._console.print(f"{stage.replace('_', ' '):15} {how}", markup=False)

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Moves the bar; a new `what` gets a new one. Without a terminal, a line when it is done."""
        if self._bars is None:
            if done == total:
                self._console.print(f"  {what}{f': {detail}' if detail else ''}", markup=False)
            return
        if what != self._what or self._task is None:
            self._clear()
            self._task, self._what = self._bars.add_task(what, total=total, detail=""), what
        self._bars.update(self._task, completed=done, detail=detail)

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False)

    def _clear(self) -> None:
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task, self._what = None, ""

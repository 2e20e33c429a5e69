"""How long work tells of its progress: library code calls an observer and never prints."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """What a caller may want to hear. Every method returns at once."""

    def stage_started(self, stage: str) -> None:
        """A stage of a run begins."""

    def stage_finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """A stage ended; `resumed` when its stored result still held."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` pieces of `what` are finished; `detail` says how it goes."""

    def note(self, text: str) -> None:
        """One line worth reading."""


class SilentObserver:
    """Hears everything, says nothing."""

    def stage_started(self, stage: str) -> None:
        """Ignored."""

    def stage_finished(self, stage: str, seconds: float, *, resumed: bool) -> None:
        """Ignored."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

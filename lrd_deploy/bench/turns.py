"""Measurements on one machine take turns: two at once would each measure the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lrd_deploy.observer import Observer
from lrd_deploy.records import Record

_LOCK = "lrd-deploy-measuring.lock"

S = TypeVar("S", bound=Record)


class Turns:
    """The turns of one measurement; its observer hears once that it has to wait."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._told = observer, False

    def take(self, launch: Callable[[], S]) -> S:
        """Returns the samples of a launch that nothing else measured beside, with `waited` as it was."""
        waited = False

        def on_wait() -> None:
            nonlocal waited
            waited = True
            if not self._told:
                self._told = True
                self._observer.note("another measurement is running on this machine; launches take turns")

        with own_turn(on_wait):
            samples = launch()
        return samples.model_copy(update={"waited": waited})


@contextlib.contextmanager
def own_turn(on_wait: Callable[[], None], folder: Path | None = None) -> Iterator[None]:
    """Holds the machine's lock for the length of the block; the system frees it when the process dies.

    Args:
        on_wait: called once when another measurement holds the machine, before waiting for it.
        folder: where the lock file lies; None is the system's temporary folder.

    Limits: processes that do not share the folder, as in containers, do not see each other.
    """
    descriptor = _opened(Path(folder or tempfile.gettempdir(), _LOCK))
    if descriptor is None:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """The lock file, whoever made it; None where the folder allows none: measuring goes on without turns."""
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_CREAT):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return None

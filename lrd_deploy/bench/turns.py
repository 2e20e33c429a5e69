"""Measurements on one machine take turns: two at once would each measure the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_LOCK = "lrd-deploy-measuring.lock"


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

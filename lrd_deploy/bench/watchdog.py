"""A worker that hangs ends itself: before each step it says how long that may take at most.

The timer is a thread of the interpreter's own that needs no lock, so that it also ends a process that is stuck inside
an inference engine; what every thread was doing then goes to stderr.
"""

from __future__ import annotations

import faulthandler
from pathlib import Path

_LOADING_SECONDS, _LOADED_BYTES_PER_S = 300.0, 10e6
_ARMS, _STEP_SECONDS, _STEP_CALLS = 3, 3.0, 20
_SAFETY = 10.0


def expect_within(seconds: float) -> None:
    """Ends this process with status 1 unless it is called again, or `cancel` is, within so many seconds."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def cancel() -> None:
    """Lets this process take as long as it likes."""
    faulthandler.cancel_dump_traceback_later()


def loading_seconds(model: Path) -> float:
    """Returns how long loading a model and running it once may take: five minutes, and more for a large file."""
    return _LOADING_SECONDS + model.stat().st_size / _LOADED_BYTES_PER_S


def step_seconds(call_seconds: float) -> float:
    """Returns how long a launch may go on without finishing a step: ten times what the longest step should take.

    The longest are warming up every arm, which takes 3 s or a dozen calls each, and running one alone for 20 calls.

    Args:
        call_seconds: of the slowest arm.
    """
    return _SAFETY * _ARMS * (_STEP_SECONDS + _STEP_CALLS * call_seconds)


def where_it_hung(stderr: str) -> str | None:
    """Returns in words what an ended process was doing, from its stderr; None where it did not end by this timer."""
    lines = stderr.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Timeout (")]
    if not starts:
        return None
    place = next((line.strip() for line in lines[starts[-1] :] if line.startswith("  File ")), "an unknown place")
    return f"it hung and was ended: no step within {lines[starts[-1]][9:].rstrip('!').rstrip(')')}, in {place}"

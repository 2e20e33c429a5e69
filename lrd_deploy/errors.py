"""Every error this package raises on purpose.

One class per reaction that a caller could have::

    LrdError
    ├── UsageError         the request is wrong: correct the recipe or the option
    ├── InputError         a model, a graph or data cannot be used: supply another
    ├── MissingPackage     an optional package is absent: install the extra that the message names
    ├── BackendError       an engine refused or failed: read its last words, which the message quotes
    ├── StorageError       a file cannot be read or written: another folder, more disk
    ├── TrainingDiverged   the loss is not finite: lower the learning rate; the last good checkpoint is kept
    └── Problems           several of the above, found together and raised together
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never


class LrdError(Exception):
    """An error with the four things that its reader needs.

    Args:
        doing: what was being done, to what.
        found: the offending value.
        accepted: what would have been accepted.
        remedy: what to do now.
    """

    def __init__(self, doing: str, *, found: str, accepted: str, remedy: str) -> None:
        self.doing, self.found, self.accepted, self.remedy = doing, found, accepted, remedy
        super().__init__(f"{self.complaint}; {remedy}")

    @property
    def complaint(self) -> str:
        """What is wrong, on one line, without what to do."""
        return f"{self.doing}: {self.found}; {self.accepted}"


class UsageError(LrdError):
    """The recipe, an option or an argument is wrong."""


class InputError(LrdError):
    """A model, a graph, weights or data cannot be used as they are."""


class MissingPackage(LrdError):
    """An optional package is not installed.

    Args:
        package: the name as imported.
        extra: the extra of lrd-deploy that installs it.
        purpose: what it was wanted for.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            purpose,
            found=f"the package '{package}' is not installed",
            accepted=f"it comes with the extra '{extra}'",
            remedy=f"run: pip install 'lrd-deploy[{extra}]'",
        )


class BackendError(LrdError):
    """An inference engine refused a model or failed on it."""


class StorageError(LrdError):
    """A file or folder cannot be read or written."""


class TrainingDiverged(LrdError):
    """The training loss is NaN or infinite."""


class Problems(LrdError):
    """Several problems that were found together, so that they can be mended together."""

    def __init__(self, doing: str, problems: Sequence[LrdError]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            doing,
            found=f"{len(self.problems)} problems",
            accepted="none of them may remain",
            remedy="mend each of these:\n" + "\n".join(f"  {n}. {problem}" for n, problem in enumerate(problems, 1)),
        )


def raise_all(doing: str, problems: Sequence[LrdError]) -> Never:
    """Raises the one problem as it is, or several as `Problems`."""
    if len(problems) == 1:
        raise problems[0]
    raise Problems(doing, problems)

"""What every record is: frozen, free of NaN, the same after a round-trip through JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from lrd_deploy.errors import InputError
from lrd_deploy.files import read_bytes, write_text


class Record(BaseModel):
    """An immutable value that survives a round-trip through JSON unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Returns the record as indented JSON."""
        return self.model_dump_json(indent=2)

    def write(self, path: Path) -> Path:
        """Writes the record as JSON, whole or not at all."""
        return write_text(path, self.to_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a record back.

        Raises:
            StorageError: the file cannot be read.
            InputError: it does not hold this record.
        """
        try:
            return cls.model_validate_json(read_bytes(path))
        except ValidationError as exc:
            raise InputError(
                f"reading '{path}' as {cls.__name__}",
                found=first_mistake(exc),
                accepted=f"a {cls.__name__} written by this version",
                remedy="delete the file and run the command that made it again",
            ) from exc


def first_mistake(exc: ValidationError) -> str:
    """Returns what is wrong first in JSON that is no such record, and where."""
    first = exc.errors()[0]
    return f"{first['msg']} at '{'.'.join(map(str, first['loc'])) or 'the top'}'"

"""What a verb wrote: where it is from where the user stands, and which files belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lrd_deploy.records import CompressedModel, EngineArtifact, ExportedModel, PrecisionReport, RewriteReport

M = TypeVar("M", bound="CompressedModel | ExportedModel | PrecisionReport | RewriteReport")


@dataclass(frozen=True)
class Written:
    """A file or folder, and the files beside it without which it cannot be used."""

    path: Path
    belonging: Sequence[Path] = ()

    def __str__(self) -> str:
        """A line that ends a verb's output."""
        if not self.belonging:
            return f"wrote {self.path}"
        verb = "belongs" if len(self.belonging) == 1 else "belong"
        return f"wrote {self.path} (and {', '.join(map(str, self.belonging))}, which {verb} to it)"


def written_model(path: Path) -> Written:
    """Returns an ONNX file with those that hold its weights.

    Raises:
        StorageError, InputError: see `read_model`.
    """
    from lrd_deploy.export.model_files import external_locations
    from lrd_deploy.export.onnx_file import read_model

    return Written(path, tuple(path.parent / place for place in external_locations(read_model(path))))


def written_engine(path: Path) -> Written:
    """Returns an engine with its manifest, without which it is not loaded."""
    from lrd_deploy.engines.artifact import manifest_of

    return Written(path, (manifest_of(path),))


def placed_model(record: M, written: Written) -> M:
    """Returns a record of a model with paths that hold where the user stands; a stored one has them from its folder."""
    return record.model_copy(update={"path": written.path, "data_files": tuple(written.belonging)})


def placed_engine(record: EngineArtifact, folder: Path) -> EngineArtifact:
    """Returns an engine's record with paths that hold where the user stands; the manifest has them from its folder."""
    paths = {name: getattr(record, name) for name in ("path", "log", "layers")}
    return record.model_copy(update={name: folder / path for name, path in paths.items() if path is not None})

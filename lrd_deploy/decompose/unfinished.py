"""A checkpoint that is being written: whose it is, and which of its shards are finished."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lrd_deploy.decompose.planned_checkpoint import PlannedCheckpoint
from lrd_deploy.decompose.shards import Shard
from lrd_deploy.errors import UsageError
from lrd_deploy.files import remove_partial, storage_errors
from lrd_deploy.recipe.policies import UniformRank
from lrd_deploy.records import FactorisedWeight, Record
from lrd_deploy.version import __version__


class ShardResult(Record):
    """What writing one shard found; `peak_memory_mib` is of its process, from its start to the shard's end."""

    weights: tuple[FactorisedWeight, ...]
    peak_memory_mib: float


class _Claim(Record):
    """What a target folder is being filled with."""

    version: str
    fingerprint: str


class UnfinishedCheckpoint:
    """The notes in `target/.decompose`: they stay, so that a finished checkpoint is not computed again either."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        self._notes = target / ".decompose"

    def check_folders(self) -> None:
        """Refuses a target in which something else would be overwritten.

        Raises:
            UsageError: it is the source, or holds other weights.
        """
        if self.source.resolve() == self.target.resolve():
            raise self._refusal("the source folder itself", "another folder than the source")
        if self.target.is_dir() and not self._notes.is_dir() and any(self.target.glob("*.safetensors*")):
            raise self._refusal("weights that this command did not write", "an empty or a new folder")

    def claim(self, planned: PlannedCheckpoint, policy: UniformRank) -> None:
        """Notes what the target is being filled with; nothing where the same was noted before.

        Raises:
            UsageError: it was something else.
            StorageError: the folder cannot be written.
        """
        path = self._notes / "claim.json"
        claim = _Claim(version=__version__, fingerprint=self._fingerprint(planned, policy))
        if not path.is_file():
            claim.write(path)
        elif _Claim.read(path) != claim:
            raise self._refusal(
                "the shards of another source, policy, choice of layers or version", "a folder of its own for each"
            )

    def remove_leftovers(self) -> None:
        """Removes what a killed process left half written; only while no other process writes."""
        remove_partial(self.target)

    def note(self, shard: Shard, weights: Sequence[FactorisedWeight]) -> None:
        """Notes that a shard is on disk."""
        ShardResult(weights=tuple(weights), peak_memory_mib=_peak_memory_mib()).write(self._note_of(shard))

    def result(self, shard: Shard) -> ShardResult | None:
        """Returns what was noted of a shard, or None where it has to be written."""
        there = (self.target / shard.file).is_file() and self._note_of(shard).is_file()
        return ShardResult.read(self._note_of(shard)) if there else None

    def finished(self, shards: Sequence[Shard]) -> list[ShardResult]:
        """Returns the results of those shards that are finished."""
        return [result for result in map(self.result, shards) if result is not None]

    def _note_of(self, shard: Shard) -> Path:
        return self._notes / f"{shard.file}.json"

    def _fingerprint(self, planned: PlannedCheckpoint, policy: UniformRank) -> str:
        """A digest of names, shapes and ranks, and of the sizes and times of the source's files, not of its weights."""
        files = sorted({piece.source.file for piece in planned.pieces})
        with storage_errors("reading", self.source):
            states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        tensors = [(output.name, output.dtype, output.shape) for piece in planned.pieces for output in piece.outputs]
        text = json.dumps([states, tensors, policy.model_dump(mode="json")])
        return hashlib.sha256(text.encode()).hexdigest()

    def _refusal(self, found: str, accepted: str) -> UsageError:
        return UsageError(
            f"decomposing '{self.source}' into '{self.target}'",
            found=f"the target holds {found}" if "source folder" not in found else f"the target is {found}",
            accepted=accepted,
            remedy="choose another folder with --output, or remove this one",
        )


def _peak_memory_mib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere

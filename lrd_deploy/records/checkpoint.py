"""What decomposing a checkpoint on disk did."""

from __future__ import annotations

from pathlib import Path

from lrd_deploy.records.record import Record


class FactorisedWeight(Record):
    """One weight that became two; `relative_error` is of the factors as stored, in the weight's own dtype."""

    name: str
    in_channels: int
    out_channels: int
    rank: int
    seconds: float
    relative_error: float

    @property
    def dense_parameters(self) -> int:
        """The weight's own elements."""
        return self.in_channels * self.out_channels

    @property
    def lowrank_parameters(self) -> int:
        """The elements of both factors."""
        return (self.in_channels + self.out_channels) * self.rank


class CheckpointReport(Record):
    """A decomposed checkpoint: parameters and bytes are of all its tensors, factorised or not.

    `seconds` is of this call; `resumed_shards` were taken from an earlier one. `peak_memory_mib` is the resident memory
    of the largest process that wrote a shard, libraries included.
    """

    weights: tuple[FactorisedWeight, ...]
    refusals: dict[str, str]
    copied: int
    dense_parameters: int
    lowrank_parameters: int
    dense_bytes: int
    lowrank_bytes: int
    shards: tuple[Path, ...]
    resumed_shards: int
    processes: int
    seconds: float
    peak_memory_mib: float

"""The processes that share one piece of work: one by default, several under `accelerate launch` or torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and MPI's
_PATIENCE = timedelta(days=7)  # at a barrier, for the process with the most work


@dataclass(frozen=True)
class Processes:
    """This process' place among those that share the work.

    `wait` returns when all of them have called it.
    """

    index: int
    count: int
    wait: Callable[[], None]

    @classmethod
    def alone(cls) -> Processes:
        """Returns just this process."""
        return cls(index=0, count=1, wait=lambda: None)

    @classmethod
    def launched(cls, *, cpu: bool = True) -> Processes:
        """Returns the processes that the launcher started; without a launcher just this one.

        Args:
            cpu: joins them over gloo although there may be GPUs. What was joined once stays as it is.
        """
        if max(int(os.environ.get(size, "1")) for size in _SIZES) == 1:
            return cls.alone()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_PATIENCE)
        return cls(index=state.process_index, count=state.num_processes, wait=state.wait_for_everyone)

    @property
    def is_main(self) -> bool:
        """True in the one process that does what must be done once."""
        return self.index == 0

    def agree(self, value: T) -> T:
        """Returns the main process' value in all of them; it is pickled on the way."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def leave() -> None:
    """Takes this process out of those that share the work, before its interpreter ends.

    Threads that still served the others would abort it then, after all was said and done.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def shared_out(costs: list[float], shares: int) -> list[list[int]]:
    """Returns which pieces of work each process takes: dearest first, each to the process with the least so far.

    Args:
        costs: of each piece, in any unit.
        shares: the number of processes.

    Source: Graham, SIAM Journal on Applied Mathematics 17 (1969), 416: at most 4/3 of the best makespan.
    """
    loads = [0.0] * shares
    taken: list[list[int]] = [[] for _ in range(shares)]
    for piece in sorted(range(len(costs)), key=lambda piece: (-costs[piece], piece)):
        least = min(range(shares), key=lambda share: (loads[share], share))
        loads[least] += costs[piece]
        taken[least].append(piece)
    return [sorted(pieces) for pieces in taken]

"""The processes that share one piece of work: one by default, several under `accelerate launch` or torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and MPI's
_PATIENCE = timedelta(days=7)  # at a barrier, for the process with the most work


@dataclass(frozen=True)
class Processes:
    """This process' place among those that share the work; `wait` returns when all of them have called it."""

    index: int
    count: int
    wait: Callable[[], None]

    @classmethod
    def launched(cls) -> Processes:
        """Returns the processes that the launcher started, joined over gloo; without a launcher just this one."""
        if max(int(os.environ.get(size, "1")) for size in _SIZES) == 1:
            return cls(index=0, count=1, wait=lambda: None)
        from accelerate import PartialState

        state = PartialState(cpu=True, timeout=_PATIENCE)
        return cls(index=state.process_index, count=state.num_processes, wait=state.wait_for_everyone)

    @property
    def is_main(self) -> bool:
        """True in the one process that does what must be done once."""
        return self.index == 0


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

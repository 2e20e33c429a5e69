"""What an engine that can time its parts offers: kernels that say which ONNX nodes they run, and their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lrd_deploy.engines.backend import Backend, Session, SessionSettings
from lrd_deploy.records import Record


class Kernel(Record):
    """One thing that an engine runs.

    Attributes:
        name: the engine's own.
        operator: what it is, in the engine's words.
        nodes: names of the ONNX nodes whose work it does; none for one that only moves or turns data.
        inputs: names of the values that it reads, in the engine's own graph; with `outputs` they say who feeds whom.
        outputs: names of the values that it writes; the engine may use a name again.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class KernelTimes(Record):
    """Nanoseconds by call and kernel: `calls_ns[call][kernel]`. Kernels are in the order in which they run."""

    kernels: tuple[Kernel, ...]
    calls_ns: tuple[tuple[int, ...], ...]


class ProfiledSession(Session, Protocol):
    """A loaded engine that keeps the times of its kernels."""

    def kernel_times(self) -> KernelTimes:
        """Ends profiling, and returns the times of every call so far, those of `run` and of what `bind` made.

        Raises:
            BackendError: the engine has not kept them all.
        """


class Profiler(Backend, Protocol):
    """A backend that times its kernels on this machine."""

    def load_profiled(self, model: Path, settings: SessionSettings, folder: Path) -> ProfiledSession:
        """Loads an ONNX file whose nodes all have names, each its own.

        Args:
            model: the file.
            settings: how to run.
            folder: where the engine may keep what it writes meanwhile; of this session alone.

        Raises:
            BackendError: the backend refuses the file.
        """


def kernel_times(kernels: Sequence[Kernel], calls: Sequence[Mapping[str, int]]) -> KernelTimes:
    """Returns the times of the kernels that ran at all, from nanoseconds by name, one mapping per call.

    A name that no kernel has gets a kernel that runs no known node: its time belongs to the call.
    """
    ran = {name for call in calls for name in call}
    known = [kernel for kernel in kernels if kernel.name in ran]
    foreign = sorted(ran - {kernel.name for kernel in known})
    found = (*known, *(Kernel(name=name, operator="unknown", nodes=()) for name in foreign))
    return KernelTimes(
        kernels=found, calls_ns=tuple(tuple(call.get(kernel.name, 0) for kernel in found) for call in calls)
    )

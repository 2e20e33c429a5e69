"""A backend with a scripted clock: for tests of anything that measures, ours and yours.

A session's calls advance the clock by scripted amounts instead of taking time, so a test states latencies and checks
what the measuring code makes of them, without sleeping and without noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.engines.backend import Arrays, BackendStatus, SessionSettings
from lrd_deploy.engines.profiler import Kernel, KernelTimes


@dataclass
class ScriptedClock:
    """Stands still until a fake session advances it. Call it to read it, in nanoseconds."""

    now_ns: int = 0

    def __call__(self) -> int:
        """Returns the time."""
        return self.now_ns

    def advance_ms(self, milliseconds: float) -> None:
        """Lets time pass."""
        self.now_ns += round(milliseconds * 1e6)


@dataclass(frozen=True)
class FakeSession:
    """Takes the next scripted latency for every call; returns its inputs as outputs."""

    clock: ScriptedClock
    latencies_ms: Iterator[float]
    log: list[str]
    name: str
    copy_ms: float = 0.1

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Advances the clock and echoes the inputs."""
        self.log.append(self.name)
        self.clock.advance_ms(next(self.latencies_ms))
        return dict(inputs)

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call of `run`."""
        return lambda: self.run(inputs)

    def copies(self, inputs: Arrays) -> tuple[Callable[[], object], Callable[[], object]]:  # noqa: ARG002
        """Returns two calls that each take as long as a copy does."""
        return (lambda: self.clock.advance_ms(self.copy_ms),) * 2

    def on_cpu(self) -> tuple[str, ...]:
        """Nothing does."""
        return ()


@dataclass
class FakeProfile:
    """Takes for every call as long as its kernels do, one after the other; returns its inputs as outputs."""

    clock: ScriptedClock
    kernels_ms: Sequence[tuple[Kernel, Iterator[float]]]
    calls_ns: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Advances the clock and echoes the inputs."""
        times = [next(script) for _, script in self.kernels_ms]
        self.clock.advance_ms(sum(times))
        self.calls_ns.append(tuple(round(milliseconds * 1e6) for milliseconds in times))
        return dict(inputs)

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """Returns a call of `run`."""
        return lambda: self.run(inputs)

    def kernel_times(self) -> KernelTimes:
        """Returns what was scripted, for the calls that were made."""
        return KernelTimes(kernels=tuple(kernel for kernel, _ in self.kernels_ms), calls_ns=tuple(self.calls_ns))


@dataclass
class FakeBackend:
    """Loads any path whose file name has a script. `log` keeps the order of all calls, by file name.

    `profiles` has the kernels of a file by its name, each with its own script.
    """

    scripts: Mapping[str, Iterator[float]]
    clock: ScriptedClock = field(default_factory=ScriptedClock)
    log: list[str] = field(default_factory=list)
    name: str = "fake"
    profiles: Mapping[str, Sequence[tuple[Kernel, Iterator[float]]]] = field(default_factory=dict)

    def describe(self) -> BackendStatus:
        """Always works."""
        return BackendStatus(name=self.name, builds=False, runs=True, version="1", detail="scripted latencies")

    def load(self, model: Path, settings: SessionSettings) -> FakeSession:  # noqa: ARG002, nothing to set
        """Returns a session that plays the script of that file name."""
        return FakeSession(self.clock, self.scripts[model.name], self.log, model.name)

    def load_profiled(self, model: Path, settings: SessionSettings, folder: Path) -> FakeProfile:  # noqa: ARG002
        """Returns a session that plays the kernels of that file name."""
        return FakeProfile(self.clock, self.profiles[model.name])

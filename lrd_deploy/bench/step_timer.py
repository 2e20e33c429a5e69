"""How long a training step takes: on the CPU by its clock, on a GPU in a queue of steps, by both clocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol

import torch

from lrd_deploy.bench.launch import Call, Clock, timed
from lrd_deploy.bench.torch_device import on_gpu, waiter

ROUNDS = 5
_WARMUP, _STEPS = 3, 2
_QUEUE_MS, _SHORTEST_QUEUE, _LONGEST_QUEUE = 200.0, 2, 20


class StepTime(NamedTuple):
    """Milliseconds per step by the host's clock, and by the GPU's own where there is one."""

    wall_ms: float
    device_ms: float | None = None


class StepTimer(Protocol):
    """Takes one sample of a step; the first step after another arm's is discarded."""

    def __call__(self, step: Call) -> StepTime:
        """Returns the time of one step."""


@dataclass(frozen=True)
class SingleSteps:
    """The least of two steps, each timed alone: for steps that end when they are done."""

    clock: Clock

    def __call__(self, step: Call) -> StepTime:
        """Returns the time of one step."""
        step()
        return StepTime(min(timed(step, self.clock, _STEPS)) / 1e6)


@dataclass(frozen=True)
class QueuedSteps:
    """The mean of steps that are started without waiting for the one before, as training starts them.

    A queue takes about 200 ms by the discarded step, from 2 to 20 steps. The wall clock runs from an idle device to an
    idle device; the device's runs between an event before the first step and one after the last.

    Attributes:
        clock: in nanoseconds.
        wait: ends when the device is idle.
        event: makes an event that has `record()` and `elapsed_time(later)` in milliseconds.
    """

    clock: Clock
    wait: Callable[[], None]
    event: Callable[[], torch.cuda.Event]

    def __call__(self, step: Call) -> StepTime:
        """Returns the time of one step."""
        self.wait()
        (single,) = timed(lambda: (step(), self.wait()), self.clock, 1)
        steps = min(max(ceil(_QUEUE_MS * 1e6 / single), _SHORTEST_QUEUE), _LONGEST_QUEUE)
        first, last = self.event(), self.event()

        def queue() -> None:
            first.record()
            for _ in range(steps):
                step()
            last.record()
            self.wait()

        (wall,) = timed(queue, self.clock, 1)
        return StepTime(wall / 1e6 / steps, first.elapsed_time(last) / steps)


def step_timer(device: str, clock: Clock) -> StepTimer:
    """Returns how steps are timed on that device."""
    if on_gpu(device):
        return QueuedSteps(clock, waiter(device), lambda: torch.cuda.Event(enable_timing=True))
    return SingleSteps(clock)


def interleave_steps(
    steps: Mapping[str, Call], timer: StepTimer, rounds: int = ROUNDS
) -> dict[str, tuple[StepTime, ...]]:
    """Times the arms in rounds of one sample each, in both directions in turn, after three steps of each."""
    samples: dict[str, list[StepTime]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(_WARMUP):
            step()
    for number in range(rounds):
        for name in steps if number % 2 == 0 else reversed(steps):
            samples[name].append(timer(steps[name]))
    return {name: tuple(values) for name, values in samples.items()}

import time
from itertools import count

import pytest
import torch

from lrd_deploy.bench.step_timer import QueuedSteps, SingleSteps, StepTime, interleave_steps, step_timer
from lrd_deploy.bench.torch_device import Capture, arithmetic, peak_bytes
from lrd_deploy.engines.fake import ScriptedClock


class Gpu:
    """Steps take a millisecond to start, and `step_ms` on the device, one after the other."""

    def __init__(self, step_ms):
        self.clock, self.step_ms, self.done_ns, self.log = ScriptedClock(), step_ms, 0, []

    def step(self):
        self.clock.advance_ms(1)
        self.done_ns = max(self.done_ns, self.clock()) + round(self.step_ms * 1e6)
        self.log.append("step")

    def wait(self):
        self.clock.now_ns = max(self.clock() + 1, self.done_ns)
        self.log.append("wait")

    def event(gpu):  # noqa: N805
        class Event:
            def record(self):
                self.at_ns = max(gpu.clock(), gpu.done_ns)

            def elapsed_time(self, later):
                return (later.at_ns - self.at_ns) / 1e6

        return Event()


def sample(gpu):
    return QueuedSteps(gpu.clock, gpu.wait, gpu.event)(gpu.step)


def test_steps_are_queued_without_waiting_between_them():
    gpu = Gpu(step_ms=20.0)
    found = sample(gpu)
    assert found.wall_ms == pytest.approx(20.1, abs=0.02)  # 21 ms alone: starting the next overlaps
    assert found.device_ms == pytest.approx(20.1, abs=0.02)
    assert gpu.log == ["wait", "step", "wait", *["step"] * 10, "wait"]


@pytest.mark.parametrize(("step_ms", "steps"), [(1000.0, 2), (0.1, 20)])
def test_a_queue_is_neither_too_short_nor_too_long(step_ms, steps):
    gpu = Gpu(step_ms)
    sample(gpu)
    assert gpu.log.count("step") == steps + 1


def test_a_step_that_waits_for_its_start_shows_in_the_wall_clock():
    assert sample(Gpu(step_ms=0.1)).wall_ms == pytest.approx(1.0, abs=0.02)


def test_arms_take_turns_in_both_directions():
    log = []
    numbers = count(1)

    def timer(step):
        step()
        return StepTime(float(next(numbers)))

    times = interleave_steps({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, timer, rounds=3)
    assert "".join(log) == "aaabbb" + "ab" + "ba" + "ab"
    assert [sample.wall_ms for sample in times["a"]] == [1, 4, 5]


def test_a_step_on_the_cpu_is_the_least_of_two():
    clock = ScriptedClock()
    script = iter([9.0, 5.0, 4.0])
    assert SingleSteps(clock)(lambda: clock.advance_ms(next(script))) == StepTime(4.0)
    assert isinstance(step_timer("cpu", time.perf_counter_ns), SingleSteps)


def test_on_the_cpu_nothing_is_recorded_and_memory_is_not_told():
    def call():
        return None

    assert Capture("cpu")(call) is call
    assert peak_bytes(call, "cpu") is None


def test_the_arithmetic_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32
    with arithmetic(tf32=not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
        assert torch.backends.cuda.matmul.fp32_precision == ("ieee" if before else "tf32")
    assert torch.backends.cuda.matmul.allow_tf32 is before

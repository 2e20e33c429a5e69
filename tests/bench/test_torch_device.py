"""CUDA graphs and memory, with a stand-in for the GPU: what is asked of PyTorch, in which order."""

from contextlib import contextmanager

import pytest
import torch

from lrd_deploy.bench.torch_device import Capture, check_torch_device, peak_bytes, waiter
from lrd_deploy.errors import BackendError


class Log(list):
    """Everything that was asked for."""


@pytest.fixture
def cuda(monkeypatch):
    log = Log()

    class Stream:
        def __init__(self, device="cuda:0"):
            self.name = f"side of {device}"

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other}")

    class CUDAGraph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def within(name):
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    memory = {"allocated": 100, "peak": 100}
    stands_in = {
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "current_stream": lambda _: "the current one",
        "stream": lambda stream: within(stream.name),
        "graph": lambda _graph, pool: within(f"graph in {pool}"),
        "graph_pool_handle": lambda: "pool",
        "synchronize": lambda device: log.append(f"wait for {device}"),
        "memory_allocated": lambda _: memory["allocated"],
        "max_memory_allocated": lambda _: memory["peak"],
        "reset_peak_memory_stats": lambda _: memory.update(peak=memory["allocated"]),
        "device_count": lambda: 1,
    }
    for name, value in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    log.memory = memory
    return log


def test_a_call_is_warmed_up_on_a_side_stream_and_then_recorded_once(cuda):
    replay = Capture("cuda:0")(lambda: cuda.append("call"))
    assert cuda == [
        "side of cuda:0 waits for the current one",
        "enter side of cuda:0", "call", "call", "call", "leave side of cuda:0",
        "wait for cuda:0",
        "enter graph in pool", "call", "leave graph in pool",
    ]  # fmt: skip
    cuda.clear()
    replay()
    assert cuda == ["replay"]


def test_graphs_of_one_capture_share_their_memory(cuda):
    capture = Capture("cuda:0")
    for _ in range(2):
        capture(lambda: None)
    assert cuda.count("enter graph in pool") == 2


def test_the_peak_is_what_a_call_adds(cuda):
    def call():
        cuda.memory["peak"] = 350

    assert peak_bytes(call, "cuda:0") == 250


def test_waiting_is_waiting_for_that_gpu(cuda):
    waiter("cuda:1")()
    assert cuda == ["wait for cuda:1"]


@pytest.mark.usefixtures("cuda")
def test_a_gpu_beyond_those_there_are_is_refused():
    check_torch_device("cuda:0")
    check_torch_device("cpu")
    with pytest.raises(BackendError, match="1 GPUs that PyTorch"):
        check_torch_device("cuda:1")

from types import SimpleNamespace

import pytest

from lrd_deploy.bench import environment as described
from lrd_deploy.bench.gpu import GpuWatch, installed_gpus
from lrd_deploy.records import Environment, Gpu


class NVMLError(Exception):
    pass


class FakeNVML(SimpleNamespace):
    """Answers as pynvml does, for GPUs by index; `states` are what successive readings find."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index >= len(self.names):
            raise NVMLError("no such GPU")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return self.names.index(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, _handle):  # noqa: N802
        return SimpleNamespace(total=80 * 2**30)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return b"580.65"

    def nvmlSystemGetCudaDriverVersion(self):  # noqa: N802
        return 13020

    def nvmlDeviceGetClockInfo(self, _handle, _clock):  # noqa: N802
        if not self.states:
            raise NVMLError("gone")
        return self.states[0][0]

    def nvmlDeviceGetTemperature(self, _handle, _sensor):  # noqa: N802
        return self.states[0][1]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle):  # noqa: N802
        return self.states.pop(0)[2]


def fake(*states, names=("A", "B")):
    return FakeNVML(names=list(names), states=list(states))


def watched(number, module, **environ):
    watch = GpuWatch(number, module, environ)
    for _ in range(3):
        watch.read()
    return watch.readings()


def test_gpus_are_described():
    expected = [Gpu(name=name, memory_mib=80 * 1024, driver="580.65", cuda="13.2") for name in "AB"]
    assert list(installed_gpus(fake())) == expected


def test_readings_are_extremes_and_every_throttling_reason():
    found = watched(1, fake((1980, 60, 0x01), (1500, 71, 0x04), (1700, 70, 0x02 | 0x20)))
    assert (found.gpu.name, found.readings) == ("B", 3)
    assert (found.sm_clock_mhz_low, found.sm_clock_mhz_high, found.temperature_c_high) == (1500, 1980, 71)
    assert found.throttled == ("power cap", "software thermal slowdown")  # idle and set clocks are none


def test_a_gpu_that_is_lost_meanwhile_leaves_what_was_read():
    assert watched(0, fake((1000, 50, 0))).readings == 1


@pytest.mark.parametrize(
    ("visible", "number", "name"), [("1", 0, "B"), ("1,0", 1, "A"), ("GPU-B", 0, "B"), ("", 0, "A")]
)
def test_a_gpu_is_found_by_the_number_that_cuda_gives_it(visible, number, name):
    assert watched(number, fake((1, 1, 0)), CUDA_VISIBLE_DEVICES=visible).gpu.name == name


@pytest.mark.parametrize("number", [None, 7])
def test_without_a_gpu_there_is_nothing_to_say(number):
    assert watched(number, fake((1, 1, 0))) is None
    assert watched(7, fake((1, 1, 0)), CUDA_VISIBLE_DEVICES="0") is None


def test_the_fingerprint_is_of_the_gpu_its_driver_and_cuda(monkeypatch):
    def fingerprint(*gpus):
        monkeypatch.setattr(described, "installed_gpus", lambda: gpus)
        found = described.environment()
        assert Environment.model_validate_json(found.to_json()) == found
        return found.fingerprint

    gpu = Gpu(name="A", memory_mib=1, driver="1", cuda="13.0")
    changed = [
        gpu.model_copy(update={name: value}) for name, value in (("name", "B"), ("driver", "2"), ("cuda", "13.1"))
    ]
    assert len({fingerprint(), fingerprint(gpu), *(fingerprint(other) for other in changed)}) == 5

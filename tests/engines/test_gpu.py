import ctypes

import pytest

from lrd_deploy.engines.gpu import NoGpu, find_gpu
from lrd_deploy.records import TargetGpu


class Cuda:
    """The driver library as far as it is asked; a status of 0 is success."""

    def __init__(self, *, count=1, init=0, describes=0):
        self.count, self.init, self.describes = count, init, describes

    def cuInit(self, _):  # noqa: N802, CUDA's names
        return self.init

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, _, __):  # noqa: N802
        return self.describes

    def cuDeviceGetName(self, name, _, __):  # noqa: N802
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetAttribute(self, value, which, _):  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[which]
        return 0


class Nvml:
    def __init__(self, release, status=0):
        self.release, self.status = release, status

    def nvmlInit_v2(self):  # noqa: N802
        return self.status

    def nvmlSystemGetDriverVersion(self, text, _):  # noqa: N802
        text.value = self.release.encode()
        return 0

    def nvmlShutdown(self):  # noqa: N802
        return 0


def libraries(**there):
    def load(name):
        if name not in there:
            raise OSError(name)
        return there[name]

    return load


def machine(cuda, nvml=None):
    there = {"libcuda.so.1": cuda} | ({"libnvidia-ml.so.1": nvml} if nvml else {})
    return find_gpu(libraries(**there))


def test_the_gpu_is_described():
    assert machine(Cuda(), Nvml("580.95.05")) == TargetGpu(
        name="NVIDIA L4", compute_capability="8.9", driver="580.95.05"
    )


@pytest.mark.parametrize("nvml", [None, Nvml("580.1", status=9)])
def test_a_driver_that_does_not_tell_its_release_is_used_all_the_same(nvml):
    assert machine(Cuda(), nvml).driver == "unknown"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (find_gpu(libraries()), "no NVIDIA driver: libcuda.so.1 is not found"),
        (machine(Cuda(init=100)), r"shows no GPU \(CUDA error 100\)"),
        (machine(Cuda(count=0)), r"shows no GPU \(CUDA error 0\)"),
        (machine(Cuda(), Nvml("550.54.15")), "driver 550.54.15 is too old; install release 580"),
        (machine(Cuda(describes=101)), r"does not describe its GPU \(CUDA error 101\)"),
    ],
)
def test_each_lack_has_its_own_reason(found, reason):
    assert isinstance(found, NoGpu)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.reason)


def test_here_it_answers_whatever_there_is():
    assert isinstance(find_gpu(ctypes.CDLL), (TargetGpu, NoGpu))

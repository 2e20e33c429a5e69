"""The GPU that this process would use, and what is missing where there is none: asked of the driver's own libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrd_deploy.records import TargetGpu

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_OLDEST_DRIVER = 580  # of CUDA 13, which TensorRT 11 is built with
_NAME_BYTES = 256


@dataclass(frozen=True)
class NoGpu:
    """There is no GPU to use, and why."""

    reason: str


def find_gpu(library: Callable[[str], Any] = ctypes.CDLL) -> TargetGpu | NoGpu:
    """Returns the first GPU that the driver shows to this process, CUDA_VISIBLE_DEVICES obeyed.

    Args:
        library: loads a shared library by name; raises OSError where there is none.

    Source: NVIDIA, CUDA Driver API, sections Initialization and Device Management; NVML API, System Queries.
    """
    try:
        cuda = library("libcuda.so.1")
    except OSError:
        return NoGpu(f"no NVIDIA driver: libcuda.so.1 is not found; install release {_OLDEST_DRIVER} or newer")
    count, device = ctypes.c_int(0), ctypes.c_int(0)
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return NoGpu(
            f"the NVIDIA driver shows no GPU (CUDA error {status}); see nvidia-smi, CUDA_VISIBLE_DEVICES, and in a "
            "container --gpus"
        )
    driver = _driver_release(library)
    if driver.partition(".")[0].isdecimal() and int(driver.partition(".")[0]) < _OLDEST_DRIVER:
        return NoGpu(f"the NVIDIA driver {driver} is too old; install release {_OLDEST_DRIVER} or newer")
    name = ctypes.create_string_buffer(_NAME_BYTES)
    status = cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    if status:
        return NoGpu(f"the NVIDIA driver does not describe its GPU (CUDA error {status})")
    major, minor = (_attribute(cuda, which, device) for which in (_MAJOR, _MINOR))
    return TargetGpu(name=name.value.decode(errors="replace"), compute_capability=f"{major}.{minor}", driver=driver)


def _attribute(cuda: Any, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def _driver_release(library: Callable[[str], Any]) -> str:
    """The release as NVML tells it, such as "580.95.05"."""
    try:
        nvml = library("libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    text = ctypes.create_string_buffer(_NAME_BYTES)
    status = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _NAME_BYTES)
    nvml.nvmlShutdown()
    return "unknown" if status else text.value.decode(errors="replace")

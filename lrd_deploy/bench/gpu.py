"""What NVML says of the GPUs: which there are, and their clocks, heat and throttling during a launch.

Without the package, the driver or a GPU there is nothing to say, and nothing is raised.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from lrd_deploy.records.gpu import Gpu, GpuReadings

_MIB = 2**20
# Idle clocks, and those that somebody set or synchronised, are no throttling.
_THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


def nvml() -> Any | None:
    """Returns the NVML module, ready to be asked; None where it, the driver or a GPU is absent."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def installed_gpus(module: Any | None = None) -> tuple[Gpu, ...]:
    """Returns the machine's GPUs, in the order of their PCI buses; none where NVML cannot be asked."""
    module = module or nvml()
    if module is None:
        return ()
    with contextlib.suppress(module.NVMLError):
        handles = [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]
        return tuple(_gpu(module, handle) for handle in handles)
    return ()


class GpuWatch:
    """Reads one GPU whenever it is told to; outside of timed calls, since a reading takes up to a millisecond."""

    def __init__(self, number: int | None, module: Any | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """Watches the GPU that this process sees as `number`; nothing where that is None or NVML cannot be asked."""
        self._module = None if number is None else module or nvml()
        self._clocks: list[int] = []
        self._temperatures: list[int] = []
        self._reasons = 0
        self._handle = None
        if self._module is not None and number is not None:
            with contextlib.suppress(self._module.NVMLError):
                self._handle = _visible(self._module, number, environ.get("CUDA_VISIBLE_DEVICES"))

    def read(self) -> None:
        """Takes one reading."""
        module, handle = self._module, self._handle
        if module is None or handle is None:
            return
        with contextlib.suppress(module.NVMLError):
            clock = module.nvmlDeviceGetClockInfo(handle, module.NVML_CLOCK_SM)
            temperature = module.nvmlDeviceGetTemperature(handle, module.NVML_TEMPERATURE_GPU)
            self._reasons |= module.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            self._clocks.append(clock)
            self._temperatures.append(temperature)

    def readings(self) -> GpuReadings | None:
        """Returns what was read; None where nothing could be."""
        if self._module is None or not self._clocks:
            return None
        return GpuReadings(
            gpu=_gpu(self._module, self._handle),
            readings=len(self._clocks),
            sm_clock_mhz_low=min(self._clocks),
            sm_clock_mhz_high=max(self._clocks),
            temperature_c_high=max(self._temperatures),
            throttled=tuple(name for bit, name in _THROTTLING.items() if self._reasons & bit),
        )


def _visible(module: Any, number: int, visible: str | None) -> Any:
    """The handle of a GPU by CUDA's number, which counts those that CUDA_VISIBLE_DEVICES leaves, by PCI bus."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    if not names:
        return module.nvmlDeviceGetHandleByIndex(number)
    if number >= len(names):
        return None
    name = names[number]
    return module.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else module.nvmlDeviceGetHandleByUUID(name)


def _gpu(module: Any, handle: Any) -> Gpu:
    cuda = module.nvmlSystemGetCudaDriverVersion()
    return Gpu(
        name=_text(module.nvmlDeviceGetName(handle)),
        memory_mib=module.nvmlDeviceGetMemoryInfo(handle).total // _MIB,
        driver=_text(module.nvmlSystemGetDriverVersion()),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings return bytes

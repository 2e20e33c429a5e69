"""A GPU, and what it did while something was measured."""

from __future__ import annotations

from lrd_deploy.records.record import Record


class Gpu(Record):
    """An installed GPU. `cuda` is the newest version that the driver supports."""

    name: str
    memory_mib: int
    driver: str
    cuda: str


class GpuReadings(Record):
    """A GPU during one launch: extremes over `readings` between its rounds. `throttled` has every reason given."""

    gpu: Gpu
    readings: int
    sm_clock_mhz_low: int
    sm_clock_mhz_high: int
    temperature_c_high: int
    throttled: tuple[str, ...]

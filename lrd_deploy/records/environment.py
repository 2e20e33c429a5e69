"""Where something was measured."""

from __future__ import annotations

from lrd_deploy.records.gpu import Gpu
from lrd_deploy.records.record import Record


class Environment(Record):
    """The machine and the versions that a measurement belongs to. `fingerprint` covers only what is stable."""

    cpu: str
    cores: int
    system: str
    python: str
    packages: dict[str, str]
    fingerprint: str
    gpus: tuple[Gpu, ...] = ()

"""What works on this machine."""

from __future__ import annotations

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines import BACKENDS
from lrd_deploy.engines.backend import BackendStatus
from lrd_deploy.engines.execution_provider import lacking_for_cuda
from lrd_deploy.records import Environment, Record


class Diagnosis(Record):
    """This machine, each backend on it, and what ONNX Runtime lacks to run on a GPU."""

    environment: Environment
    backends: dict[str, BackendStatus]
    lacking_for_gpu: tuple[str, ...] = ()


def diagnose() -> Diagnosis:
    """Asks every backend; never raises."""
    return Diagnosis(
        environment=environment(),
        backends={name: backend.describe() for name, backend in BACKENDS.items()},
        lacking_for_gpu=tuple(lacking_for_cuda(0)),
    )

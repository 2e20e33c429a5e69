"""What works on this machine."""

from __future__ import annotations

from lrd_deploy.bench.environment import environment
from lrd_deploy.engines import BACKENDS
from lrd_deploy.engines.backend import BackendStatus
from lrd_deploy.records import Environment, Record


class Diagnosis(Record):
    """This machine, and each backend on it."""

    environment: Environment
    backends: dict[str, BackendStatus]


def diagnose() -> Diagnosis:
    """Asks every backend; never raises."""
    return Diagnosis(
        environment=environment(), backends={name: backend.describe() for name, backend in BACKENDS.items()}
    )

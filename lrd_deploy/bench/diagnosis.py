"""What works on this machine."""

from __future__ import annotations

from lrd_deploy.bench.environment import environment, version_of
from lrd_deploy.engines import BACKENDS
from lrd_deploy.engines.backend import BackendStatus
from lrd_deploy.engines.execution_provider import lacking_for_cuda
from lrd_deploy.records import Environment, Record

_OPTIONAL = {"nvidia-ml-py": "gpu", "lightning": "lightning", "tritonclient": "triton"}  # with the extra of each


class OptionalPackage(Record):
    """A package that one part of this one takes, the extra that installs it, and its version where it is installed."""

    name: str
    extra: str
    version: str | None


class Diagnosis(Record):
    """This machine, each backend on it, optional packages, and what ONNX Runtime lacks to run on a GPU."""

    environment: Environment
    backends: dict[str, BackendStatus]
    optional: tuple[OptionalPackage, ...] = ()
    lacking_for_gpu: tuple[str, ...] = ()


def diagnose() -> Diagnosis:
    """Asks every backend; never raises."""
    return Diagnosis(
        environment=environment(),
        backends={name: backend.describe() for name, backend in BACKENDS.items()},
        optional=tuple(
            OptionalPackage(name=name, extra=extra, version=version_of(name)) for name, extra in _OPTIONAL.items()
        ),
        lacking_for_gpu=tuple(lacking_for_cuda(0)),
    )

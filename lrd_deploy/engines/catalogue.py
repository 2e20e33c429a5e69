"""The backends there are: one literal table."""

from __future__ import annotations

from lrd_deploy.engines.backend import Backend, Builder, Runtime
from lrd_deploy.engines.onnxruntime import OnnxRuntime
from lrd_deploy.engines.profiler import Profiler
from lrd_deploy.engines.tensorrt import TensorRT
from lrd_deploy.errors import UsageError

BACKENDS: dict[str, Backend] = {
    "onnxruntime": OnnxRuntime(),
    "tensorrt": TensorRT(name="tensorrt", package="tensorrt", extra="tensorrt"),
    "tensorrt-rtx": TensorRT(name="tensorrt-rtx", package="tensorrt_rtx", extra="rtx"),
}


def builder(name: str) -> Builder:
    """Returns a backend that builds engines."""
    return _named(name, "build", "building an engine")


def runtime(name: str) -> Runtime:
    """Returns a backend that runs models here."""
    return _named(name, "load", "loading a model")


def profiler(name: str) -> Profiler:
    """Returns a backend that times its kernels here."""
    return _named(name, "load_profiled", "profiling a model")


def _named(name: str, ability: str, doing: str) -> Backend:
    able = {key: backend for key, backend in BACKENDS.items() if hasattr(backend, ability)}
    if name not in able:
        raise UsageError(
            doing,
            found=f"the backend '{name}'",
            accepted=f"one of: {', '.join(sorted(able))}",
            remedy="run 'lrd-deploy doctor' to see what works on this machine",
        )
    return able[name]
